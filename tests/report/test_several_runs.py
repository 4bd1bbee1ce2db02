"""Several runs on one page, and charts for notebooks."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from run_folders import WriteRun, healthy
from seen import Seen

from azllm_lightning import plot_runs
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.report.comparison import comparison
from azllm_lightning.report.record import read_record


def test_runs_are_on_the_same_axes_with_what_differs(write_run: WriteRun) -> None:
    worse = healthy()
    worse["val_loss"] = {step: loss + 1 for step, loss in worse["val_loss"].items()}
    worse["tokens_seen"] = {step: 1024.0 * step for step in worse["train_loss"]}
    folders = [
        write_run("good", config={"optimizer": {"lr": 0.01, "name": "muon"}}),
        write_run("worse", worse, config={"optimizer": {"lr": 0.1, "name": "muon"}}),
    ]
    found = Seen(comparison([read_record(folder) for folder in folders]))
    ends = {
        axis: [line["x"][-1] for line in found.chart(f"val_loss-{axis}")["lines"]]
        for axis in ("step", "tokens", "minutes")
    }
    assert ends["step"] == [400, 400]
    assert ends["tokens"] == [204_800, 409_600]
    assert ends["minutes"] == [pytest.approx(400 / 60, abs=0.01)] * 2
    names = [line["name"] for line in found.chart("val_loss-step")["lines"]]
    assert names == ["good/version_0", "worse/version_0"]
    assert "optimizer.lr 0.01 0.1" in found.text
    assert "optimizer.name" not in found.text
    assert "different tokenizers" not in found.text
    best = [attrs for tag, attrs in found.elements if tag == "b" and attrs.get("class") == "lowest"]
    assert (
        len(best) == 3
    )  # the best loss of one run, and the bits per byte of both, which are equal


def test_a_stopped_run_has_the_steps_of_its_summary(write_run: WriteRun) -> None:
    ended = {"status": "stopped", "steps": 278, "tokens_seen": 142_336}
    folders = [write_run("a", healthy(270), summary=ended), write_run("b")]
    found = Seen(comparison([read_record(folder) for folder in folders]))
    assert "278 142,336" in found.text


def test_runs_with_nothing_in_common_have_a_page(write_run: WriteRun) -> None:
    folders = [
        write_run("a", {"val_loss": {0: 6.0}}, config={"data": {"vocab_size": 300}}),
        write_run("b", {"train_loss": {1: float("nan")}}, config={"data": {"vocab_size": 400}}),
    ]
    found = Seen(comparison([read_record(folder) for folder in folders]))
    assert "different tokenizers" in found.text
    assert "b/version_0" in found.text


def test_losses_of_different_tokenizers_of_one_size_are_not_compared(write_run: WriteRun) -> None:
    folders = [write_run(name, config={"data": {"vocab_size": 300}}) for name in ("a", "b")]
    texts = ["bir gün " * 50 + "kənddə " * 40 + "bağ " * 30, "qış gəldi " * 50 + "dağ " * 40]
    tokenizers = [Tokenizer.train([text], 260) for text in texts]

    def lowest(*chosen: Tokenizer) -> int:
        """How many values are in bold: each column of two equal runs has two."""
        for folder, tokenizer in zip(folders, chosen, strict=True):
            tokenizer.save(folder / "tokenizer.json")
        found = Seen(comparison([read_record(folder) for folder in folders]))
        differ = chosen[0] is not chosen[1]
        assert ("different tokenizers: compare their bits per byte" in found.text) == differ
        return sum(attrs.get("class") == "lowest" for _, attrs in found.elements)

    assert lowest(tokenizers[0], tokenizers[0]) == 4
    assert lowest(*tokenizers) == 2  # bits per byte alone


@pytest.mark.parametrize(
    ("recorded", "paths", "marked"),
    [
        (("f00d", "f00d"), ("a.txt", "b.txt"), 4),  # the record decides
        (("f00d", "beef"), ("a.txt", "a.txt"), 0),
        ((None, None), ("a.txt", "a.txt"), 4),  # older runs
        ((None, None), ("a.txt", "b.txt"), 0),
        ((None, "beef"), ("a.txt", "b.txt"), 0),
    ],
)
def test_no_run_wins_that_was_validated_on_another_text(
    write_run: WriteRun,
    recorded: tuple[str | None, str | None],
    paths: tuple[str, str],
    marked: int,
) -> None:
    """Of two equal runs, both losses and both bits per byte are marked, or none of them."""
    records = []
    for name, text, path in zip("xy", recorded, paths, strict=True):
        described = {"session/data": {0: f"    validation_text: {text}\n"}} if text else {}
        folder = write_run(name, texts=described, config={"data": {"path": path}})
        records.append(read_record(folder))
    found = Seen(comparison(records))
    assert sum(attrs.get("class") == "lowest" for _, attrs in found.elements) == marked
    assert ("validated on different texts" in found.text) == (not marked)
    assert "different tokenizers" not in found.text


SOME = {"block_size": 64, "validation_windows": 4, "all_validation_windows": 9}
ALL = SOME | {"validation_windows": 9}
FEWER = SOME | {"validation_windows": 7, "all_validation_windows": 7}
SOME_SET, ALL_SET = ({"val_windows": most, "block_size": 64} for most in (4, None))


@pytest.mark.parametrize(
    ("windows", "settings", "vocab_sizes", "losses", "bits"),
    [
        ((SOME, SOME), ({}, {}), (300, 300), True, True),
        ((SOME, ALL), ({}, {}), (300, 300), False, False),
        ((ALL, ALL | {"block_size": 128}), ({}, {}), (300, 300), False, False),
        ((SOME, SOME), ({}, {}), (300, 400), False, False),
        ((ALL, FEWER), ({}, {}), (300, 400), False, True),
        (({}, {}), (SOME_SET, ALL_SET), (300, 300), False, False),
        (({}, {}), (SOME_SET, SOME_SET), (300, 300), True, True),
        (({"validation_windows": 3}, ALL), (SOME_SET, {}), (300, 300), True, True),
    ],
)
def test_no_run_wins_that_was_validated_on_other_windows(
    write_run: WriteRun,
    windows: tuple[dict[str, int], dict[str, int]],
    settings: tuple[dict[str, int | None], dict[str, int | None]],
    vocab_sizes: tuple[int, int],
    losses: bool,
    bits: bool,
) -> None:
    """Nor one with another tokenizer, if some windows were read; older runs by their settings."""
    records = []
    for name, recorded, chosen, size in zip("xy", windows, settings, vocab_sizes, strict=True):
        lines = "".join(f"    {key}: {value}\n" for key, value in recorded.items())
        described = {"session/data": {0: f"    validation_text: f00d\n{lines}"}}
        config = {"data": {"path": "a.txt", "vocab_size": size, **chosen}}
        records.append(read_record(write_run(name, texts=described, config=config)))
    found = Seen(comparison(records))
    marked = sum(attrs.get("class") == "lowest" for _, attrs in found.elements)
    assert marked == 2 * losses + 2 * bits  # of two equal runs
    assert ("validated on different windows" in found.text) == (not bits)


@pytest.fixture
def runs(write_run: WriteRun) -> list[Path]:
    plt.switch_backend("agg")
    overfits = {"diagnosis/overfitting": {300: "step 300: overfitting. So"}}
    return [write_run("one", texts=overfits), write_run("two")]


def test_plot_runs_draws_curves_the_best_step_and_marks(runs: list[Path]) -> None:
    try:
        loss, perplexity, rate, gap = plot_runs(runs[0])
        labels = [line.get_label() for line in loss.lines]
        assert labels == [
            "train_loss",
            "val_loss",
            "best 2.1718, step 400",
            "overfitting, step 300",
        ]
        assert list(loss.lines[1].get_xdata()) == [0, 100, 200, 300, 400]
        assert perplexity.get_yscale() == "log"
        assert len(rate.lines) == 1
        assert len(gap.lines) == 0
        (bpb,) = plot_runs(runs, "bpb", axis="tokens")
        assert [line.get_label() for line in bpb.lines] == ["one/version_0", "two/version_0"]
        assert bpb.lines[0].get_xdata()[-1] == 512 * 400
    finally:
        plt.close("all")


def test_plot_runs_names_what_is_wrong(runs: list[Path]) -> None:
    for arguments, message in (
        ((runs, ["los"]), "charts=los is not one of loss, "),
        ((runs, "loss", "time"), "axis=time is not one of step, tokens, minutes"),
        (([],), "at least one run"),
        (("yox",), "run_name=yox"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_runs(*arguments)
