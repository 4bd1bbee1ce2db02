from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.compose import compose
from azllm_lightning.evaluate import evaluate
from azllm_lightning.inference.text_scores import prepared_folder_of, text_report

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


@pytest.mark.parametrize(
    ("data", "typed"),
    [
        ("Дом стоял на окраине города, и в нём жили старые люди.".encode("koi8_r"), ()),
        ("Nənə nağıl danışır.".encode() + b"\xff", ("data.on_bad_utf8=refuse",)),
    ],
    ids=["encoding", "on_bad_utf8"],
)
def test_a_text_is_read_with_the_setting_that_its_error_names(
    tiny_run: Path, data: bytes, typed: tuple[str, ...]
) -> None:
    Path("metn.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"data\.\w+=\w+") as error:
        run("data.path=metn.txt", *typed)
    (advice,) = re.findall(r"data\.\w+=\w+", str(error.value))
    assert run("data.path=metn.txt", advice)["all"]["documents"] == 1


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


def save_peer(folder: str, tokenizer: Path, start: int | None) -> None:
    """A small untrained model of transformers with 32 positions, and the start token `start`."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    size = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=start, eos_token_id=start))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)


def test_a_model_of_transformers_without_a_start_token(
    tiny_run: Path, own_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_peer("peer", tiny_run / "tokenizer.json", None)
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


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A couple of each phenomenon, a few pairs of Turkish interference, four short samples."""
    from azllm_lightning.azerbaijani.pairs import minimal_pairs, turkish_pairs
    from azllm_lightning.inference import free_samples, pair_scores

    monkeypatch.setattr(free_samples, "NUM_SAMPLES", 4)
    monkeypatch.setattr(free_samples, "MAX_NEW_TOKENS", 24)

    own = tuple(pair for i, pair in enumerate(minimal_pairs()) if i % 200 < 2)
    monkeypatch.setattr(pair_scores, "minimal_pairs", lambda: own)
    monkeypatch.setattr(pair_scores, "turkish_pairs", lambda: turkish_pairs()[::100])


@pytest.mark.usefixtures("fewer")
def test_pairs(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("pairs=true")
    assert json.loads((tiny_run / "pairs.json").read_text(encoding="utf-8")) == found
    assert not (tiny_run / "evaluation.json").exists()
    shares = [row["accuracy"] for row in found["phenomena"].values()]
    assert found["all"]["accuracy"] == pytest.approx(sum(shares) / len(shares))
    for row in found["phenomena"].values():
        assert 0 <= row["low"] <= row["accuracy"] + 1e-9
        assert row["accuracy"] - 1e-9 <= row["high"] <= 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[len(shares) + 3].split()[:2] == ["all", f"{found['all']['accuracy']:.0%}"]
    turkish = run("pairs=turkish")
    assert set(turkish["phenomena"]) == {
        f"turkish_{kind}" for kind in ("words", "spelling", "suffixes")
    }
    assert (tiny_run / "pairs-turkish.json").is_file()


def test_pairs_of_others(tiny_run: Path) -> None:
    Path("cütlər.tsv").write_text(
        "sen\twrong_sen\tphenomenon\nMən gəldim.\tMən gəldin.\tşəxs\nO gedir.\tO gedirəm.\tşəxs\n",
        encoding="utf-8",
    )
    found = run("pairs=cütlər.tsv")
    assert found["phenomena"].keys() == {"şəxs"}
    assert found["all"]["pairs"] == 2
    assert json.loads((tiny_run / "pairs-cütlər.json").read_text(encoding="utf-8")) == found


def test_each_model_of_transformers_has_files_of_its_own(tiny_run: Path, own_text: str) -> None:
    Path("cütlər.tsv").write_text("right\twrong\nMən gəldim.\tMən gəldin.\n", encoding="utf-8")
    found = {}
    for folder in ("a", "b", "a"):
        save_peer(folder, tiny_run / "tokenizer.json", 0)
        for typed in (["pairs=cütlər.tsv"], [f"data.path={own_text}", "data.text_field=mətn"]):
            found[folder, typed[0]] = run(f"hf={folder}", *typed)
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in Path().glob("*.json")]
    assert len(stored) == len(found) == 4
    assert all(results in stored for results in found.values())


def test_second_halves_of_lines(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from azllm_lightning import load
    from azllm_lightning.inference.scoring import gpt_scorer
    from azllm_lightning.inference.second_half import half_scores

    lines = ["Bir gün tülkü meşəyə getdi.", "Nazir müqaviləni imzaladı və evə qayıtdı.", "Ev"]
    Path("flores.txt").write_text("\n".join(lines), encoding="utf-8")
    found = run("second_half=true", "data.path=flores.txt")
    scores = list(half_scores(gpt_scorer(*load(tiny_run)), lines))
    assert found["all"]["bits"] == pytest.approx(sum(score.bits for score in scores) / 3)
    assert found["training_bytes"] > 0
    assert (tiny_run / "second_half-flores.json").is_file()
    assert "Goldfish 10mb" in capsys.readouterr().out
    assert run("second_half=true")["all"]["lines"] > 3  # of its own validation text


@pytest.mark.usefixtures("fewer")
def test_samples_are_compared_with_the_training_text(tiny_run: Path) -> None:
    found = run("samples=true")
    assert found["held_out"]["in_training_text"] > 0.5
    assert 0 <= found["figures"]["known_words"] <= 1
    assert json.loads((tiny_run / "samples.json").read_text(encoding="utf-8")) == found
    assert found["training_text"] == str(prepared_folder_of(tiny_run / "checkpoints" / "best.ckpt"))
    assert run("samples=true") == found


@pytest.mark.usefixtures("fewer")
def test_results_say_whose_they_are_and_replace_their_own(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azllm_lightning.inference import measures

    alone = Path("tək", "model.ckpt")
    alone.parent.mkdir()
    shutil.copyfile(tiny_run / "checkpoints" / "best.ckpt", alone)
    for typed in ("samples=true", "pairs=true", "second_half=true"):
        assert run(f"ckpt_path={alone}", typed) == run(f"ckpt_path={alone}", typed)
    stored = {
        path.name: json.loads(path.read_text(encoding="utf-8"))
        for path in alone.parent.glob("*.json")
    }
    assert stored.keys() == {"samples.json", "pairs.json", "second_half.json"}
    assert {results["model"] for results in stored.values()} == {str(alone)}
    monkeypatch.setattr(measures, "measured", lambda *_: ({"model": {}}, ""))
    with pytest.raises(AssertionError, match="would overwrite"):
        run("samples=true")


def test_text_that_a_run_was_trained_on_is_recognized(
    tiny_run: Path,
    tiny: list[str],
    own_text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from azllm_lightning.data.corpus import documents
    from azllm_lightning.inference import measures

    def damaged(*_: object) -> None:
        raise ValueError("no such text")

    found = [document for document in documents(compose(tiny).data) if document.split == "train"]
    first, second = (found[i].text for i in (0, -1))
    texts = [first, second, "Bunu model heç vaxt oxumayıb.", first]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    Path("oxunmuş.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sizes = [len(text.encode()) for text in texts[:3]]
    share = run("data.path=oxunmuş.jsonl")["trained_share"]
    assert share == pytest.approx(1 - sizes[2] / sum(sizes))
    assert f"{share:.1%} of this text is training text of the model" in capsys.readouterr().out
    fields = ["data.text_field=mətn", "data.source_field=mənbə"]
    assert run(f"data.path={own_text}", *fields)["trained_share"] == 0
    assert run()["trained_share"] is None
    printed = capsys.readouterr().out
    assert "is training text of the model" not in printed
    assert "not known" not in printed
    Path("tək").mkdir()
    shutil.copytree(tiny_run / "checkpoints", Path("tək", "çəkilər"))
    monkeypatch.setattr(measures, "Overlap", damaged)
    share = run("ckpt_path=tək/çəkilər/best.ckpt", "data.path=oxunmuş.jsonl")["trained_share"]
    assert share is None
    assert "whether the model was trained on this text is not known" in capsys.readouterr().out


def test_a_damaged_training_text_does_not_prevent_scoring_another(
    tiny_run: Path, own_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azllm_lightning.inference import trained_on

    def damaged(*_: object) -> None:
        raise ValueError("train_00000.bin differs from its checksum")

    monkeypatch.setattr(trained_on.TokenShards, "open", damaged)
    found = run(f"data.path={own_text}", "data.text_field=mətn", "data.source_field=mənbə")
    assert found["trained_share"] is None
    assert found["all"]["documents"] == 2


@pytest.fixture
def other_text(tiny_run: Path, tiny: list[str]) -> Path:
    """Prepared data that the tiny run has not read."""
    from azllm_lightning.data.pipeline import prepare

    prepare(replace(compose([*tiny, "data.tales_bytes=50000"]).data, dir="başqa"))
    return Path("başqa")


@pytest.mark.usefixtures("fewer")
def test_text_that_a_run_is_scored_on_is_not_what_it_was_trained_on(
    tiny_run: Path, other_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azllm_lightning import load
    from azllm_lightning.data.shards import Manifest
    from azllm_lightning.formats.huggingface import write_hf

    own = prepared_folder_of(tiny_run / "checkpoints" / "best.ckpt")
    size = Manifest.read(own).splits["train"].text_bytes
    other = ["second_half=true", f"data.dir={other_text}"]
    found = run(*other)
    assert found["text"] == f"{other_text}, validation split"
    assert found["training_bytes"] == size
    with pytest.raises(ValueError, match=r"data\.dir=başqa is not the text that .*best\.ckpt was"):
        run("samples=true", f"data.dir={other_text}")
    shutil.copytree(own, "köçürülmüş")
    monkeypatch.setenv("AZLLM_DATA_DIR", str(Path("boş").absolute()))
    assert run(*other)["training_bytes"] is None
    assert run("second_half=true", "data.dir=köçürülmüş")["training_bytes"] == size
    assert run("samples=true", "data.dir=köçürülmüş")["training_text"] == "köçürülmüş"
    assert run("samples=true")["training_text"] is None
    # An exported model does not say what it was trained on.
    Path("hf").mkdir()
    write_hf(*load(tiny_run), Path("hf"))
    assert run("ckpt_path=hf", *other)["training_bytes"] is None
    samples = run("ckpt_path=hf", "samples=true", f"data.dir={other_text}")
    assert samples["training_text"] == str(other_text)
    assert samples["data_fingerprint"] == Manifest.read(other_text).fingerprint
    assert {path.name for path in Path().glob("samples*.json")} == {"samples-başqa.json"}


def test_a_folder_that_has_other_text_now_is_not_what_a_run_was_trained_on(
    train_tiny: TrainTiny, tiny: list[str]
) -> None:
    from azllm_lightning.data.pipeline import prepare

    train_tiny("data.dir=verilənlər")
    assert run("second_half=true")["training_bytes"] > 0
    shutil.rmtree("verilənlər")
    prepare(replace(compose([*tiny, "data.tales_bytes=50000"]).data, dir="verilənlər"))
    assert run("second_half=true")["training_bytes"] is None


@pytest.mark.usefixtures("fewer")
def test_a_suite_on_other_text_names_the_training_text_of_the_run(
    tiny_run: Path, other_text: Path
) -> None:
    from azllm_lightning.data.shards import Manifest

    own = prepared_folder_of(tiny_run / "checkpoints" / "best.ckpt")
    found = run("suite=true", f"data.dir={other_text}")
    assert found["text"]["text"] == f"{other_text}, validation split"
    assert not found["own_split"]
    assert found["training_text"] == found["samples"]["training_text"] == str(own)
    assert found["data_fingerprint"] == Manifest.read(own).fingerprint


@pytest.mark.usefixtures("fewer")
def test_a_model_that_cannot_begin_a_text_has_the_other_measures(
    tiny_run: Path,
    own_text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from azllm_lightning.inference import pair_scores

    own = pair_scores.minimal_pairs()[:2] + pair_scores.minimal_pairs()[-2:]
    monkeypatch.setattr(pair_scores, "minimal_pairs", lambda: own)
    save_peer("peer", tiny_run / "tokenizer.json", None)
    found = run("hf=peer", "suite=true", f"data.path={own_text}", "data.text_field=mətn")
    assert found["samples"] is None
    assert not found["own_split"]
    assert json.loads(Path("suite-öz_mətnim.json").read_text(encoding="utf-8")) == found
    page = Path("suite-öz_mətnim.md").read_text(encoding="utf-8")
    assert f"| {found['text']['all']['val_bpb']:.4f} |" in page
    assert "- no samples: the model has no start token" in page
    assert "\n\nno samples: the model has no start token\n" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"hf=peer has no start token.*choose another measure than samples=true"
    ):
        run("hf=peer", "samples=true")


def test_samples_of_a_model_of_transformers_fill_its_context(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever block_size is: as the message says, it has no effect."""
    from azllm_lightning.inference import free_samples

    monkeypatch.setattr(free_samples, "NUM_SAMPLES", 2)
    save_peer("peer", tiny_run / "tokenizer.json", 0)
    full = run("hf=peer", "samples=true")
    assert full["max_new_tokens"] == 31
    for block_size in (4, 5000):
        typed = compose(["hf=peer", "samples=true", f"block_size={block_size}"], "evaluate")
        (message,) = typed.ignored()
        assert message.startswith("block_size: no effect")
        assert evaluate(typed) == full


@pytest.mark.parametrize("measure", ["samples", "suite"])
def test_a_training_text_that_is_not_there_is_reported_before_the_work(
    measure: str, tiny_run: Path, own_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azllm_lightning.inference import free_samples, text_scores

    def work(*_: object) -> None:
        pytest.fail("the work began")

    folder = text_scores.prepared_folder_of(tiny_run / "checkpoints" / "best.ckpt")
    shutil.copytree(folder, "verilənlər")
    for shard in Path("verilənlər").glob("train_*"):
        shard.unlink()
    monkeypatch.setattr(text_scores, "score_by_source", work)
    monkeypatch.setattr(free_samples, "own_samples", work)
    with pytest.raises((ValueError, OSError), match="train_"):
        run(f"{measure}=true", "data.dir=verilənlər")


@pytest.mark.slow
@pytest.mark.usefixtures("fewer")
def test_a_suite_is_all_of_it_and_a_part_of_the_model_card(tiny_run: Path) -> None:
    from azllm_lightning.config.verbs import ExportConfig
    from azllm_lightning.export import export

    found = run("suite=true")
    assert json.loads((tiny_run / "suite.json").read_text(encoding="utf-8")) == found
    assert found["text"]["all"] == run()["all"]
    assert found["pairs"]["all"] == run("pairs=true")["all"]
    assert found["samples"]["figures"] == run("samples=true")["figures"]
    assert found["second_half"]["all"] == run("second_half=true")["all"]
    assert len(found["data_fingerprint"]) == 32
    assert found["own_split"]
    page = (tiny_run / "suite.md").read_text(encoding="utf-8")
    figures = [f"{found['text']['all']['val_bpb']:.4f}", found["data_fingerprint"], "| causative |"]
    assert all(figure in page for figure in figures)
    assert {line.count("|") for line in page.splitlines() if line.startswith("| bits")} == {5}
    config = compose(["out=ixrac"], "export")
    assert isinstance(config, ExportConfig)
    card = (export(config) / "README.md").read_text(encoding="utf-8")
    section = card[card.index("## Evaluation") : card.index("## Intended use")]
    assert f"| bits per byte | {found['text']['all']['val_bpb']:.4f} |" in section
    (tiny_run / "suite.json").write_text("{}", encoding="utf-8")
    assert "## Evaluation" not in (
        export(compose(["out=ixrac2"], "export")) / "README.md"
    ).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("fewer")
def test_a_suite_of_a_model_of_transformers(tiny_run: Path) -> None:
    from azllm_lightning import load
    from azllm_lightning.formats.huggingface import write_hf

    ours = run("suite=true")
    Path("hf").mkdir()
    write_hf(*load(tiny_run), Path("hf"))
    theirs = run("hf=hf", "suite=true", f"data.dir={ours['training_text']}")
    for measure in ("text", "second_half", "pairs", "turkish"):
        for key in ("val_bpb", "bits", "accuracy"):
            if key in ours[measure]["all"]:
                assert theirs[measure]["all"][key] == pytest.approx(ours[measure]["all"][key])
    assert theirs["samples"]["held_out"]["texts"] == ours["samples"]["held_out"]["texts"]
    assert theirs["data_fingerprint"] == ours["data_fingerprint"]


def test_the_page_of_a_suite_replaces_only_a_page_of_a_suite(tiny_run: Path) -> None:
    from azllm_lightning.config.verbs import EvaluateConfig
    from azllm_lightning.formats.suite_card import PAGE_MARK, is_suite_page
    from azllm_lightning.inference.result_files import result_file

    def place(out: str) -> Path:
        config = compose(["suite=true", f"out={out}"], "evaluate")
        assert isinstance(config, EvaluateConfig)
        return result_file(config, tiny_run / "checkpoints" / "best.ckpt")

    Path("README.md").write_text("# Mənim modelim\n", encoding="utf-8")
    for out in ("README.json", "README.md", "yeni.md"):
        with pytest.raises(
            ValueError, match=r"write its page over .*\.md: choose another name|no results"
        ):
            place(out)
    assert place("yeni.json") == Path("yeni.json")
    assert not is_suite_page(Path("README.md"))
    # An empty one is what a kill left of a page that was not written at once.
    for content in (f"{PAGE_MARK}\n", ""):
        Path("yeni.md").write_text(content, encoding="utf-8")
        assert place("yeni.json") == Path("yeni.json")
    if os.name != "nt":
        os.mkfifo("boru.md")
        with pytest.raises(ValueError, match=r"write its page over boru\.md"):
            place("boru.json")


def test_the_page_of_a_suite_is_written_completely_or_not_at_all(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azllm_lightning.formats.suite_card import PAGE_MARK
    from azllm_lightning.inference import measures
    from azllm_lightning.runs import atomic

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measures, "measured", lambda *_: ({}, ""))
    pages = iter([f"{PAGE_MARK}\nold", f"{PAGE_MARK}\nnew"])
    monkeypatch.setattr(measures, "suite_page", lambda _: next(pages))
    run("suite=true")
    monkeypatch.setattr(atomic, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        run("suite=true")
    assert (tiny_run / "suite.md").read_text(encoding="utf-8") == f"{PAGE_MARK}\nold"


def test_one_measure_at_a_time() -> None:
    for typed, complaint in (
        (["pairs=true", "samples=true"], "pairs, samples are different measures: choose one"),
        (["pairs=true", "data.path=a.txt"], "pairs=true reads no text: omit data.path"),
        (["samples=true", "data.path=a.txt"], "give data.dir, or omit data.path"),
    ):
        with pytest.raises(ValueError, match=complaint):
            compose(typed, "evaluate")


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


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
@pytest.mark.parametrize("kind", ["device file", "pipe", "socket"])
def test_results_replace_no_special_file_and_wait_for_none(
    kind: str, own_text: str, tiny_run: Path
) -> None:
    out = Path("/dev/null") if kind == "device file" else Path("named")
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "socket":
        mode = stat.S_IFSOCK | 0o600
        os.mknod(out, mode)
    before = out.stat()
    with pytest.raises(ValueError, match=rf"{out} \({kind}\): choose a file with out=FILE"):
        run(f"ckpt_path={tiny_run}", f"data.path={own_text}", f"out={out}")
    assert (out.stat().st_mode, out.stat().st_ino) == (before.st_mode, before.st_ino)


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
