"""The entrance: what is typed is what the config gets, and how a command ends is its exit code."""

from __future__ import annotations

import json
import operator
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from azllm_lightning import __version__
from azllm_lightning.__main__ import VERBS, module_of
from azllm_lightning.__main__ import main as azllm
from azllm_lightning.cli.entrance import Resumable, for_terminal
from azllm_lightning.cli.overrides import command as command_of
from azllm_lightning.cli.overrides import hydra_overrides
from azllm_lightning.config.compose import compose
from azllm_lightning.config.run import RunConfig

TYPED = [
    "Azərbaycanın paytaxtı",
    "Bakı, Gəncə və Şəki",
    "Bakı'dan gəldi",
    "'dan, 'dən",
    'O dedi: "Gəl!"',
    '"yarımçıq',
    "a=b, c={d}, e=[f]",
    "[salam]",
    "{salam: dünya}",
    r"C:\Users\Əli\Mənim kitabım.txt",
    r"C:\Users\Əli" + "\\",
    r"\\server\paylaşım\mətn",
    r"tək \' dırnaq",
    r"iki \\' dırnaq",
    "soruşdu: niyə?  (heç kim bilmədi) #1 100% ~ ! @ & * ; | < >",
    "-5",
    "1e3 ",
    " boşluqla",
    "true",
    "NULL deyil",
    "sətir\nsətir",
    "İ ı Ğ ğ ə Ə ŞÇÖÜ",
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    alphabet = "əƏıİöğşç aBc,={}[]()$:;/*?#%&-_.\t0" + 5 * "'\"\\"
    return [
        "x" + "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 20))) for _ in range(count)
    ]


def composed(command: Callable[..., int], *args: str) -> list[RunConfig]:
    """The configs of the jobs that ARGS start."""
    seen: list[RunConfig] = []
    assert command(*args, run=seen.append) == 0
    return seen


@pytest.mark.parametrize("text", TYPED)
def test_text_arrives_as_typed(text: str, command: Callable[..., int]) -> None:
    path = "x" if text.startswith("[") else text
    (config,) = composed(command, "data=text", f"data.path={path}", f"ckpt_path={text}")
    assert config.ckpt_path == text
    assert config.data.path == path


def test_any_text_arrives_as_typed() -> None:
    for text in random_texts(300):
        (override,) = hydra_overrides([f"run_name={text}"])
        assert OverridesParser.create().parse_override(override).value() == text
    for text in random_texts(10):
        assert compose([f"prompt={text}"], "generate").prompt == text


def test_a_reference_is_text_in_a_prompt_and_a_reference_elsewhere() -> None:
    assert (
        compose(["prompt=qiymət ${seed} \\${seed}"], "generate").prompt
        == "qiymət ${seed} \\${seed}"
    )
    assert compose(["run_name=ə_${seed}"]).run_name == "ə_1234"


def test_quoted_null_empty_and_lists_keep_their_meaning() -> None:
    texts = [
        "data=text",
        "run_name='ə, ı'",
        'ckpt_path="a b"',
        "init_from=null",
        "data.text_field=",
    ]
    config = compose([*texts, "data.path=[kitab ə.txt,b.txt]"])
    assert (config.run_name, config.ckpt_path, config.init_from) == ("ə, ı", "a b", None)
    assert config.data.text_field == ""
    assert config.data.path == ["kitab ə.txt", "b.txt"]
    config = compose(["data=text", "data.path=['a, b.txt', c.txt]"])
    assert config.data.path == ["a, b.txt", "c.txt"]


def test_a_list_of_prompts_works_as_typed() -> None:
    typed = "callbacks.samples.prompts=[Bir gün, Bakı'da ${seed}]"
    assert compose([typed]).callbacks.samples.prompts == ["Bir gün", "Bakı'da ${seed}"]


def test_a_comma_at_the_end_of_a_list_is_no_item() -> None:
    def prompts(typed: str) -> Any:
        config: Any = compose([f"prompt={typed}"], "generate")
        return config.prompts

    assert prompts("[Bir gün, ]") == ["Bir gün"]
    assert prompts("[a,b,]") == ["a", "b"]
    assert prompts('[a, ""]') == ["a", ""]
    assert prompts("[a,,b]") == ["a", "", "b"]
    assert prompts('[""]') == [""]
    with pytest.raises(ValueError, match=r"prompt=\[\] must be a text, or a list"):
        prompts("[]")


def test_quoting_twice_is_quoting_once() -> None:
    once = hydra_overrides([f"prompt={text}" for text in random_texts(50)])
    assert hydra_overrides(once) == once


def test_an_experiment_needs_no_plus() -> None:
    with_plus, without = compose(["+experiment=t4"]), compose(["experiment=t4"])
    assert with_plus.trainer == without.trainer
    assert without.trainer.global_batch_size == 48
    assert compose(["experiment=[t4]"]).trainer == without.trainer


def test_overrides_reach_the_run_in_a_form_that_composes_again(command: Callable[..., int]) -> None:
    (config,) = composed(command, "run_name=Bakı'dan, ə", "experiment=debug")
    again = compose(config.overrides)
    assert again == config
    typed = shlex.split(command_of("train", config.overrides))
    assert typed[-2:] == ["run_name=Bakı'dan, ə", "experiment=debug"]


def test_a_sweep_is_a_sweep(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["-m", "optimizer.lr=1e-3,3e-3", "run_name=ə,o'n üç", "init_from=a b"]
    configs = composed(command, *typed)
    assert [(config.optimizer.lr, config.run_name) for config in configs] == [
        (1e-3, "ə"),
        (1e-3, "o'n üç"),
        (3e-3, "ə"),
        (3e-3, "o'n üç"),
    ]
    assert {config.init_from for config in configs} == {"a b"}
    assert [path.name for path in tmp_path.iterdir()] == ["lightning_logs"]


MIX = "kitab.txt: 4, turk*: 10%"
SWEEPS: dict[str, list[object]] = {
    f"data.mix={MIX}": [MIX],
    "data.mix=O'Neil.txt: 4, ə: 1": ["O'Neil.txt: 4, ə: 1"],
    f"data.mix='{MIX}', null, \"a: 2\"": [MIX, None, "a: 2"],
    f"data.mix=choice('{MIX}','a: 2')": [MIX, "a: 2"],
    "teachers=[a,b],[c,d]": [["a", "b"], ["c", "d"]],
    "teachers=[Bakı, Gəncə],[c,o'n d]": [["Bakı", "Gəncə"], ["c", "o'n d"]],
    "teachers=null, ə, [c,d]": [None, "ə", ["c", "d"]],
    "teachers=['a],[b','c']": [["a],[b", "c"]],
    "data.path=[a[01].txt,ə],[b]": [["a[01].txt", "ə"], ["b"]],
    "callbacks.samples.prompts=[${a},b],[c]": [["${a}", "b"], ["c"]],
    "run_name=1,02": ["1", "02"],
}


@pytest.mark.thorough
@pytest.mark.parametrize("typed", SWEEPS)
def test_what_a_sweep_sweeps(
    typed: str,
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    value = operator.attrgetter(typed.partition("=")[0])
    configs = composed(command, "-m", "data=text", typed)
    assert [value(config) for config in configs] == SWEEPS[typed]


@pytest.mark.parametrize("verb", ["train", "runs"])
def test_an_empty_variable_for_the_language_is_none(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_LANG", "")
    assert compose([], verb).lang == "en"


@pytest.mark.parametrize("verb", ["train", "runs"])
def test_a_variable_that_is_no_language_is_named(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_LANG", "az_AZ.UTF-8")
    with pytest.raises(ValueError, match=r"variable AZLLM_LANG=az_AZ\.UTF-8 is not one of en, az$"):
        compose([], verb)
    with pytest.raises(ValueError, match=r"^lang=fr is not one of en, az$"):
        compose(["lang=fr"], verb)
    assert compose(["lang=az"], verb).lang == "az"


def test_hydra_leaves_nothing_behind(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    composed(command, "run_name=ə")
    assert list(tmp_path.iterdir()) == []


def raising(error: Exception) -> Callable[[RunConfig], object]:
    def run(config: RunConfig) -> object:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("belə olmaz"), 2, "error: belə olmaz\n"),
        (OSError("disk doludur"), 2, "error: disk doludur\n"),
        (
            Resumable("python -m azllm_lightning.train ckpt_path=last"),
            75,
            "resume: python -m azllm_lightning.train ckpt_path=last\n",
        ),
    ],
)
def test_exit_codes(
    error: Exception,
    code: int,
    said: str,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(run=raising(error)) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(command: Callable[..., int]) -> None:
    with pytest.raises(ZeroDivisionError):
        command(run=raising(ZeroDivisionError()))


def test_a_traceback_can_be_asked_for(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZLLM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="belə olmaz"):
        command(run=raising(ValueError("belə olmaz")))


def test_compose_reports_what_the_command_reports() -> None:
    with pytest.raises(ValueError, match=r"^unknown setting sed; did you mean seed\?$"):
        compose(["sed=3"])


LANGUAGES = [
    ([], "error: belə"),
    (["lang=az"], "xəta: belə"),
]


@pytest.mark.parametrize(("typed", "said"), LANGUAGES)
def test_an_error_is_in_the_language_asked_for(
    typed: list[str], said: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*typed, run=raising(ValueError("belə"))) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_setting_that_does_not_compose_is_reported_in_that_language(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("lang=az", "trainer.max_step=5") == 2
    error = capsys.readouterr().err
    assert error.startswith("xəta: ")
    assert "trainer.max_steps" in error


def test_an_error_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "trainer.global_batch_size=4 " * 8 + "\n" + "x" * 100
    assert for_terminal(message) == message
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    lines = for_terminal(message).splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1] == "x" * 100
    assert " ".join(" ".join(lines[:-1]).split()) == message.splitlines()[0].strip()


FLAGS = {
    "--max_steps 100": "trainer.max_steps=100",
    "--max-steps=100": "trainer.max_steps=100",
    "--trainer.max_steps 100": "trainer.max_steps=100",
    "--resume": "resume=VALUE",
}


@pytest.mark.parametrize(("typed", "meant"), FLAGS.items())
def test_a_flag_gets_the_setting_to_type_instead(
    typed: str, meant: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*typed.split()) == 2
    assert f"write {meant}" in capsys.readouterr().err


def python(*args: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, encoding="utf-8", timeout=120, **settings
    )


def test_cfg_job_imports_nothing_heavy(tmp_path: Path) -> None:
    asked = ["-m", "azllm_lightning.train", "--cfg", "job", "experiment=t4"]
    done = python("-X", "importtime", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "n_layer: 12" in done.stdout
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    heavy = {"torch", "lightning", "numpy", "pyarrow", "tokenizers", "tensorboard"}
    assert "hydra" in imported
    assert imported.isdisjoint(heavy)


def test_streams_are_utf8_whatever_the_console_is(tmp_path: Path) -> None:
    code = (
        "from azllm_lightning.cli.entrance import main\n"
        "from azllm_lightning.config.run import RunConfig\n"
        "main('train', lambda config: print(config.run_name), RunConfig.from_mapping)"
    )
    console = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = python("-X", "utf8=0", "-c", code, "run_name=ə", cwd=tmp_path, env=console)
    assert (done.returncode, done.stdout) == (0, "ə\n"), done.stderr


def test_importing_the_package_costs_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, json, azllm_lightning; dir(azllm_lightning); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"torch", "hydra", "lightning", "numpy"}.isdisjoint(json.loads(done.stdout))


def test_azllm_lists_the_verbs_and_leads_to_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = python("-m", "azllm_lightning", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(VERBS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command sets it, but for this test only
    monkeypatch.setattr(sys, "argv", ["azllm", "runs"])
    azllm()
    assert capsys.readouterr().out.startswith("no runs in ")
    monkeypatch.setattr(sys, "argv", ["azllm", "trian"])
    with pytest.raises(SystemExit) as leaving:
        azllm()
    assert leaving.value.code == 2
    assert "train, prepare" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_main(verb: str) -> None:
    from importlib import import_module

    assert callable(import_module(f"azllm_lightning.{module_of(verb)}").main)


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_every_verb_says_the_version_of_the_package(
    verb: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["azllm", *([] if verb is None else [verb]), "--version"])
    azllm()
    assert capsys.readouterr().out == f"azllm-lightning {__version__}\n"


def test_a_class_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with `python -m`; a module of the package or of Python stays what it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "argv", ["azllm", "runs"])
    azllm()
    assert sys.path[-1] == ""
