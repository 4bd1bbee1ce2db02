"""What TensorBoard is told of a run: the layout of its charts, its row in the table of runs, its config and machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from events import summaries, texts

from azllm_lightning.callbacks import tensorboard as board
from azllm_lightning.callbacks.interrupt import Interrupt
from azllm_lightning.callbacks.tensorboard import LAYOUT, METRICS
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.training.causal_lm import CausalLM

Train = Callable[..., Path]
ONCE = ("custom_scalars__config__", "_hparams_/experiment", "_hparams_/session_start_info")
TEXTS = ("session/config/text_summary", "session/environment/text_summary")


def table(logs: Path) -> dict[str, dict[str, Any]]:
    """The rows of TensorBoard's HPARAMS tab, as its own code finds them: run -> settings and metrics."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logs))
    multiplexer.Reload()
    context = backend_context.Context(
        TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logs)))
    )
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100)
    request.allowed_statuses.extend(api_pb2.Status.values())
    found = list_session_groups.Handler(RequestContext(), context, "", request).run()
    assert all(len(group.sessions) == 1 for group in found.session_groups)
    return {
        group.name: {
            key: value.number_value or value.string_value for key, value in group.hparams.items()
        }
        | {metric.name.tag: metric.value for metric in group.metric_values}
        for group in found.session_groups
    }


def stop_at(step: int, kill: bool = False) -> list[str]:
    target = f"{Interrupt.__module__}.Interrupt"
    return [
        f"+callbacks.stop.{pair}"
        for pair in (f"_target_={target}", f"step={step}", f"kill={str(kill).lower()}")
    ]


def test_each_chart_shows_the_curves_that_it_names(train_tiny: Train) -> None:
    tags = {*read_scalars(train_tiny()), "val_loss_by_source/a", "val_loss_by_source/b"}
    charts = {title: content[1] for row in LAYOUT.values() for title, content in row.items()}
    shown = {
        title: {tag for tag in tags for regex in found if re.match(regex, tag)}
        for title, found in charts.items()
    }
    assert list(shown.values()) == [
        {"train_loss", "val_loss"},
        {"generalization_gap"},
        {"val_loss_by_source/a", "val_loss_by_source/b"},
        {"train_ppl", "val_ppl"},
        {"val_bpb"},
        {"lr"},
        {"grad_norm"},
        {"tokens_per_sec"},
        {"peak_memory_gb"},
    ]


def test_memory_is_logged(train_tiny: Train) -> None:
    memory = read_scalars(train_tiny())["peak_memory_gb"]
    assert list(memory) == list(range(2, 9))  # the first step is not measured
    assert 0.05 < memory[8] < 64


def test_what_a_run_is_stands_in_its_events_once(train_tiny: Train) -> None:
    folder = train_tiny()
    of_session = [
        (value.tag, step) for step, value in summaries(folder) if value.tag in (*ONCE, *TEXTS)
    ]
    assert sorted(of_session) == sorted((tag, 0) for tag in (*ONCE, *TEXTS))
    ((_, config),) = texts(folder, "session/config")
    assert yaml.safe_load(config) == yaml.safe_load(
        (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
    )
    ((_, environment),) = texts(folder, "session/environment")
    told = yaml.safe_load(environment)
    assert told["torch"] == torch.__version__
    assert told["cpu_threads"] == torch.get_num_threads()
    assert {"python", "lightning", "commit", "system"} <= told.keys()


def test_resumes_and_forks_tell_it_once_and_as_it_is_now(train_tiny: Train) -> None:
    with pytest.raises(Resumable):
        train_tiny(*stop_at(3))
    with pytest.raises(Resumable):
        train_tiny("ckpt_path=last", "optimizer.lr=2e-3", *stop_at(6))
    folder = train_tiny("ckpt_path=last", "optimizer.lr=1e-3")
    fork = train_tiny(f"ckpt_path={folder}/checkpoints/step_00000004.ckpt", "optimizer.lr=5e-4")
    assert fork != folder
    for run, rate in ((folder, 1e-3), (fork, 5e-4)):
        of_session = [value.tag for _, value in summaries(run) if value.tag in (*ONCE, *TEXTS)]
        assert sorted(of_session) == sorted((*ONCE, *TEXTS))
        ((_, config),) = texts(run, "session/config")
        assert yaml.safe_load(config)["optimizer"]["lr"] == rate
        assert (
            yaml.safe_load((run / "hparams.yaml").read_text(encoding="utf-8"))["optimizer"]["lr"]
            == rate
        )
        assert table(folder.parent)[run.name]["optimizer.lr"] == rate
        assert [step for step, _ in texts(run, "samples")] == [0, 4, 8]


def test_the_table_has_a_row_a_run_with_what_it_has_so_far(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = CausalLM.on_validation_epoch_end

    def worse_at_last(self: CausalLM) -> None:
        if self.trainer.global_step == 8:
            self.val_metric.nll += self.val_metric.tokens
        end(self)

    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", worse_at_last)
    whole = train_tiny()
    with pytest.raises(Resumable):
        train_tiny(*stop_at(6))
    rows = table(whole.parent)
    assert rows.keys() == {"version_0", "version_1"}
    row, stopped, losses = rows["version_0"], rows["version_1"], read_scalars(whole)["val_loss"]
    assert row["val_loss"] == pytest.approx(losses[8])
    assert row["val_bpb"] == pytest.approx(read_scalars(whole)["val_bpb"][8])
    assert row["best_val_loss"] == pytest.approx(losses[4])
    assert row["best_step"] == 4
    assert (row["model.n_embd"], row["tokens"], row["data.name"], row["seed"]) == (
        32,
        8 * 4 * 32,
        "tales",
        1234,
    )
    assert row["trainer.compile"] == "false"
    assert stopped["val_loss"] == stopped["best_val_loss"] == pytest.approx(losses[4])
    assert set(METRICS) <= stopped.keys()


def test_the_commit_is_that_of_this_code_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    inside = tmp_path / "venv" / "azllm_lightning" / "callbacks" / "board.py"
    checkout = tmp_path / "azllm_lightning" / "callbacks" / "board.py"
    for path in (inside, checkout):
        path.parent.mkdir(parents=True)
        path.touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([git, "-C", str(tmp_path), *command], check=True)
    head = subprocess.run(
        [git, "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, encoding="utf-8"
    )
    monkeypatch.setattr(board, "__file__", str(checkout))
    assert board.commit() == head.stdout[:12]
    monkeypatch.setattr(
        board, "__file__", str(inside)
    )  # site-packages in another project's checkout
    assert board.commit() is None
    monkeypatch.setattr(board, "__file__", str(checkout))
    monkeypatch.setenv("PATH", "")
    assert board.commit() is None
