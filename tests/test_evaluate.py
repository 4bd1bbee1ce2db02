from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.compose import compose
from azllm_lightning.evaluate import evaluate
from azllm_lightning.inference.text_scores import text_report

pytestmark = pytest.mark.xdist_group("transformers")

TrainTiny = Callable[..., Path]


def run(*overrides: str) -> dict[str, Any]:
    return evaluate(compose(overrides, "evaluate"))


@pytest.fixture
def own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of three documents from two sources; the third repeats the first."""
    monkeypatch.chdir(tmp_path)
    texts = [("Bir gün tülkü meşəyə getdi.", "nağıl"), ("Nazir müqaviləni imzaladı.", "xəbər")]
    lines = [
        json.dumps({"mətn": text, "mənbə": source}, ensure_ascii=False)
        for text, source in [*texts, texts[0]]
    ]
    (tmp_path / "öz mətnim.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "öz mətnim.jsonl"


def test_a_run_is_scored_on_its_own_validation_documents(
    tiny_run: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from azllm_lightning import load
    from azllm_lightning.data.corpus import documents
    from azllm_lightning.inference.scoring import Score, gpt_scorer, score

    found = run()
    data = compose(tiny).data
    texts = [document.text for document in documents(data) if document.split == "val"]
    expected = sum(score(gpt_scorer(*load(tiny_run)), texts, 16), Score()).metrics()
    assert found["all"] == pytest.approx(expected)
    assert found["sources"] == {"tales": pytest.approx(expected)}
    assert (found["block_size"], found["stride"], found["start_token"]) == (32, 16, True)
    assert found["model"] == str(tiny_run / "checkpoints" / "best.ckpt")
    assert json.loads((tiny_run / "evaluation.json").read_text(encoding="utf-8")) == found
    head, tales, everything, *notes = capsys.readouterr().out.splitlines()
    assert head.split() == "source loss ppl bpb tokens/word bytes/token docs bytes".split()
    assert tales.split()[1:] == everything.split()[1:]
    assert everything.split()[:4] == [
        "all",
        f"{expected['val_loss']:.4f}",
        f"{expected['val_ppl']:.2f}",
        f"{expected['val_bpb']:.4f}",
    ]
    num_bytes = sum(len(text.encode()) for text in texts)
    assert everything.split()[-2:] == [f"{len(texts):,}", f"{num_bytes:,}"]
    assert notes[0] == "windows of 32 tokens, stride 16, fp32"


def test_other_text_by_source(tiny_run: Path, own_text: str) -> None:
    fields = ["data.text_field=mətn", "data.source_field=mənbə"]
    found = run(f"data.path={own_text}", *fields, "stride=4", "out=nəticə.json")
    sizes = {
        "nağıl": len("Bir gün tülkü meşəyə getdi.".encode()),
        "xəbər": len("Nazir müqaviləni imzaladı.".encode()),
    }
    assert {source: row["bytes"] for source, row in found["sources"].items()} == sizes
    assert (found["all"]["documents"], found["all"]["bytes"], found["stride"]) == (
        2,
        sum(sizes.values()),
        4,
    )
    nll = {source: row["val_bpb"] * row["bytes"] for source, row in found["sources"].items()}
    assert found["all"]["val_bpb"] == pytest.approx(sum(nll.values()) / sum(sizes.values()))
    assert json.loads(Path("nəticə.json").read_text(encoding="utf-8")) == found
    assert not list(Path("lightning_logs").rglob("evaluation.json"))


def test_the_checkpoint_and_the_window_that_are_named(tiny_run: Path, own_text: str) -> None:
    from azllm_lightning import load
    from azllm_lightning.formats.huggingface import write_hf

    first = Path("lightning_logs", "birinci", "version_0")
    shutil.copytree(tiny_run, first)
    text = [f"data.path={own_text}", "data.text_field=mətn"]
    named = run("run_name=birinci", "ckpt_path=last", *text)
    assert named["model"] == str(first / "checkpoints" / "step_00000008.ckpt")
    assert (first / "evaluation-öz_mətnim.json").is_file()
    alone = Path("tək") / "model.ckpt"
    alone.parent.mkdir()
    shutil.copyfile(named["model"], alone)
    moved = run(f"ckpt_path={alone}", *text)
    assert moved["all"] == named["all"]
    assert (alone.parent / "evaluation-öz_mətnim.json").is_file()
    model, tokenizer = load(alone)
    Path("hf").mkdir()
    write_hf(model, tokenizer, Path("hf"))
    for exported in (run("ckpt_path=hf", *text), run("hf=hf", *text)):
        assert exported["all"] == pytest.approx(named["all"])
    with pytest.raises(
        ValueError, match="hf does not record what text it was trained on: give data"
    ):
        run("ckpt_path=hf")
    shorter = run(f"ckpt_path={alone}", *text, "block_size=4")
    assert (shorter["block_size"], shorter["stride"]) == (4, 2)
    assert shorter["all"]["val_loss"] != moved["all"]["val_loss"]


def test_without_its_data_a_run_says_what_to_do(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.config.strict import from_mapping
    from azllm_lightning.data.pipeline import prepared_folder

    found = run()
    where = Path(found["text"].removesuffix(", validation split"))
    monkeypatch.setenv("AZLLM_DATA_DIR", str(Path("başqa").absolute()))
    with pytest.raises(
        ValueError, match=r"is no longer in .*başqa.*: give data.dir=FOLDER .* or data.path=TEXT"
    ):
        run()
    assert not Path("başqa").exists()
    assert run(f"data.dir={where}")["all"] == found["all"]
    with pytest.raises(ValueError, match="yoxdur: no manifest"):
        run("data.dir=yoxdur")
    assert prepared_folder(from_mapping(DataConfig, {"dir": "yoxdur"}, "data")) == Path("yoxdur")


def test_a_run_whose_text_was_moved_says_what_to_do(
    train_tiny: TrainTiny, tiny: list[str], own_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_DATA_DIR", str(Path("cache").absolute()))
    text = Path("mətn.txt")
    text.write_text(
        "\n\n".join(f"{i}. Nazir müqaviləni imzaladı və getdi." for i in range(400)),
        encoding="utf-8",
    )
    train_tiny("data=text", f"data.path={text}")
    text.unlink()
    run()  # its validation split is still there
    shutil.rmtree("cache")
    with pytest.raises(ValueError, match=r"was not found \(.*mətn\.txt.*\): give data.dir=FOLDER"):
        run()


def test_a_model_of_transformers_without_a_start_token(
    tiny_run: Path, own_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    size = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=None)).save_pretrained(
        "peer"
    )
    PreTrainedTokenizerFast(tokenizer_file=str(tiny_run / "tokenizer.json")).save_pretrained("peer")
    ours, peers = run(), run("hf=peer")
    assert peers["text"] == ours["text"]
    assert (peers["model"], peers["start_token"]) == ("peer", False)
    assert peers["all"]["documents"] == ours["all"]["documents"]
    assert peers["all"]["documents"] == peers["all"]["tokens"] - peers["all"]["scored_tokens"]
    assert peers["all"]["tokens"] == ours["all"]["tokens"]
    assert 0 < ours["all"]["bytes"] - peers["all"]["scored_bytes"] < 4 * ours["all"]["documents"]
    assert abs(peers["all"]["val_loss"] - math.log(300)) < 0.5
    assert json.loads(Path("evaluation.json").read_text(encoding="utf-8")) == peers
    documents = peers["all"]["documents"]
    note = f"no start token: the first token of each document is not scored ({documents} tokens, "
    assert capsys.readouterr().out.count(note) == 1
    shutil.rmtree("lightning_logs")
    assert run("hf=peer", f"data.path={own_text}", "data.text_field=mətn")["all"]["documents"] == 2
    with pytest.raises(ValueError, match="no run with a checkpoint"):
        run("hf=peer")


def test_what_a_tokenizer_does_not_know_is_reported(
    own_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "<s>": 1, "Bir": 2, "gün": 3, "Nazir": 4, ".": 5}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>"
    ).save_pretrained("peer")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=6, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    ).save_pretrained("peer")
    found = run("hf=peer", f"data.path={own_text}", "data.text_field=mətn")
    assert (found["start_token"], found["all"]["tokens"], found["all"]["unknown_tokens"]) == (
        True,
        10,
        5,
    )
    assert (
        "5 unknown tokens, for text that the tokenizer cannot represent" in capsys.readouterr().out
    )


def test_pairs(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("pairs=true")
    assert json.loads((tiny_run / "pairs.json").read_text(encoding="utf-8")) == found
    assert not (tiny_run / "evaluation.json").exists()
    shares = [row["accuracy"] for row in found["phenomena"].values()]
    assert found["all"]["accuracy"] == pytest.approx(sum(shares) / len(shares))
    for row in found["phenomena"].values():
        assert 0 <= row["low"] <= row["accuracy"] + 1e-9
        assert row["accuracy"] - 1e-9 <= row["high"] <= 1
        assert row["high"] - row["low"] < 0.2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(shares) + 2
    assert lines[-2].split()[:2] == ["all", f"{found['all']['accuracy']:.1%}"]


def test_wrong_settings_are_refused(tiny_run: Path, own_text: str) -> None:
    config = compose([], "evaluate")
    complaints = [
        ({"stride": 0}, "stride=0 is out of range"),
        ({"stride": 40}, "stride=40 is out of range: it must be from 1 to block_size=32"),
        ({"block_size": 33}, "block_size=33 is out of range"),
        ({"ckpt_path": "yoxdur.ckpt"}, "ckpt_path=yoxdur.ckpt: no such file"),
        ({"run_name": "yoxdur"}, "no run with a checkpoint in .*yoxdur"),
        ({"hf": "yoxdur"}, r"hf=yoxdur: no config\.json there"),
        (
            {"out": "yoxdur/a.json"},
            r"written to .*a\.json \(name a file in an existing folder\).*out=FILE",
        ),
        ({"data": replace(config.data, path="yoxdur.txt")}, "yoxdur.txt"),
        ({"data": replace(config.data, path=own_text)}, "field 'text'"),
    ]
    for changes, complaint in complaints:
        with pytest.raises(ValueError, match=complaint):
            evaluate(replace(config, **changes))


def test_each_text_has_a_file_of_its_own(
    tiny_run: Path, own_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ["data.text_field=mətn"]
    other = tmp_path / "başqa" / own_text
    other.parent.mkdir()
    other.write_text((tmp_path / own_text).read_text(encoding="utf-8"), encoding="utf-8")
    versioned = tmp_path / "kitab.v2.jsonl"
    versioned.write_text((tmp_path / own_text).read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):
        for path in (own_text, f"başqa/{own_text}", versioned.name):
            run(f"data.path={path}", *fields)
    names = sorted(path.name for path in tiny_run.glob("evaluation*.json"))
    assert len(names) == 3
    assert {"evaluation-kitab_v2.json", "evaluation-öz_mətnim.json"} < set(names)
    texts = {
        json.loads(path.read_text(encoding="utf-8"))["text"]
        for path in tiny_run.glob("evaluation*.json")
    }
    assert texts == {own_text, f"başqa/{own_text}", versioned.name}
    captured = capsys.readouterr()
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "training's val_loss differs" in captured.out


@pytest.mark.parametrize("lang", ["en", "az"])
def test_tables_of_large_texts_fit_80_columns(lang: str) -> None:
    use_language(lang)
    metrics = {
        "val_loss": 11.2345,
        "val_ppl": 75_000.0,
        "val_bpb": 12.3456,
        "tokens_per_word": 12.34,
        "bytes_per_token": 12.34,
        "documents": 1_234_567,
        "bytes": 12_345_678_901,
        "tokens": 9,
        "scored_tokens": 8,
        "scored_bytes": 7,
        "unknown_tokens": 3,
    }
    results = {"sources": {"m" * 60: metrics}, "all": metrics, "block_size": 1024, "stride": 512}
    scorer: Any = SimpleNamespace(start=None)
    lines = text_report(scorer, results).splitlines()
    assert max(map(len, lines)) <= 80
