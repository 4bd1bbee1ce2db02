"""The job files of examples/: they parse, their settings compose, and they resume by themselves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from azllm_lightning.config.compose import compose
from azllm_lightning.training.batch import check_devices

EXAMPLES = Path(__file__).parents[1] / "examples"
SLURM = EXAMPLES / "slurm.sbatch"
SKYPILOT = EXAMPLES / "skypilot.yaml"

pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("bash") is None, reason="needs bash"
)


def skypilot_script() -> str:
    job = yaml.safe_load(SKYPILOT.read_text(encoding="utf-8"))
    assert job["resources"]["use_spot"] is True
    assert "/runs" in job["file_mounts"]
    script: str = job["run"]
    return script


@pytest.mark.parametrize("script", [SLURM.read_text(encoding="utf-8"), skypilot_script()])
def test_the_settings_of_a_job_file_compose(script: str, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    settings = re.search(r"^settings=[(\"](.*)[)\"]$", script, re.MULTILINE)
    assert settings is not None
    overrides = settings[1].replace('"run_name=$name"', "run_name=cluster").split()
    config = compose([text for text in overrides if not text.startswith("logs_dir=/runs")])
    assert f"{config.run_name}/version_" in script.replace("$name", "cluster")


def test_the_published_commands_divide_a_step_among_their_gpus() -> None:
    """Settings that compose may still not go together on so many devices."""
    job = yaml.safe_load(SKYPILOT.read_text(encoding="utf-8"))
    kinds = [kind.split(":") for kind in job["resources"]["accelerators"]]
    found = [(skypilot_script(), int(count)) for _, count in kinds]
    slurm = SLURM.read_text(encoding="utf-8")
    found.append((slurm, int(re.findall(r"--gpus-per-node=(\d+)", slurm)[0])))
    for page in sorted((EXAMPLES.parent / "docs").glob("*/several_devices.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        (command,) = re.findall(r"^torchrun .*", text, re.MULTILINE)
        nodes, per_node = map(int, re.findall(r"--(?:nnodes|nproc-per-node)=(\d+)", command))
        found.append((command, nodes * per_node))
        typed = re.findall(r"^(.* trainer\.devices=(\d+))", text, re.MULTILINE)
        found += [(line, int(count)) for line, count in typed]
    assert len(found) == 7
    for text, devices in found:
        typed = re.findall(r"\b(?:experiment|trainer\.micro_batch_size)=\w+", text)
        assert typed[0] == "experiment=t4"
        check_devices(compose(typed), devices)


def stand_ins(folder: Path, **commands: str) -> dict[str, str]:
    """Programs of these names that run shell code instead; gives the environment to find them."""
    for name, script in commands.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\necho {name} $* >> calls\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


CHECKPOINT = Path("lightning_logs/cluster/version_0/checkpoints/step_00000004.ckpt")


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True)])
def test_a_slurm_job_is_requeued_if_it_can_resume(
    code: int, requeued: bool, tmp_path: Path
) -> None:
    environment = stand_ins(tmp_path, srun=f"exit {code}", scontrol="")
    job = ["bash", str(SLURM)]
    assert subprocess.run(job, cwd=tmp_path, env=environment).returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].endswith("azllm_lightning.train experiment=t4 run_name=cluster")
    assert calls[1:] == ["scontrol requeue 7"] * requeued
    checkpoint = tmp_path / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    subprocess.run(job, cwd=tmp_path, env=environment)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert any(call.endswith("train run_name=cluster ckpt_path=last") for call in calls)


def test_a_slurm_job_near_its_limit_saves_and_is_requeued(tmp_path: Path) -> None:
    """SLURM signals the script alone, which has to wait for the save."""
    srun = (
        "trap 'stop=1' TERM; touch started\n"
        'while [ -z "$stop" ]; do sleep 0.05; done; sleep 0.3; exit 75'
    )
    environment = stand_ins(tmp_path, srun=srun, scontrol="")
    job = subprocess.Popen(["bash", str(SLURM)], cwd=tmp_path, env=environment)
    end = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 75
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "scontrol requeue 7"


def test_a_managed_job_of_skypilot_runs_until_it_is_done(tmp_path: Path) -> None:
    """Stopped once, then resumed to the end; a wrong setting ends it."""
    script = skypilot_script().replace("/runs/", f"{tmp_path}/")
    checkpoint = tmp_path / CHECKPOINT.as_posix().replace("cluster", "cloud")
    train = (
        f'if [ -e failing ]; then exit 2; fi; if [ -e "{checkpoint}" ]; then exit 0; fi\n'
        f'mkdir -p "{checkpoint.parent}"; touch "{checkpoint}"; exit 75'
    )
    environment = stand_ins(tmp_path, python=train)
    run = ["bash", "-c", script]
    assert subprocess.run(run, cwd=tmp_path, env=environment).returncode == 0
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert second == f"{first} ckpt_path=last"
    (tmp_path / "failing").touch()
    assert subprocess.run(run, cwd=tmp_path, env=environment).returncode == 2
