"""A run continues although its text was moved or changed, and what else a resume finds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from azllm_lightning.cli.composition import composed_mapping
from azllm_lightning.config.verbs import EvaluateConfig
from azllm_lightning.data.shards import Manifest
from azllm_lightning.evaluate import evaluate
from azllm_lightning.formats.load import name_of, read_checkpoint, tokenizer_of
from azllm_lightning.runs.checkpoint_files import step_files

Train = Callable[..., Path]


def write_text(name: str, word: str = "Nazir") -> str:
    lines = (f"{i}. {word} müqaviləni imzaladı və {i * 7919 % 1000} getdi." for i in range(900))
    Path(name).write_text("\n\n".join(lines), encoding="utf-8")
    return name


@pytest.fixture
def own_text(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the text a.txt, with a cache of its own."""
    monkeypatch.setenv("AZLLM_DATA_DIR", str(Path("cache").absolute()))
    return train_tiny("data=text", f"data.path={write_text('a.txt')}")


@pytest.mark.parametrize(
    "change",
    ["moved", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("changed", "touched"))],
)
def test_a_run_continues_from_its_shards(
    change: str, own_text: Path, train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    if change == "moved":
        shutil.move("a.txt", "elsewhere.txt")
    elif change == "changed":
        write_text("a.txt", "Həkim")
    else:
        os.utime("a.txt", ns=(1, 1))
    capsys.readouterr()
    resumed = train_tiny("ckpt_path=last", "trainer.max_steps=9")
    told = " ".join(capsys.readouterr().err.split())
    assert ("goes on with the old text" in told) == (change == "changed")
    assert "delete" not in told
    assert step_files(resumed / "checkpoints")[0][0] == 9
    assert len(list(Path("cache").glob("text-*"))) == 1
    found = evaluate(EvaluateConfig.from_mapping(composed_mapping("evaluate")))
    assert found["all"]["documents"] > 0
    # the path of the text stays in its settings, not that of the cache
    again = train_tiny("ckpt_path=last", "trainer.max_steps=10")
    assert "dir: null" in (again / ".hydra" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.thorough
def test_another_text_that_is_typed_is_not_replaced_by_the_old_shards(
    own_text: Path, train_tiny: Train
) -> None:
    other = write_text("b.txt", "Həkim")
    typed = ["ckpt_path=last", "trainer.max_steps=9"]
    with pytest.raises(ValueError, match=r"different data \(data\.path=a\.txt\).*Omit data\.path "):
        train_tiny(*typed, f"data.path={other}")
    assert len(list(Path("cache").glob("text-*"))) == 1  # nothing was prepared
    shutil.rmtree("cache")
    with pytest.raises(ValueError, match=r"different data \(fingerprint.*Omit data\.path "):
        train_tiny(*typed, f"data.path={other}")
    Path("here").mkdir()
    train_tiny(*typed, f"data.path={Path('here', '..', 'a.txt')}")  # the same place


@pytest.mark.thorough
def test_a_new_run_is_told_of_skipped_files_and_a_resume_is_not(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AZLLM_DATA_DIR", str(Path("cache").absolute()))
    Path("text").mkdir()
    write_text("text/a.txt")
    Path("text", "b.pdf").write_bytes(b"%PDF-1.4")
    typed = ["data=text", "data.path=text", "trainer.max_steps=1"]
    for _ in range(2):
        train_tiny(*typed)
        assert capsys.readouterr().err.count("1 file; skipped: .pdf 1 (b.pdf)") == 1
    train_tiny("ckpt_path=last", "trainer.max_steps=2")
    assert "skipped" not in capsys.readouterr().err


def test_a_run_with_a_folder_of_its_own_is_not_told_to_leave_it(train_tiny: Train) -> None:
    """Neither another data.dir nor none would have its text."""
    train_tiny("data=text", f"data.path={write_text('a.txt')}", "data.dir=p", "trainer.max_steps=1")
    typed = ["ckpt_path=last", "trainer.max_steps=2"]
    for other in (f"data.path={write_text('b.txt', 'Həkim')}", "data.val_fraction=0.2"):
        key = other.partition("=")[0]
        with pytest.raises(ValueError, match=f"still in p. Omit {key} to go on with") as refusal:
            train_tiny(*typed, other)
        assert "data.dir" not in str(refusal.value)
    Path("a.txt").rename("c.txt")
    train_tiny(*typed, "data.path=c.txt")


@pytest.mark.thorough
def test_text_that_has_moved_is_compared_with_the_one_before(
    own_text: Path, train_tiny: Train
) -> None:
    typed = ["ckpt_path=last", "trainer.max_steps=9"]
    Path("a.txt").rename("c.txt")
    with pytest.raises(ValueError, match=r"different data \(fingerprint.*Omit data\.path "):
        train_tiny(*typed, f"data.path={write_text('b.txt', 'Həkim')}")
    train_tiny(*typed, "data.path=c.txt")


@pytest.mark.parametrize("key", ["init_from", "teachers"])
def test_models_of_other_text_are_refused_before_this_one_is_prepared(
    key: str, own_text: Path, train_tiny: Train
) -> None:
    typed = ["run_name=b", "data=text", f"data.path={write_text('b.txt', 'Həkim')}"]
    typed += [f"{key}={own_text}", "trainer.max_steps=1"]
    with pytest.raises(ValueError, match=f"^{key}=.*another tokenizer than this text") as told:
        train_tiny(*typed)
    assert len(list(Path("cache").glob("text-*"))) == 1
    size = f"data.vocab_size={tokenizer_of(own_text).vocab_size}"
    train_tiny(*typed, str(told.value).rpartition(" ")[2], size)


def test_without_text_and_shards_the_message_says_what_to_give(
    own_text: Path, train_tiny: Train
) -> None:
    Path("a.txt").unlink()
    shutil.rmtree("cache")
    with pytest.raises(ValueError, match=r"a\.txt: no such file.*the cache either.*data\.dir="):
        train_tiny("ckpt_path=last", "trainer.max_steps=9")


def test_edits_of_config_yaml_are_reported(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_tiny("trainer.max_steps=2")
    file = folder / ".hydra" / "config.yaml"
    capsys.readouterr()
    train_tiny("ckpt_path=last", "trainer.max_steps=3", "schedule.total_steps=3")
    assert "config.yaml" not in capsys.readouterr().err
    edited = file.read_text(encoding="utf-8").replace("dropout: 0.0", "dropout: 0.25")
    # What is typed now is in effect, whatever another session wrote there.
    edited = edited.replace("max_steps: 3", "max_steps: 4").replace(
        "total_steps: 3", "total_steps: 9"
    )
    file.write_text(edited, encoding="utf-8")
    train_tiny("ckpt_path=last", "trainer.max_steps=4", "schedule.total_steps=4")
    warning = " ".join(capsys.readouterr().err.split())
    assert f"{file} differs from the newest" in warning
    assert "reads only the checkpoint: model.dropout=0.25 (in the checkpoint: 0.0) wi" in warning
    file.write_text("a: [", encoding="utf-8")
    train_tiny("ckpt_path=last", "trainer.max_steps=5", "schedule.total_steps=5")
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.thorough
def test_weights_of_another_tokenizer_of_the_same_size_are_refused(train_tiny: Train) -> None:
    first = train_tiny("trainer.max_steps=1")
    other = ["run_name=other", "data.tales_seed=5", "trainer.max_steps=1", f"init_from={first}"]
    with pytest.raises(ValueError, match=r"(another|different) tokenizer") as refusal:
        train_tiny(*other)
    assert f"data.tokenizer={first}" in str(refusal.value)
    assert not Path("lightning_logs/other").exists()
    resumed = ["run_name=other", "ckpt_path=last", "trainer.max_steps=2", "schedule.total_steps=2"]
    for typed in ([*other, f"data.tokenizer={first}"], resumed):
        _, newest = step_files(train_tiny(*typed) / "checkpoints")[0]
        # for the model card; a resume has no init_from
        assert read_checkpoint(newest)["azllm"]["started_from"] == name_of(first)


@pytest.mark.thorough
def test_a_run_keeps_the_text_that_it_is_validated_on(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_DATA_DIR", str(Path("cache").absolute()))
    write_text("a.txt")
    chosen = ["data=text", "data.path=a.txt", f"data.val_path={write_text('v.txt', 'Həkim')}"]
    chosen += ["trainer.max_steps=2"]
    folder = train_tiny(*chosen)
    (own,) = Path("cache").glob("text-*")
    write_text("v.txt", "Ayı")
    train_tiny(*chosen, "run_name=other")
    (other,) = set(Path("cache").glob("text-*")) - {own}
    shutil.copytree(other, "cache/text-0")  # which comes before it
    resumed = train_tiny("ckpt_path=last", "run_name=tiny", "trainer.max_steps=3")
    assert resumed == folder
    state = read_checkpoint(step_files(folder / "checkpoints")[0][1])["TokenDataModule"]
    assert state["validation"] == Manifest.read(own).validation
    found = evaluate(EvaluateConfig.from_mapping(composed_mapping("evaluate", ["run_name=tiny"])))
    assert found["all"]["documents"] == Manifest.read(own).splits["val"].documents
    shutil.rmtree(own)
    with pytest.raises(ValueError, match=r"was validated on other text than that of .*data\.val_"):
        train_tiny("ckpt_path=last", "run_name=tiny", "trainer.max_steps=4")
