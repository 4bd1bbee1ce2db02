from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.compose import compose
from azllm_lightning.config.verbs import GenerateConfig
from azllm_lightning.evaluate import evaluate
from azllm_lightning.export import export
from azllm_lightning.generate import SAMPLE_SEPARATOR, generate
from azllm_lightning.runs.folder import find_checkpoint

TrainTiny = Callable[..., Path]


def settings(*overrides: str) -> GenerateConfig:
    return compose(["max_new_tokens=20", "seed=3", *overrides], "generate")


def test_one_sample_is_streamed_and_is_what_sample_gives(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained byte-level model draws halves of letters: none may be printed on its own."""
    from azllm_lightning import load, sample

    model, tokenizer = load(tiny_run)
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


def test_several_samples_stand_apart(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from azllm_lightning import load, sample

    model, tokenizer = load(tiny_run)
    generate(settings("prompt=Bakı", "num_samples=3", "top_k=20", "temperature=0.5"))
    texts = sample(model, tokenizer, "Bakı", 20, 0.5, 20, seed=3, num_samples=3)
    assert capsys.readouterr().out == SAMPLE_SEPARATOR.join(texts) + "\n"


def test_the_most_likely_text_is_written_once(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the message says: num_samples has no effect at temperature=0."""
    from azllm_lightning import load, sample

    prompts = ["Bakı", "Bir gün"]
    texts = sample(*load(tiny_run), prompts, 20, temperature=0)
    capsys.readouterr()
    config = settings("prompt=[Bakı,Bir gün]", "num_samples=3", "temperature=0")
    assert any(message.startswith("num_samples, seed: no effect") for message in config.ignored())
    generate(config)
    assert capsys.readouterr().out == SAMPLE_SEPARATOR.join(texts) + "\n"


def test_a_text_ends_before_a_stop_string(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(*overrides: str) -> str:
        capsys.readouterr()
        generate(settings("prompt=Bakı", "temperature=1.2", "max_new_tokens=60", *overrides))
        return capsys.readouterr().out.removesuffix("\n")

    new = written().removeprefix("Bakı")
    # Not half a letter or a space, which would not come back as it is.
    stop = next(letter for letter in new[5:] if letter.isalpha())
    assert written(f"stop=[yoxdur,{stop}]") == "Bakı" + new[: new.index(stop)]
    assert settings(r"stop=[a,\n\n]").stops == ["a", "\n\n"]


@pytest.fixture(autouse=True)
def nothing_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


def test_at_a_terminal_one_prompt_follows_the_other(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["Bir gün", "", "Bakı küləyi " * 20])
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    generate(settings("prompt=Bakı"))
    assert asked == []
    capsys.readouterr()
    generate(settings())
    printed = capsys.readouterr()
    assert len(asked) == 4  # a blank line is not the end
    assert printed.out.startswith("Bir gün")
    assert "\nBakı küləyi Bakı" in printed.out
    assert printed.err.count("the model's context is 32") == 1  # of the long prompt only
    assert "only short tales" in printed.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Bakı küləyi\n".encode())))
    generate(settings())
    assert capsys.readouterr().out.startswith("Bakı küləyi")


def test_a_gpu_without_kernels_is_left_alone(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "P100 of generate")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    generate(settings("prompt=Bakı"))
    assert "no kernels for P100 of generate" in caplog.text


def test_the_checkpoint_that_is_named(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Path("lightning_logs", "birinci", "version_0")
    second = tiny_run
    shutil.copytree(tiny_run, first)
    os.utime(first / "checkpoints", (0, 0))
    step = first / "checkpoints" / "step_00000004.ckpt"

    def taken(*overrides: str) -> str:
        capsys.readouterr()
        generate(settings(*overrides))
        path, comma, step = capsys.readouterr().err.strip().partition(", step ")
        assert comma
        assert step.isdecimal()
        return path

    last = "step_00000008.ckpt"
    assert taken() == f"from {second / 'checkpoints' / 'best.ckpt'}"
    assert taken("run_name=birinci") == f"from {first / 'checkpoints' / 'best.ckpt'}"
    named_last = taken("run_name=birinci", "ckpt_path=last")
    assert named_last == f"from {first / 'checkpoints' / last}"
    assert taken(f"ckpt_path={step}") == f"from {step}"
    # A run that was stopped before its first validation has no best.
    (second / "checkpoints" / "best.ckpt").unlink()
    assert taken() == f"from {second / 'checkpoints' / last}"


@pytest.mark.parametrize(("lang", "word"), [("en", "step 8"), ("az", "addım 8")])
def test_verbs_name_the_step_of_the_weights_that_they_read(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, lang: str, word: str
) -> None:
    words = [f"lang={lang}", "ckpt_path=last"]
    Path("qısa.txt").write_text("Bir gün tülkü meşəyə getdi.", encoding="utf-8")
    generate(settings(*words, "prompt=Bakı", "max_new_tokens=1"))
    found = evaluate(compose([*words, "data.path=qısa.txt"], "evaluate"))
    export(compose([*words, f"out={tmp_path / 'out'}", "format=pt"], "export"))
    printed = capsys.readouterr()
    for said in (*printed.err.splitlines(), *printed.out.splitlines()):
        assert (".ckpt" in said) == (f".ckpt, {word}" in said)
    assert (printed.out + printed.err).count(f".ckpt, {word}") == 3
    assert found["step"] == 8
    use_language(None)


def test_missing_checkpoints_are_reported(tiny_run: Path) -> None:
    with pytest.raises(ValueError, match=r"ckpt_path=yoxdur\.ckpt: no such file"):
        generate(settings("ckpt_path=yoxdur.ckpt"))
    with pytest.raises(ValueError, match=r"no run with a checkpoint in .*yoxdur"):
        generate(settings("run_name=yoxdur"))


def test_a_run_is_found_by_the_name_that_is_listed(tiny_run: Path) -> None:
    """By `azllm runs`; `train`, for which a name is that of a new run, too, says what to type."""
    name = f"{tiny_run.parent.name}/{tiny_run.name}"
    checkpoints = (tiny_run / "checkpoints").resolve()
    assert find_checkpoint("best", name).resolve() == checkpoints / "best.ckpt"
    assert find_checkpoint("last", name).resolve().parent == checkpoints
    with pytest.raises(ValueError, match=f"that run give ckpt_path=lightning_logs/{name}"):
        compose([f"run_name={name}", "ckpt_path=last"])


def test_ctrl_c_ends_a_text_without_a_traceback(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from azllm_lightning.model import gpt

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


@pytest.mark.slow
def test_generate_and_evaluate_need_no_lightning(tiny_run: Path) -> None:
    """Importing Lightning takes seconds; the prompt has what Hydra's grammar refuses."""
    prompt = "Gəl, “Kür” çayına (gedək): nə? {a=b} 'c'"
    script = (
        "import sys\n"
        "from azllm_lightning.generate import main as generate\n"
        "generate()\n"
        "sys.argv[1:] = ['data.path=mətn.txt']\n"
        "from azllm_lightning.evaluate import main as evaluate\n"
        "evaluate()\n"
        "print('lightning' in sys.modules)"
    )
    Path("mətn.txt").write_text("Nazir müqaviləni imzaladı.", encoding="utf-8")
    command = [sys.executable, "-c", script, f"prompt={prompt}", "max_new_tokens=5", "seed=1"]
    console = {**os.environ, "PYTHONIOENCODING": "cp1252"}  # as on Windows
    done = subprocess.run(command, capture_output=True, check=True, env=console)
    text = done.stdout.decode("utf-8")
    assert text.startswith(prompt)
    assert "\nsource " in text
    assert text.splitlines()[-1] == "False"


def test_every_verb_speaks_azerbaijani(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(settings("prompt=" + "Bir gün " * 40, "lang=az"))
    printed = capsys.readouterr().err
    pattern = (
        r"model: .*best.ckpt, addım \d+\nbaşlanğıc mətnində \d+ token var, .* yalnız sonu oxunur\n"
    )
    assert re.fullmatch(pattern, printed)
    export(compose(["out=model", "format=pt", "lang=az"], "export"))
    assert capsys.readouterr().out.startswith("model: ")
    evaluate(compose(["lang=az"], "evaluate"))
    table = capsys.readouterr()
    head = "mənbə +itki +ppl +bpb +token/söz +bayt/token +sənəd +bayt"
    assert re.match(head + r"\n(.*\n)+pəncərə 32 token, sürüşmə 16, ", table.out)
    assert re.search(r"^mətn +.*\n(.*\n)*yazıldı +.*evaluation.json\n", table.err, re.MULTILINE)
