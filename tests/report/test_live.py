"""The page that train writes, and the verb that writes it again."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from run_folders import WriteRun
from seen import Seen
from training_runs import Probe

from azllm_lightning.callbacks.health import RollBack
from azllm_lightning.callbacks.history import History
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.compose import compose
from azllm_lightning.report import live
from azllm_lightning.report.__main__ import report
from azllm_lightning.report.page import page
from azllm_lightning.runs import atomic
from azllm_lightning.runs.paths import REPORT
from azllm_lightning.training.saving import AtomicCheckpointIO
from azllm_lightning.training.stopping import Stopped

Train = Callable[..., Path]


class Reader(Callback):
    """Keeps what the page of a run looked like at each step."""

    pages: dict[int, str] = {}  # noqa: RUF012

    def on_train_batch_start(self, trainer, module, batch, index) -> None:  # type: ignore[no-untyped-def]
        file = Path(trainer.loggers[0].log_dir) / REPORT
        if file.is_file():
            self.pages[trainer.global_step] = file.read_text(encoding="utf-8")


@pytest.fixture
def train_with_page(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train_tiny` with a real page, at every validation."""
    monkeypatch.setattr(live, "page", page)
    monkeypatch.setattr(live, "SHARE", 0.0)
    return train_tiny


@pytest.mark.thorough
def test_a_resumed_and_rolled_back_run_shows_it(
    train_with_page: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    Reader.pages.clear()
    reader = [f"+callbacks.reader._target_={Reader.__module__}.Reader"]
    stop = ["_target_=azllm_lightning.callbacks.interrupt.Interrupt", "step=5", "kill=false"]
    stop = [f"+callbacks.stop.{pair}" for pair in stop]
    samples = "callbacks.samples.max_new_tokens=2"
    with pytest.raises(Resumable):
        train_with_page(*reader, *stop, samples, "callbacks.health.patience=1")
    folder = Path("lightning_logs/tiny/version_0")
    assert "stopped" in Seen((folder / REPORT).read_text(encoding="utf-8")).text
    # At step 4 the page has the validation of step 4, and says that the run trains.
    while_training = Seen(Reader.pages[4])
    assert "training" in while_training.text
    assert while_training.chart("loss")["lines"][-1]["x"] == [0, 4]
    assert "What the model wrote" in while_training.text

    broken = iter([True])
    probe.factor = lambda step, batch: math.nan if step == 6 and next(broken, False) else 1.0
    assert train_with_page("ckpt_path=last") == folder
    assert f"page      {folder / REPORT}\n" in capsys.readouterr().out
    found = Seen((folder / REPORT).read_text(encoding="utf-8"))
    flags = [(flag["x"], flag["title"]) for flag in found.chart("loss")["flags"]]
    assert sorted(flags) == [(5, "resumed"), (5, "rolled back")]
    assert "done" in found.text
    assert "100 % step 8 of 8" in found.text
    assert "Non-finite loss or gradient in step 7" in found.text
    assert found.chart("loss")["lines"][0]["x"] == list(range(1, 9))


def test_a_rollback_is_no_end_and_the_last_of_too_many_is_one(
    train_with_page: Train, probe: Probe
) -> None:
    Reader.pages.clear()
    reader = [f"+callbacks.reader._target_={Reader.__module__}.Reader"]
    health = ["callbacks.health.patience=1", "callbacks.health.max_rollbacks=1"]
    probe.factor = lambda step, batch: math.nan if step >= 5 else 1.0
    with pytest.raises(ValueError, match="the same happened after 1 rollback"):
        train_with_page(*reader, *health)
    # The second fit begins at step 4 with what the first one's page said after its exception.
    again = Seen(Reader.pages[4])
    assert "● training" in again.text
    assert 5 in again.chart("loss")["lines"][0]["x"]
    assert "ckpt_path=last" not in again.text
    ended = Seen(Path("lightning_logs/tiny/version_0", REPORT).read_text(encoding="utf-8")).text
    assert "▲ unfinished" in ended
    assert "ckpt_path=last" in ended


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trainer whose logger has written everything."""
    writer = SimpleNamespace(flush=lambda: None)
    monkeypatch.setattr(live, "writers", lambda trainer: [writer])
    return SimpleNamespace(is_global_zero=True)


def live_page(folder: Path) -> live.LivePage:
    return live.LivePage(folder, History(AtomicCheckpointIO()))


def test_a_page_that_fails_is_one_warning(
    write_run: WriteRun, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(record: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(live, "page", fails)
    warnings: list[str] = []
    monkeypatch.setattr(live.log, "warning", warnings.append)
    page_of = live_page(write_run())
    page_of.write_last(trainer)
    page_of.on_exception(trainer, None, ValueError())  # type: ignore[arg-type]
    assert [text.count("no ink") for text in warnings] == [1]
    assert not (page_of.folder / REPORT).exists()


@pytest.mark.parametrize(
    ("error", "is_training"),
    [
        (RollBack(3, 5), True),
        (torch.OutOfMemoryError(), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("wrong shape"), False),
        (Stopped("Ctrl+C"), False),
    ],
    ids=repr,
)
def test_only_what_another_fit_follows_is_no_end(
    error: BaseException,
    is_training: bool,
    write_run: WriteRun,
    trainer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bool] = []
    monkeypatch.setattr(live, "page", lambda record: written.append(record.is_training) or "")
    live_page(write_run()).on_exception(trainer, None, error)  # type: ignore[arg-type]
    assert written == [is_training]


def test_without_curves_there_is_no_page(trainer: Any, tmp_path: Path) -> None:
    live_page(tmp_path).write_last(trainer)
    assert not (tmp_path / REPORT).exists()


def test_only_the_first_process_writes(write_run: WriteRun) -> None:
    page_of = live_page(write_run())
    page_of.write_last(SimpleNamespace(is_global_zero=False))  # type: ignore[arg-type]
    assert not (page_of.folder / REPORT).exists()


def test_validations_within_a_second_do_not_each_write_a_page(
    write_run: WriteRun, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    monkeypatch.setattr(live, "page", lambda record: written.append(record.is_training) or "")
    page_of = live_page(write_run())
    monkeypatch.setattr(live, "SHARE", 1e6)
    for _ in range(3):
        page_of.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert written == []
    monkeypatch.setattr(live, "SHARE", 0.0)
    page_of.on_validation_end(trainer, None)  # type: ignore[arg-type]
    page_of.write_last(trainer)
    assert written == [True, False]


def test_the_verb_writes_one_run_or_several(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(compose([], "report")) == tiny_run / "report.html"
    assert "written to" in capsys.readouterr().out
    assert Seen((tiny_run / "report.html").read_text(encoding="utf-8")).chart("loss")["lines"]
    # One run under two names is one run.
    out = report(compose(["run_name=[tiny,tiny/version_0]", "out=s.html", "lang=az"], "report"))
    assert "addım" in Seen(out.read_text(encoding="utf-8")).text
    for names in ("run_name=yox", "run_name=[tiny,yox]"):
        with pytest.raises(ValueError, match="run_name=yox"):
            report(compose([names], "report"))
    with pytest.raises(ValueError, match="run_name"):
        compose(["run_name=[]"], "report")
    with pytest.raises(ValueError, match=r"out=yox/s\.html: there is no folder"):
        report(compose(["out=yox/s.html"], "report"))
    (tiny_run / "report.html").unlink()
    (tiny_run / "report.html").mkdir()
    with pytest.raises(ValueError, match=r"report\.html exists and is not a file of report"):
        report(compose([], "report"))
    (tiny_run / "report.html").rmdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(atomic, "write_text", full)
    with pytest.raises(OSError, match="set out=FILE"):
        report(compose([], "report"))


def test_the_page_of_runs_replaces_only_a_page(tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "lightning_logs/o/version_0")
    names = "run_name=[tiny,o]"
    for folder, typed in ((tiny_run, "run_name=tiny"), (Path("lightning_logs"), names)):
        for _ in range(2):  # the second time over the first page
            report(compose([typed], "report"))
        (folder / "report.html").write_text("<p>mənim", encoding="utf-8")
        with pytest.raises(ValueError, match=r"report\.html exists and is not a file of report"):
            report(compose([typed], "report"))
        assert (folder / "report.html").read_text(encoding="utf-8") == "<p>mənim"
