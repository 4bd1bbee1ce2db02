"""What TensorBoard shows of a run: layout, row in the table of runs, config and machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from events import Finished, summaries, texts

from azllm_lightning.callbacks import tensorboard
from azllm_lightning.callbacks.interrupt import Interrupt
from azllm_lightning.callbacks.tensorboard import LAYOUT, METRICS, layout
from azllm_lightning.callbacks.throughput import peak_memory_bytes
from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.runs.commit import commit
from azllm_lightning.runs.curves import read_scalars
from azllm_lightning.training.causal_lm import CausalLM

Train = Callable[..., Path]
ONCE = ("custom_scalars__config__", "_hparams_/experiment", "_hparams_/session_start_info")
TEXTS = ("session/config/text_summary", "session/environment/text_summary")


def table(logs: Path) -> dict[str, dict[str, Any]]:
    """The rows of TensorBoard's HPARAMS tab, as its own code finds them: run -> settings and
    metrics."""
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


def test_each_chart_shows_the_curves_that_it_names(finished: Finished) -> None:
    others = ("val_loss_by_source/a", "val_loss_by_source/b", "diagnosis/dead")
    tags = {*read_scalars(finished.folder), *others}
    charts = {title: content[1] for row in LAYOUT.values() for title, content in row.items()}
    shown = {
        title: {tag for tag in tags for regex in found if re.match(regex, tag)}
        for title, found in charts.items()
    }
    assert list(shown.values()) == [
        {"train_loss", "val_loss", "diagnosis/dead"},
        {"generalization_gap"},
        {"val_loss_by_source/a", "val_loss_by_source/b"},
        {"train_ppl", "val_ppl"},
        {"val_bpb"},
        {"lr"},
        {"grad_norm"},
        {"tokens_per_sec"},
        {"peak_memory_gb"},
    ]


def test_no_chart_is_empty(finished: Finished) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    (content,) = [
        layout_pb2.Layout.FromString(value.tensor.string_val[0])
        for _, value in summaries(finished.folder)
        if value.tag == "custom_scalars__config__"
    ]
    tags = read_scalars(finished.folder)
    charts = [chart for category in content.category for chart in category.chart]
    assert len(charts) == 8  # the tales have one source
    for chart in charts:
        assert any(re.match(regex, tag) for regex in chart.multiline.tag for tag in tags), chart
    assert "val_loss by source" not in str(layout(1, True))
    assert "peak_memory_gb" not in str(layout(2, False))
    assert layout(2, True) == LAYOUT


def test_the_first_card_is_no_helper_of_the_table(finished: Finished) -> None:
    """TensorBoard sorts cards by tag."""
    tags = sorted(read_scalars(finished.folder))
    assert not tags[0].startswith(("best", "val_loss_best"))
    assert {"val_loss_best", "val_loss_best_step"} < set(tags)


def test_a_resume_that_ends_before_it_trains_loses_no_description(
    train_short: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Resumable):
        train_short(*stop_at(6))
    folder = Path("lightning_logs/tiny/version_0")
    before = [value.tag for _, value in summaries(folder) if value.tag in (*ONCE, *TEXTS)]
    assert sorted(before) == sorted((*ONCE, *TEXTS))

    def fail(*args: Any, **settings: Any) -> None:
        raise ValueError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.TensorBoard, "setup", fail)
        with pytest.raises(ValueError, match="out of luck"):
            train_short("ckpt_path=last")
    after = [value.tag for _, value in summaries(folder) if value.tag in (*ONCE, *TEXTS)]
    assert after == before


def test_the_page_says_how_to_read_it(finished: Finished) -> None:
    ((_, note),) = texts(finished.folder, "session/reading")
    assert "Smoothing" in note
    assert tensorboard.ADDRESS in note
    titles = [title for row in LAYOUT.values() for title in row]
    assert "Smoothing" in titles[0]
    assert any("log axis" in title for title in titles)
    assert tensorboard.ADDRESS in finished.out


def test_speed_and_memory_are_logged(finished: Finished) -> None:
    scalars = read_scalars(finished.folder)
    memory = scalars["peak_memory_gb"]
    assert list(memory) == list(range(2, 9))  # the first step is not measured
    assert 0.05 < memory[8] < 64
    assert list(scalars["tokens_per_sec"]) == list(scalars["mfu"]) == list(memory)
    ratios = [scalars["mfu"][step] / scalars["tokens_per_sec"][step] for step in memory]
    assert ratios == pytest.approx([ratios[0]] * 7, rel=1e-4)


def test_memory_is_that_of_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training on a CPU may come after one on a GPU, in the same notebook."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    assert peak_memory_bytes("cuda") == 5
    assert peak_memory_bytes("cpu") not in (5, 0)


def test_the_events_describe_the_run_once(finished: Finished) -> None:
    folder = finished.folder
    of_session = [
        (value.tag, step) for step, value in summaries(folder) if value.tag in (*ONCE, *TEXTS)
    ]
    assert sorted(of_session) == sorted((tag, 0) for tag in (*ONCE, *TEXTS))
    ((_, config),) = texts(folder, "session/config")
    assert yaml.safe_load(config) == yaml.safe_load(
        (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
    )
    ((_, environment),) = texts(folder, "session/environment")
    found = yaml.safe_load(environment)
    assert found["torch"] == torch.__version__
    assert found["cpu_threads"] == torch.get_num_threads()
    assert {"python", "lightning", "commit", "system"} <= found.keys()
    ((_, data),) = texts(folder, "session/data")
    assert yaml.safe_load(data).keys() == {
        "training_tokens",
        "block_size",
        "validation_windows",
        "all_validation_windows",
        "validation_text",
        "steps_per_pass",
        "steps_per_reading",
    }


def test_a_resume_and_a_fork_describe_the_run_once_and_as_it_is_now(train_short: Train) -> None:
    with pytest.raises(Resumable):
        train_short(*stop_at(6))
    stopped = table(Path("lightning_logs/tiny"))["version_0"]
    assert set(METRICS) <= stopped.keys()
    folder = train_short("ckpt_path=last", "optimizer.lr=1e-3")
    fork = train_short(f"ckpt_path={folder}/checkpoints/step_00000004.ckpt", "optimizer.lr=5e-4")
    assert fork != folder
    rows = table(folder.parent)
    for run, rate in ((folder, 1e-3), (fork, 5e-4)):
        of_session = [value.tag for _, value in summaries(run) if value.tag in (*ONCE, *TEXTS)]
        assert sorted(of_session) == sorted((*ONCE, *TEXTS))
        ((_, config),) = texts(run, "session/config")
        assert yaml.safe_load(config)["optimizer"]["lr"] == rate
        hparams = yaml.safe_load((run / "hparams.yaml").read_text(encoding="utf-8"))
        assert hparams["optimizer"]["lr"] == rate
        assert rows[run.name]["optimizer.lr"] == rate


def test_the_table_has_the_settings_and_the_last_and_best_losses(
    train_short: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = CausalLM.on_validation_epoch_end

    def worse_at_last(self: CausalLM) -> None:
        if self.trainer.global_step == 8:
            self.val_metric.nll += self.val_metric.tokens
        end(self)

    monkeypatch.setattr(CausalLM, "on_validation_epoch_end", worse_at_last)
    folder = train_short()
    row = table(folder.parent)[folder.name]
    scalars = read_scalars(folder)
    assert row["val_loss"] == pytest.approx(scalars["val_loss"][8])
    assert row["val_bpb"] == pytest.approx(scalars["val_bpb"][8])
    assert row["val_loss_best"] == pytest.approx(scalars["val_loss"][4])
    assert row["val_loss_best_step"] == 4
    settings = ("model.n_embd", "tokens", "data.name", "seed", "trainer.global_batch_size")
    assert [row[name] for name in settings] == [32, 8 * 4 * 32, "tales", 1234, 4]
    assert row["trainer.compile"] == "false"


def test_the_commit_is_that_of_this_code_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = sys.modules[commit.__module__]
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    inside = tmp_path / "venv" / "azllm_lightning" / "runs" / "commit.py"
    checkout = tmp_path / "azllm_lightning" / "runs" / "commit.py"
    for path in (inside, checkout):
        path.parent.mkdir(parents=True)
        path.touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([git, "-C", str(tmp_path), *command], check=True)
    head = subprocess.run(
        [git, "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, encoding="utf-8"
    )
    monkeypatch.setattr(code, "__file__", str(checkout))
    assert commit() == head.stdout[:12]
    # site-packages in the checkout of another project:
    monkeypatch.setattr(code, "__file__", str(inside))
    assert commit() is None
    monkeypatch.setattr(code, "__file__", str(checkout))
    monkeypatch.setenv("PATH", "")
    assert commit() is None
