from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: tests run in parallel, and so do their subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from quick_hydra import remember
from training_runs import Probe, Uninterrupted, tiny_overrides

from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.disk.lock import Lock
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.causal_lm import CausalLM

# A shell's background jobs and nohup leave these ignored, and a run respects that.
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A thorough test is slow, too. One that is slow alone fails after an hour rather than minutes:
    the machine may be busy.
    """
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(3600))
        elif item.get_closest_marker("thorough") is not None:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def quick_gc() -> None:
    """Set aside what was imported and remembered so far, before each file of tests: looking through
    it in each training took a sixth of the time of all tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_hydra() -> Iterator[None]:
    """Hydra reads the files of conf/ once per test process, not once per composition."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch)
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this test run, for what is slow to make."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def tiny(shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for the smallest useful run.

    The current folder is the test's own; the data is prepared once for all tests.
    """
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
    monkeypatch.chdir(tmp_path)
    # Event files of one second differ by a number that starts at 0 in each process; here, in each
    # test.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    return tiny_overrides()


@pytest.fixture
def train_tiny(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """train_tiny(*overrides): train or resume the tiny run in this process; returns its folder.

    Its report.html is empty: drawing charts would take longer than such a training.
    """
    from azllm_lightning.config.compose import compose
    from azllm_lightning.report import live
    from azllm_lightning.train import train

    monkeypatch.setattr(live, "page", lambda record: "")

    def run(*overrides: str) -> Path:
        # A resume takes its settings from the stored config, with only what is typed now on top.
        resumes = any(text.startswith("ckpt_path=") for text in overrides)
        return train(compose(["run_name=tiny", *overrides] if resumes else [*tiny, *overrides]))

    return run


@pytest.fixture(scope="session")
def uninterrupted_runs() -> dict[tuple[str, ...], Uninterrupted]:
    """The runs of `uninterrupted` so far, by their overrides."""
    return {}


@pytest.fixture
def uninterrupted(
    uninterrupted_runs: dict[tuple[str, ...], Uninterrupted],
    tmp_path_factory: pytest.TempPathFactory,
    train_tiny: Callable[..., Path],
) -> Callable[..., Uninterrupted]:
    """uninterrupted(*overrides): the tiny run that nothing interferes with, to compare others with.

    It is trained once per test process, in a folder of its own: tests must not change it.
    """

    def run(*overrides: str) -> Uninterrupted:
        if overrides not in uninterrupted_runs:
            with pytest.MonkeyPatch.context() as patch:
                probe = watched_training(patch)
                patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
                folder = train_tiny(*overrides).absolute()
            uninterrupted_runs[overrides] = Uninterrupted(folder, dict(probe.windows))
        return uninterrupted_runs[overrides]

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """command(*args): `python -m azllm_lightning.train ARGS` in this process; returns its exit
    code.

    `run` replaces the training by another function of the RunConfig.
    """
    from azllm_lightning.cli import entrance
    from azllm_lightning.config.run import RunConfig
    from azllm_lightning.train import train

    def call(*args: str, run: Callable[[RunConfig], object] = train) -> int:
        monkeypatch.setattr(sys, "argv", ["train", *args])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as `main` sets it, but for this test only
        try:
            entrance.main("train", run, RunConfig.from_mapping)
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    return call


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Watches every training in this process, and interferes where the test asks it to."""
    return watched_training(monkeypatch)


def watched_training(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """A probe in every training in this process, until `monkeypatch` is undone."""
    probe = Probe()
    training_step, forward = CausalLM.training_step, GPT.forward
    factor = 1.0

    def watched(self: CausalLM, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        nonlocal factor
        probe.module = self
        step, micro = self.trainer.global_step, batch_idx % self.trainer.accumulate_grad_batches
        if micro == 0:
            probe.windows[step] = []
        probe.windows[step] += batch.tolist()
        if (action := probe.actions.pop((step, micro), None)) is not None:
            action()
        factor = probe.factor(step, batch)
        try:
            return training_step(self, batch, batch_idx)
        finally:
            factor = 1.0

    def distorted(self: GPT, *args: Any, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = forward(self, *args, **kwargs)
        return out if factor == 1 else out * factor

    monkeypatch.setattr(CausalLM, "training_step", watched)
    monkeypatch.setattr(GPT, "forward", distorted)
    return probe


@pytest.fixture
def config() -> GPTConfig:
    return GPTConfig(vocab_size=300, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=64)


@pytest.fixture
def model(config: GPTConfig) -> GPT:
    """A small model whose weights are far from their start, so that its predictions are uneven."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.15)
            else:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def trained(shared_folder: Path) -> Path:
    """The folder lightning_logs of one tiny run, trained once for all tests."""
    from azllm_lightning.config.compose import compose
    from azllm_lightning.train import train

    folder = shared_folder / "trained"
    lock = Lock(shared_folder / "trained.lock")
    lock.wait("another worker trains the tiny run")
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if not folder.exists():
            unfinished = shared_folder / "unfinished"
            unfinished.mkdir()
            patch.setenv("AZLLM_DATA_DIR", str(shared_folder / "data"))
            patch.chdir(unfinished)
            train(compose(tiny_overrides()))
            unfinished.rename(folder)
    return folder / "lightning_logs"


@pytest.fixture
def tiny_run(trained: Path, tiny: list[str], tmp_path: Path) -> Path:
    """The folder of a trained tiny run in the current folder: a copy, which a test may spoil."""
    shutil.copytree(trained, tmp_path / "lightning_logs", symlinks=True)
    return Path("lightning_logs", "tiny", "version_0")


@pytest.fixture(autouse=True)
def _one_setting_for_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins in English, whatever language the one before it chose, and a command of ours
    begins with python, wherever the tests run.
    """
    monkeypatch.setenv("VIRTUAL_ENV", "active")
    monkeypatch.delenv("AZLLM_LANG", raising=False)
    use_language(None)
    yield
    use_language(None)
