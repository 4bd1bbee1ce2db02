"""The entrance: what a person types is what the config gets, and how a command ends is what its exit code says."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from azllm_lightning.cli import entrance as cli

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


def got(command: Callable[..., int], *args: str) -> list[dict[str, Any]]:
    """The configs of the jobs that ARGS start."""
    seen: list[dict[str, Any]] = []
    assert command(*args, run=lambda config, overrides: seen.append(config)) == 0
    return seen


@pytest.mark.parametrize("text", TYPED)
def test_text_arrives_as_typed(text: str, command: Callable[..., int]) -> None:
    (config,) = got(
        command,
        f"run_name={text}",
        f"data.path={text if text[0] != '[' else 'x'}",
        f"ckpt_path={text}",
    )
    assert config["run_name"] == config["ckpt_path"] == text


def test_any_text_arrives_as_typed() -> None:
    for text in random_texts(300):
        (override,) = cli.quote_overrides([f"run_name={text}"])
        assert OverridesParser.create().parse_override(override).value() == text
    for text in random_texts(10):
        assert cli.compose([f"+prompt={text}"])["prompt"] == text


def test_a_reference_is_text_in_a_prompt_and_a_reference_elsewhere() -> None:
    config = cli.compose(["+prompt=qiymət ${seed} \\${seed}", "run_name=ə_${seed}"])
    assert config["prompt"] == "qiymət ${seed} \\${seed}"
    assert config["run_name"] == "ə_1234"


def test_quoted_null_empty_and_lists_keep_their_meaning() -> None:
    config = cli.compose(
        [
            "run_name='ə, ı'",
            'ckpt_path="a b"',
            "init_from=null",
            "data.dir=",
            "data.path=[kitab ə.txt,b.txt]",
        ]
    )
    assert (
        config["run_name"],
        config["ckpt_path"],
        config["init_from"],
        config["data"]["dir"],
    ) == (
        "ə, ı",
        "a b",
        None,
        "",
    )
    assert config["data"]["path"] == ["kitab ə.txt", "b.txt"]
    assert cli.compose(["data.path=['a, b.txt', c.txt]"])["data"]["path"] == ["a, b.txt", "c.txt"]


def test_quoting_twice_is_quoting_once() -> None:
    once = cli.quote_overrides([f"+prompt={text}" for text in random_texts(50)])
    assert cli.quote_overrides(once) == once


def test_overrides_reach_the_run_in_a_form_that_composes_again(command: Callable[..., int]) -> None:
    seen: list[list[str]] = []
    assert (
        command("run_name=Bakı'dan, ə", run=lambda config, overrides: seen.append(overrides)) == 0
    )
    assert cli.compose(seen[0])["run_name"] == "Bakı'dan, ə"


def test_a_sweep_is_a_sweep(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = got(command, "-m", "optimizer.lr=1e-3,3e-3", "run_name=ə,o'n üç", "init_from=a b")
    assert [(c["optimizer"]["lr"], c["run_name"]) for c in configs] == [
        (1e-3, "ə"),
        (1e-3, "o'n üç"),
        (3e-3, "ə"),
        (3e-3, "o'n üç"),
    ]
    assert {c["init_from"] for c in configs} == {"a b"}
    assert [path.name for path in tmp_path.iterdir()] == ["lightning_logs"]


def test_hydra_leaves_nothing_behind(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got(command, "run_name=ə")
    assert list(tmp_path.iterdir()) == []


def raising(error: Exception) -> Callable[[dict[str, Any], list[str]], object]:
    def run(config: dict[str, Any], overrides: list[str]) -> object:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("belə olmaz"), 2, "error: belə olmaz\n"),
        (OSError("disk doludur"), 2, "error: disk doludur\n"),
        (
            cli.Resumable("python -m azllm_lightning.train ckpt_path=last"),
            75,
            "To go on: python -m azllm_lightning.train ckpt_path=last\n",
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


def test_compose_tells_what_the_command_tells() -> None:
    with pytest.raises(ValueError, match=r"^unknown setting sed; did you mean seed\?$"):
        cli.compose(["sed=3"])


def python(*args: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, encoding="utf-8", timeout=120, **settings
    )


def test_cfg_job_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    seconds = []
    while len(seconds) < 5 and min(seconds, default=9.0) >= 1.5:  # a busy machine gets another try
        started = time.perf_counter()
        done = python(
            "-X",
            "importtime",
            "-m",
            "azllm_lightning.train",
            "--cfg",
            "job",
            "+experiment=t4",
            cwd=tmp_path,
        )
        seconds.append(time.perf_counter() - started)
    assert done.returncode == 0, done.stderr
    assert "n_layer: 12" in done.stdout
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "hydra" in imported
    assert imported.isdisjoint(
        {"torch", "lightning", "numpy", "pyarrow", "tokenizers", "tensorboard"}
    )
    assert min(seconds) < 1.5


def test_help_shows_the_ways_to_use_it(tmp_path: Path) -> None:
    done = python("-m", "azllm_lightning.train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for told in (
        "+experiment=t4",
        "data.path=",
        "ckpt_path=last",
        "experiment: colab, course, cpu, debug",
        "max_steps: 600",
        "--cfg job",
    ):
        assert told in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_streams_speak_utf8_whatever_the_console_does(tmp_path: Path) -> None:
    code = "from azllm_lightning.cli import entrance as cli; cli.main('train', lambda config, overrides: print(config['run_name']))"
    console = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = python("-X", "utf8=0", "-c", code, "run_name=ə", cwd=tmp_path, env=console)
    assert (done.returncode, done.stdout) == (0, "ə\n"), done.stderr


def test_importing_the_package_costs_nothing(tmp_path: Path) -> None:
    code = "import sys, json, azllm_lightning; dir(azllm_lightning); print(json.dumps(sorted(sys.modules)))"
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"torch", "hydra", "lightning", "numpy"}.isdisjoint(json.loads(done.stdout))
