from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.callbacks.words import Words
from azllm_lightning.cli import entrance as cli
from azllm_lightning.cli.entrance import compose
from azllm_lightning.evaluate import evaluate
from azllm_lightning.export import export
from azllm_lightning.generate import BETWEEN_SAMPLES, GenerateConfig, generate
from azllm_lightning.prepare import _report, prepare

TrainTiny = Callable[..., Path]


def settings(*overrides: str) -> dict[str, Any]:
    return compose(["max_new_tokens=20", "seed=3", *overrides], "generate")


def data_overrides(tiny: list[str]) -> list[str]:
    return [text for text in tiny if text.startswith("data.")]


def test_one_sample_is_streamed_and_is_what_sample_gives(
    train_tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained byte-level model draws halves of letters: none of them may reach the terminal on its own."""
    from azllm_lightning import load, sample

    model, tokenizer = load(train_tiny())
    capsys.readouterr()
    pieces: list[str] = []
    monkeypatch.setattr(
        "builtins.print", lambda *text, end="\n", **_: pieces.append("".join(text) + end)
    )
    generate(settings("prompt=Gəl, dedi, 'şəhərə' gedək", "max_new_tokens=60"))
    texts = sample(model, tokenizer, "Gəl, dedi, 'şəhərə' gedək", 60, seed=3)
    assert "".join(pieces[1:]) == texts[0] + "\n"
    assert pieces[1] == "Gəl, dedi, 'şəhərə' gedək"
    assert len(pieces) > 20
    held = [piece for piece in pieces[1:-2] if piece.endswith("\ufffd")]
    assert not held


def test_several_samples_stand_apart(
    train_tiny: TrainTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    from azllm_lightning import load, sample

    model, tokenizer = load(train_tiny())
    capsys.readouterr()
    generate(settings("prompt=Bakı", "num_samples=3", "top_k=20", "temperature=0.5"))
    texts = sample(model, tokenizer, "Bakı", 20, 0.5, 20, seed=3, num_samples=3)
    assert capsys.readouterr().out == BETWEEN_SAMPLES.join(texts) + "\n"


def test_a_text_ends_before_a_stop_string(
    train_tiny: TrainTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()

    def written(*overrides: str) -> str:
        capsys.readouterr()
        generate(settings("prompt=Bakı", "temperature=1.2", "max_new_tokens=60", *overrides))
        return capsys.readouterr().out.removesuffix("\n")

    whole = written()
    new = whole.removeprefix("Bakı")
    stop = next(
        letter for letter in new[5:] if letter.isalpha()
    )  # half a letter or a space would not come back whole
    assert written(f"stop=[yoxdur,{stop}]") == "Bakı" + new[: new.index(stop)]
    assert GenerateConfig("", "best", None, "lightning_logs", 1, ["a", r"\n\n"]).stops == [
        "a",
        "\n\n",
    ]  # as a shell passes it
    with pytest.raises(ValueError, match="stop has an empty text"):
        generate(settings("prompt=Bakı", "stop=''"))


def test_at_a_terminal_one_prompt_follows_the_other(
    train_tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()
    typed = iter(["Bir gün", "Bakı küləyi " * 20, "", "artıq"])
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or next(typed))
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    generate(settings("prompt=Bakı"))
    assert asked == []
    capsys.readouterr()
    generate(settings())
    told = capsys.readouterr()
    assert len(asked) == 3
    assert told.out.startswith("Bir gün")
    assert "\nBakı küləyi Bakı" in told.out
    assert "the model sees 32" in told.err

    def gone(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", gone)
    generate(settings())
    monkeypatch.setattr(sys, "stdin", type("Pipe", (), {"isatty": lambda self: False})())
    generate(settings())


def test_the_checkpoint_that_is_named(
    train_tiny: TrainTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = train_tiny("run_name=birinci"), train_tiny("run_name=ikinci")
    step = "step_00000004.ckpt"

    def taken(*overrides: str) -> str:
        capsys.readouterr()
        generate(settings(*overrides))
        return capsys.readouterr().err.strip()

    assert taken() == f"from {second / 'checkpoints' / 'best.ckpt'}"
    assert taken("run_name=birinci") == f"from {first / 'checkpoints' / 'best.ckpt'}"
    assert (
        taken("run_name=birinci", "ckpt_path=last")
        == f"from {first / 'checkpoints' / 'step_00000008.ckpt'}"
    )
    assert (
        taken(f"ckpt_path={first / 'checkpoints' / step}") == f"from {first / 'checkpoints' / step}"
    )
    (
        second / "checkpoints" / "best.ckpt"
    ).unlink()  # a run that was stopped before its first validation has none
    assert taken() == f"from {second / 'checkpoints' / 'step_00000008.ckpt'}"


def test_a_prompt_longer_than_the_context_is_told(
    train_tiny: TrainTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()
    capsys.readouterr()
    generate(settings("prompt=" + "Bakı küləyi " * 20))
    told = capsys.readouterr().err
    assert "the model sees 32" in told
    generate(settings("prompt=Bakı küləyi"))
    assert "the model sees" not in capsys.readouterr().err


def test_wrong_settings_are_told(train_tiny: TrainTiny) -> None:
    train_tiny()
    complaints = {
        "temperature=-1": "temperature=-1.0 is",
        "temperature=isti": "temperature='isti' is not a number",
        "top_k=0": "top_k=0 is",
        "top_p=1.5": "top_p=1.5 is",
        "min_p=2": "min_p=2.0 is",
        "repetition_penalty=0": "repetition_penalty=0.0 is",
        "+top=1": "unknown setting top; did you mean top_k?|did you mean top_p?",
        "max_new_tokens=0": "max_new_tokens=0 is",
        "num_samples=0": "num_samples=0 is",
        "seed=-1": "seed=-1 is",
        "ckpt_path=yoxdur.ckpt": "ckpt_path=yoxdur.ckpt: no such file",
        "run_name=yoxdur": "no run with a checkpoint under .*yoxdur",
    }
    for override, complaint in complaints.items():
        with pytest.raises(ValueError, match=complaint):
            generate(settings(override))


def test_ctrl_c_ends_a_text_without_a_traceback(
    train_tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from azllm_lightning.model import gpt

    train_tiny()
    capsys.readouterr()
    calls = iter(range(1000))
    hidden = gpt.GPT.hidden

    def interrupted(*args: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return hidden(*args)

    monkeypatch.setattr(gpt.GPT, "hidden", interrupted)
    try:
        generate(settings("prompt=Bakı"))
    except KeyboardInterrupt:  # let through, it would end pytest and not only this test
        pytest.fail("the text was not ended")
    out = capsys.readouterr().out
    assert out.startswith("Bakı")
    assert out.endswith("\n")


def test_generate_needs_no_lightning_and_takes_what_a_person_types(train_tiny: TrainTiny) -> None:
    """Importing Lightning costs seconds before the first word; the prompt has all that Hydra's grammar refuses."""
    train_tiny()
    prompt = "Gəl, “Kür” çayına (gedək): nə? {a=b} 'c'"
    script = "import sys; from azllm_lightning.generate import main; main(); print('lightning' in sys.modules)"
    command = [sys.executable, "-c", script, f"prompt={prompt}", "max_new_tokens=5", "seed=1"]
    console = {**os.environ, "PYTHONIOENCODING": "cp1252"}  # as on Windows
    done = subprocess.run(command, capture_output=True, check=True, env=console)
    out = done.stdout.decode("utf-8")
    assert out.startswith(prompt)
    assert out.rstrip().endswith("False")


def test_prepare_says_what_there_is(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from azllm_lightning.data.shards import Manifest

    folder = prepare(compose(data_overrides(tiny), "prepare"), data_overrides(tiny))
    train = Manifest.read(folder).splits["train"]
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["folder"] == str(folder)
    assert lines["vocabulary"] == "300 tokens"
    assert lines["train"].startswith(
        f"{train.documents:,} documents, 0.1 MB, {train.tokens:,} tokens, "
    )
    assert lines["train"].endswith(f" {train.text_bytes / train.tokens:.2f} bytes a token")
    assert lines["sources"] == "tales 100.0 %"
    assert lines["next"] == cli.command("train", data_overrides(tiny))


def test_a_command_to_paste_is_as_a_person_types_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["data=text", r"data.path=C:\Mənim mətnim", "run_name=şah", "data.block_size=32"]
    shown = cli.command("prepare", cli.quote_overrides(typed))
    assert (
        shown
        == r"python -m azllm_lightning.prepare data=text 'data.path=C:\Mənim mətnim' 'run_name=şah' data.block_size=32"
    )
    # As after `make train`, where no environment is active and plain python would be another.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert cli.command("train", []) == f"{Path('.venv/bin/python')} -m azllm_lightning.train"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert cli.command("train", []) == "python -m azllm_lightning.train"


def test_a_command_to_paste_means_the_same() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab ə'\"\\,=${}[]", k=draw.randint(0, 8)))
        quoted = cli.quote_overrides([f"{draw.choice(['prompt', 'data.path', 'run_name'])}={text}"])
        assert cli.quote_overrides(shlex.split(cli.command("generate", quoted))[3:]) == quoted


def test_training_takes_what_prepare_made(tiny: list[str]) -> None:
    from azllm_lightning.config.data import DataConfig
    from azllm_lightning.config.strict import from_mapping
    from azllm_lightning.data.datamodule import TokenDataModule

    folder = prepare(compose(data_overrides(tiny), "prepare"))
    datamodule = TokenDataModule(from_mapping(DataConfig, compose(tiny)["data"], "data"), 0)
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.folder == folder


def test_every_verb_speaks_azerbaijani(
    train_tiny: TrainTiny, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny()
    capsys.readouterr()
    generate(settings("prompt=" + "Bir gün " * 40, "lang=az"))
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"model: .*best.ckpt\nyazdığınızda \d+ token var, .* yalnız sonunu oxuyur\n", told
    )
    export(compose(["out=model", "format=pt", "lang=az"], "export"))
    assert capsys.readouterr().out.startswith("model: ")
    evaluate(compose(["lang=az"], "evaluate"))
    told_twice = capsys.readouterr()
    assert re.match(r"mənbə .*val_loss.*\n(.*\n)+pəncərə 32 token, sürüşmə 16, ", told_twice.out)
    assert re.search(
        r"^mətn        .*\n(.*\n)*yazıldı     .*evaluation.json\n", told_twice.err, re.MULTILINE
    )
    prepare(
        compose([*data_overrides(tiny), "lang=az"], "prepare"), [*data_overrides(tiny), "lang=az"]
    )
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert labels == ["qovluq", "lüğət", "train", "val", "mənbələr", "növbəti"]


def test_the_largest_sources_are_named() -> None:
    from azllm_lightning.data.shards import Manifest, Span, Split

    split = Split(documents=1, text_bytes=400, tokens=200, files=())
    spans = tuple(Span(f"mənbə {i}", "train", 0, 100 - i) for i in range(15))
    report = _report(
        Words(), Manifest(1, "", 300, {"train": split, "val": split}, spans, {"duplicates": 0}, {})
    )
    sources = report.splitlines()[-1]
    assert sources.startswith("sources     mənbə 0 7.2 %, mənbə 1 ")
    assert sources.endswith("mənbə 11 6.4 %, and 3 more")
    assert "duplicates" not in report


def test_a_signal_stops_prepare_and_the_same_command_begins_anew(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    monkeypatch.setenv("AZLLM_DATA_DIR", str(tmp_path / "hazır"))
    overrides = data_overrides(tiny)
    with monkeypatch.context() as patch:
        build = "azllm_lightning.data.pipeline._train_tokenizer"
        patch.setattr(build, lambda *_: signal.raise_signal(signal.SIGTERM))
        patch.setattr(sys, "argv", ["prepare", *overrides])
        with pytest.raises(SystemExit) as left:
            cli.main("prepare", prepare)
    assert left.value.code == cli.EXIT_RESUMABLE
    assert (
        shlex.join(["python", "-m", "azllm_lightning.prepare", *overrides])
        in capsys.readouterr().err
    )
    assert not list((tmp_path / "hazır").glob("tales-*"))
    assert prepare(compose(overrides, "prepare")).is_dir()
