"""What pip installs, in a folder without the repository, finds every config."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, dependencies left out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = (folder / "dist").glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
    ]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=120)
    return folder / "site"


def run(installed: Path, folder: Path, *args: str) -> str:
    """Standard output of python ARGS in `folder`, where the installed package comes first."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_carries_the_configs_and_the_lexicon_and_no_tests(installed: Path) -> None:
    there = {
        path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()
    }
    package = ROOT / "azllm_lightning"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.suffix in (".py", ".tsv", ".typed")
    }
    wanted |= {
        f"azllm_lightning/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert "azllm_lightning/conf/experiment/t4.yaml" in wanted
    assert wanted <= there
    assert not [name for name in there if name.startswith(("tests", "conf/"))]


def test_the_module_finds_every_config(installed: Path, tmp_path: Path) -> None:
    assert "n_layer: 12" in run(
        installed, tmp_path, "-m", "azllm_lightning.train", "--cfg", "job", "+experiment=t4"
    )


def test_the_console_script_finds_every_config(installed: Path, tmp_path: Path) -> None:
    (script,) = (path for path in (installed / "bin").glob("azllm*"))
    done = subprocess.run(
        [str(script), "train", "--cfg", "job", "experiment=t4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert "n_layer: 12" in done.stdout, done.stderr


def test_python_finds_every_config(installed: Path, tmp_path: Path) -> None:
    code = (
        "import azllm_lightning, hydra; from azllm_lightning.cli.composition import conf_dir\n"
        "print(conf_dir())\n"
        "print(azllm_lightning.compose(['experiment=t4']).model.n_layer)\n"
        "with hydra.initialize_config_module('azllm_lightning.conf', version_base='1.3'):\n"
        "    print(hydra.compose('train', ['+experiment=t4']).model.n_embd)\n"
    )
    assert run(installed, tmp_path, "-c", code).split() == [
        str(installed / "azllm_lightning" / "conf"),
        "12",
        "768",
    ]
