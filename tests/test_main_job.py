"""The main job through the real command line: what it writes, how it resumes, and what the model
has learned.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_scalars

SUMMARY = (
    "run_name version steps tokens_seen val_loss val_ppl val_bpb best_val_loss best_step "
    "tokens_per_sec wall_seconds peak_memory_bytes precision compile num_params resumed_from status"
)
TAGS = (
    "train_loss train_ppl val_loss val_ppl val_bpb val_loss_best val_loss_best_step lr grad_norm "
    "generalization_gap tokens_seen tokens_per_sec mfu peak_memory_gb"
)


def train(folder: Path, data: Path, *typed: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "azllm_lightning.train", *typed],
        cwd=folder,
        env={**os.environ, "AZLLM_DATA_DIR": str(data)},
        capture_output=True,
        encoding="utf-8",
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    return done


def files(run: Path) -> set[str]:
    return {
        re.sub(r"tfevents\..*", "tfevents", path.relative_to(run).as_posix())
        for path in run.rglob("*.*")
    }


@pytest.mark.slow
def test_the_debug_job_and_its_resume(
    tmp_path: Path,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "Bakı'dan, ilk"
    done = train(
        tmp_path,
        tmp_path / "data",
        "+experiment=debug",
        f"run_name={name}",
        "trainer.accelerator=cpu",
    )
    run = tmp_path / "lightning_logs" / name / "version_0"
    texts = {
        ".hydra",
        ".hydra/config.yaml",
        "hparams.yaml",
        "train.log",
        "tokenizer.json",
        "report.html",
        "summary.json",
        ".lock",
    }
    steps = {f"checkpoints/step_{step:08d}.ckpt" for step in (5, 10)}
    assert files(run) - {"checkpoints/last.ckpt"} == {
        *texts,
        *steps,
        "checkpoints/best.ckpt",
        "events.out.tfevents",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"data", "lightning_logs"}

    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert sorted(summary) == sorted(SUMMARY.split())
    expected = {
        "run_name": name,
        "version": 0,
        "status": "done",
        "steps": 10,
        "tokens_seen": 10 * 4 * 64,
        "resumed_from": [],
    }
    assert {key: summary[key] for key in expected} == expected

    scalars = read_scalars(run)
    assert set(TAGS.split()) <= scalars.keys()
    assert list(scalars["train_loss"]) == list(range(1, 11))
    assert list(scalars["val_loss"]) == [0, 5, 10]
    assert scalars["val_loss"][10] < scalars["val_loss"][0]
    assert summary["val_loss"] == pytest.approx(scalars["val_loss"][10], abs=1e-6)

    for text in (
        "step 10  val_loss",
        "talk      python -m azllm_lightning.generate",
        "tensorboard --logdir",
    ):
        assert text in done.stdout
        assert text in (run / "train.log").read_text(encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AZLLM_DATA_DIR", str(tmp_path / "data"))
    assert command(f"run_name={name}", "ckpt_path=last", "trainer.max_steps=15") == 0
    assert "resuming from" in capsys.readouterr().out
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["steps"], summary["status"]) == (15, "done")
    assert [Path(path).name for path in summary["resumed_from"]] == ["step_00000010.ckpt"]
    assert [step for step, _ in step_files(run / "checkpoints")] == [15, 10, 5]
    scalars = read_scalars(run)
    assert list(scalars["train_loss"]) == list(range(1, 16))
    assert list(scalars["val_loss"]) == [0, 5, 10, 15]


@pytest.mark.slow
def test_the_default_job_learns_to_write_words(tmp_path: Path) -> None:
    from azllm_lightning import load, sample
    from azllm_lightning.azerbaijani.tales import known_words, words

    train(tmp_path, tmp_path / "data")
    model, tokenizer = load(tmp_path / "lightning_logs" / "tales" / "version_0")
    known = known_words()
    texts = sample(model, tokenizer, max_new_tokens=120, seed=0, num_samples=20)
    written = [word for text in texts for word in words(text)[:-1]]  # the last may be cut off
    assert len(written) > 600
    strange = [word for word in written if word not in known]
    assert len(strange) <= 0.05 * len(written), sorted(set(strange))
