from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from azllm_lightning import cli, prove_resume
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.train import train


class Killed(Exception):
    """What stands for a kill in the process of the tests."""


def in_this_process(
    folder: Path, name: str, settings: list[str], told: str, ends_early: bool = False
) -> None:
    """A session without the seconds that starting a process takes; a kill is then an exception."""
    typed = [*settings, f"run_name={name}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            train(cli.compose(typed), typed)
        except (cli.Resumable, Killed):
            assert ends_early


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*args: object) -> None:
        raise Killed

    monkeypatch.setattr(prove_resume, "_session", in_this_process)
    monkeypatch.setattr("azllm_lightning.callbacks.interrupt.os.kill", kill)


def test_an_exact_resume_passes(
    quick: None, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prove_resume.prove_resume(cli.compose(tiny, "prove_resume"), tiny)
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS  8 steps straight")


def test_what_differs_first_is_named(
    quick: None,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Dropout from a stream that goes on instead of one that follows from the step: what Lightning does as it comes."""
    monkeypatch.setattr(
        "azllm_lightning.training.causal_lm.derived_seed",
        lambda *key: 7 if "weights" in key else next(stream),
    )
    stream = iter(range(1000))
    overrides = [*tiny, "model.dropout=0.1"]
    with pytest.raises(SystemExit, match="1"):
        prove_resume.prove_resume(cli.compose(overrides, "prove_resume"), overrides)
    told = capsys.readouterr().out
    assert re.search(r"FAIL  again: step 1: grad_norm is .* in straight, .* in again", told)
    assert "trainer.deterministic=true" in told


def test_a_tensor_that_differs_is_named(train_tiny: Callable[..., Path]) -> None:
    left, right = train_tiny(), train_tiny()
    assert prove_resume.first_difference(left, right) is None
    path = step_files(right / "checkpoints")[0][1]
    saved = torch.load(path, weights_only=True)
    saved["optimizer_states"][0]["state"][1]["momentum_buffer"].view(-1)[0] += 1e-6
    torch.save(saved, path)
    told = "step 8: optimizer_states/0/state/1/momentum_buffer differs in step_00000008.ckpt"
    assert prove_resume.first_difference(left, right) == told


def test_a_run_that_fails_is_told(tiny: list[str]) -> None:
    with pytest.raises(ValueError, match="ckpt_path=last: prove_resume trains runs of its own"):
        prove_resume.prove_resume(cli.compose([*tiny, "ckpt_path=last"]), tiny)
    settings = [*tiny, "trainer.devices=0"]
    with pytest.raises(
        ValueError, match=r"the run 'straight' ended with code 2:\n(.*\n)*.*trainer.devices=0"
    ):
        prove_resume._session(Path.cwd(), "straight", settings, "to the end")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [[], ["model.dropout=0.1", "trainer.devices=2", "trainer.strategy=ddp"]]
)
def test_the_command(
    settings: list[str], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*tiny, *settings]
    prove_resume.prove_resume(cli.compose(overrides, "prove_resume"), overrides)
    assert "PASS" in capsys.readouterr().out
