"""Branches of a training: where they begin, what is kept of them, and how they are resumed."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from training_runs import (
    Crash,
    Probe,
    Uninterrupted,
    add_callback,
    assert_close,
    assert_same_end,
    curve,
    start,
    tiny_overrides,
)

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.compose import compose
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.formats.load import load
from azllm_lightning.model.gpt import GPT
from azllm_lightning.report.record import read_record
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.training import branches
from azllm_lightning.training.branches import Branches
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.schedule import (
    branching,
    long_enough,
    lr_factor,
    twice_as_long,
)

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]
Weights = dict[str, Tensor]

BRANCHED = (
    "schedule.branches=3",
    "trainer.max_steps=14",
    "trainer.val_every_steps=1",
    "model.dropout=0.1",
    "data.token_replacement=0.1",
    "trainer.micro_batch_size=2",
)
"""Branches of two steps each, which begin at the state after step 8 and end after 10, 12 and 14."""

START, ENDS = 8, (10, 12, 14)

QUICK = [((10, 0), "crash"), ((11, 1), "SIGTERM")]
"""Right before the second branch, and within it."""
THOROUGH = [((8, 1), "SIGTERM"), ((13, 0), "crash")]
"""Within the first and the third."""


def marks(stop: tuple[tuple[int, int], str]) -> list[pytest.MarkDecorator]:
    if stop in QUICK:
        return []
    return [pytest.mark.thorough if stop in THOROUGH else pytest.mark.slow]


def schedule(branches: int, total_steps: int) -> ScheduleConfig:
    return ScheduleConfig(
        name="linear",
        warmup_steps=3,
        total_steps=total_steps,
        decay_ratio=1.0,
        min_lr_ratio=0.0,
        branches=branches,
    )


def assert_equal(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def differ(left: Weights, right: Weights) -> bool:
    return any(not torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(("count", "total"), [(2, 960), (2, 13), (3, 14), (4, 1000), (16, 400)])
def test_each_branch_repeats_the_rates_of_the_first(count: int, total: int) -> None:
    plan = branching(count, total)
    assert plan is not None
    assert plan.start + count * plan.steps == total
    assert plan.steps == pytest.approx(0.2 * plan.first_end, abs=1)
    rates = [lr_factor(step, schedule(count, total)) for step in range(total)]
    alone = [lr_factor(step, schedule(1, plan.first_end)) for step in range(plan.first_end)]
    assert rates == alone + (count - 1) * alone[plan.start :]
    assert lr_factor(total, schedule(count, total)) == 0


@pytest.mark.parametrize(("count", "total"), [(1, 100), (2, 2), (5, 5)])
def test_one_branch_or_no_room_for_more_is_a_training_as_ever(count: int, total: int) -> None:
    assert branching(count, total) is None
    one = schedule(1, total)
    many = schedule(count, total)
    assert [lr_factor(s, one) for s in range(total)] == [lr_factor(s, many) for s in range(total)]


def test_long_enough_is_the_shortest_training_whose_branches_are_still_to_come() -> None:
    for count, step in itertools.product((2, 3, 7), (1, 8, 99, 800)):
        plan, shorter = (branching(count, long_enough(count, step) - less) for less in (0, 1))
        assert plan is not None
        assert plan.start >= step
        assert shorter is None or shorter.start < step


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_the_model_is_the_mean_of_what_the_branches_end_with(
    tied: bool, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = {}, {}
    moments: dict[int, list[Tensor]] = {}
    taken, completed = CausalLM.training_step, CausalLM.on_train_batch_end

    def weights(module: CausalLM) -> Weights:
        return {name: tensor.clone() for name, tensor in module.net.state_dict().items()}

    def take(self: CausalLM, batch: Tensor, batch_idx: int) -> Tensor:
        step = self.trainer.global_step
        if step not in before:
            before[step] = weights(self)
            state = self.trainer.optimizers[0].state_dict()["state"]
            moments[step] = [t.clone() for s in state.values() for t in s.values()]
        return taken(self, batch, batch_idx)

    def complete(self: CausalLM, *args: Any) -> None:
        if self.step_report is not None:
            after[self.trainer.global_step] = weights(self)
        completed(self, *args)

    monkeypatch.setattr(CausalLM, "training_step", take)
    monkeypatch.setattr(CausalLM, "on_train_batch_end", complete)
    folder = train_tiny(*BRANCHED, f"model.tie_embeddings={str(tied).lower()}")

    for step in ENDS[:-1]:  # a later branch goes back, and reads something else
        assert_equal(before[step], before[START])
        assert len(moments[step]) == len(moments[START]) > 0
        assert all(torch.equal(a, b) for a, b in zip(moments[step], moments[START], strict=True))
        assert differ(after[step + 2], after[START + 2])
    for step in set(range(1, 14)) - {10, 12}:  # validations leave no trace
        assert_equal(before[step], after[step])

    losses = curve(folder)["val_loss"]
    best = min((step for step in losses if step), key=lambda step: losses[step])
    ended = {10: [], 11: [10], 12: [10], 13: [10, 12], 14: [10, 12]}
    files = dict(step_files(folder / "checkpoints"))
    assert 14 in files
    for step, path in [*files.items(), (best, folder / "checkpoints" / "best.ckpt")]:
        of_branches = [after[other] for other in [*ended.get(step, []), step]]
        found, _ = load(path)
        for name, tensor in found.state_dict().items():
            expected = sum(weights[name] for weights in of_branches) / len(of_branches)
            torch.testing.assert_close(tensor, expected)
        assert tied == (found.lm_head.weight is found.model.embed_tokens.weight)
        assert validated(found) == pytest.approx(losses[step], abs=1e-5)


def validated(net: GPT) -> float:
    """val_loss of `net`, measured anew."""
    data = TokenDataModule(compose(tiny_overrides()).data, micro_batch_size=4)
    data.setup()
    with torch.no_grad():
        losses = [net(w[:, :-1], w[:, 1:], reduction="none") for w in data.val_dataloader()]
    return float(torch.cat(losses).mean())


STOPS = [(step, micro) for step in (7, 8, 9, 10, 11, 12, 13) for micro in (0, 1)]


@pytest.mark.parametrize(
    ("step", "micro", "how"),
    [
        pytest.param(*stop, how, marks=marks((stop, how)))
        for stop in STOPS
        for how in ("SIGTERM", "crash")
        if how == "crash" or stop[0] < 13  # a stop in the last step is its end
    ],
)
def test_a_resume_continues_the_branch(
    step: int, micro: int, how: str, uninterrupted: Straight, train_tiny: Train, probe: Probe
) -> None:
    straight = uninterrupted(*BRANCHED)
    if how == "crash":
        probe.crash(step, micro)
    else:
        probe.signal(step, signal.SIGTERM, micro)
    with pytest.raises(Crash if how == "crash" else Resumable):
        train_tiny(*BRANCHED, "trainer.checkpoint_every_steps=3")
    resumed = train_tiny("ckpt_path=last")
    assert_same_end(straight.folder, resumed)
    assert probe.windows == straight.windows


@pytest.mark.parametrize(
    "step",
    [pytest.param(8, marks=pytest.mark.thorough), pytest.param(10, marks=pytest.mark.thorough), 11],
)
def test_a_stop_during_a_validation_saves_the_branch_and_not_the_mean(
    step: int, uninterrupted: Straight, train_tiny: Train
) -> None:
    straight = uninterrupted(*BRANCHED)
    with pytest.raises(Resumable):
        train_tiny(*BRANCHED, *add_callback("TerminateInValidation", step=step, rank=0))
    assert step_files(Path("lightning_logs/tiny/version_0/checkpoints"))[0][0] == step
    assert_same_end(straight.folder, train_tiny("ckpt_path=last"))


@pytest.mark.thorough
def test_what_is_not_restored_is_noticed(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of this file."""
    straight = uninterrupted(*BRANCHED)
    probe.signal(11, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*BRANCHED)
    load_state = Branches.load

    def without_present(self: Branches, checkpoint: dict[str, Any], *args: Any) -> None:
        checkpoint["branches"]["present"] = {}
        load_state(self, checkpoint, *args)

    monkeypatch.setattr(Branches, "load", without_present)
    resumed = train_tiny("ckpt_path=last")
    with pytest.raises(AssertionError):
        assert_same_end(straight.folder, resumed)


def test_branches_that_would_have_begun_already_are_refused(train_tiny: Train) -> None:
    train_tiny("trainer.max_steps=10")
    longer = ["trainer.max_steps=12", "schedule.total_steps=12"]
    message = (
        r"^schedule\.branches=2: with 12 steps the branches begin after step 8, but this run is "
        r"already at step 10 and has none from there\. Set schedule\.branches=1, or "
        r"trainer\.max_steps and schedule\.total_steps to 14 or more$"
    )
    with pytest.raises(ValueError, match=message):
        train_tiny("ckpt_path=last", "schedule.branches=2", *longer)
    config = Path("lightning_logs/tiny/version_0/.hydra/config.yaml").read_text(encoding="utf-8")
    assert "branches: 1" in config, "a refusal changes nothing"
    as_said = ["trainer.max_steps=14", "schedule.total_steps=14"]
    folder = train_tiny("ckpt_path=last", "schedule.branches=2", *as_said)
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "step 12  branch 2 of 2 begins, from the state of step 10\n  from here on" in log
    (mark,) = [mark for mark in read_record(folder).marks if mark.kind == "branch"]
    begins, _, then = mark.text.partition("; ")
    assert (mark.step, begins) == (12, "Branch 2 of 2 begins, from the state of step 10")
    assert then == "from here on val_loss is that of the mean of the branches"


def test_branches_that_began_elsewhere_are_refused(train_tiny: Train) -> None:
    train_tiny(*BRANCHED)  # after step 8
    message = r"schedule\.branches=2: with 15 steps the branches begin after step 11, but"
    with pytest.raises(ValueError, match=message):
        train_tiny(
            "ckpt_path=last",
            "schedule.branches=2",
            "trainer.max_steps=15",
            "schedule.total_steps=15",
        )


@pytest.mark.thorough
def test_where_memory_ends_as_a_branch_begins_nothing_is_mixed(
    uninterrupted: Straight, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session starts again with half the micro-batch from a state that is of one branch."""
    same = ("model.dropout=0.0", "trainer.micro_batch_size=4", "data.token_replacement=0.0")
    straight = uninterrupted(*BRANCHED, *same)
    copy = branches._set_weights
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def fail_once(*args: Any) -> None:
        if failures:
            raise failures.pop()
        copy(*args)

    monkeypatch.setattr(branches, "_set_weights", fail_once)
    folder = train_tiny(*BRANCHED, *same)
    assert_close(curve(folder)["val_loss"], curve(straight.folder)["val_loss"])


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_a_longer_training_as_it_is_suggested_begins_its_branches_again(count: int) -> None:
    for steps in (18, 77, 755, 960):
        plan = branching(count, twice_as_long(count, steps))
        assert plan is None or plan.start >= steps
        assert (plan is None) == (count == 1)


@pytest.mark.thorough
@pytest.mark.parametrize("branched", [1, 3])
def test_a_longer_training_goes_on_from_the_mean(
    branched: int, train_tiny: Train, probe: Probe
) -> None:
    folder = train_tiny(*BRANCHED)
    net, _ = load(step_files(folder / "checkpoints")[0][1])
    present: Weights = {}
    probe.at(14, lambda: present.update(probe.weights()))
    longer = ["trainer.max_steps=40", "schedule.total_steps=40", f"schedule.branches={branched}"]
    train_tiny("ckpt_path=last", *longer)
    assert_equal(present, net.state_dict())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_file_is_validated_as_it_is_after_a_training_that_was_interrupted(
    tiny: list[str], train_tiny: Train
) -> None:
    other = step_files(train_tiny("trainer.max_steps=3") / "checkpoints")[0][1]
    module, data, trainer = plain([*tiny, *BRANCHED])

    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 12:
                raise Crash

    trainer.callbacks.append(Fails())
    with pytest.raises(Crash):
        trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, ckpt_path=other, verbose=False)
    net, _ = load(other)
    assert_equal(module.net.state_dict(), net.state_dict())


def plain(settings: list[str]) -> tuple[CausalLM, TokenDataModule, pl.Trainer]:
    """A module, its data, and a plain Trainer of 14 steps."""
    config = compose(settings)
    data = TokenDataModule(config.data, 4, config.seed)
    data.prepare_data()
    data.setup()
    shape = config.model.for_data(data.tokenizer.vocab_size, 32, data.tokenizer.eot_id)
    module = CausalLM(shape, config.optimizer, config.schedule)
    trainer = pl.Trainer(
        max_steps=14,
        val_check_interval=7,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    return module, data, trainer


def test_a_plain_trainer_leaves_the_mean_in_the_module(tiny: list[str]) -> None:
    module, data, trainer = plain([*tiny, *BRANCHED])
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint("end.ckpt")
    net, _ = load("end.ckpt")
    assert_equal(module.net.state_dict(), net.state_dict())
    val_loss = float(trainer.callback_metrics["val_loss"])
    for same, file in (
        (module, None),
        (CausalLM.load_from_checkpoint("end.ckpt"), None),
        (module, "end.ckpt"),
    ):
        again = trainer.validate(same, datamodule=data, ckpt_path=file, verbose=False)
        assert again[0]["val_loss"] == pytest.approx(val_loss, abs=1e-6)
        assert_equal(same.net.state_dict(), net.state_dict())


@pytest.mark.slow
def test_two_processes_have_the_branches_of_one(
    uninterrupted: Straight, tiny: list[str], tmp_path: Path
) -> None:
    """They have the same weights, so each goes back, and averages, by itself."""
    straight = uninterrupted(*BRANCHED, "model.dropout=0.0")  # each process has its own dropout
    settings = [*BRANCHED, "model.dropout=0.0", "trainer.devices=2", "trainer.strategy=ddp"]
    stop = add_callback("Terminate", step=11, rank=1)
    first = start([*tiny, *settings, *stop], tmp_path)
    first.join(300)
    output = tmp_path / "output"
    assert first.exitcode == 75, output.read_text(encoding="utf-8")
    folder = tmp_path / "lightning_logs" / "tiny" / "version_0"
    assert step_files(folder / "checkpoints")[0][0] == 12
    second = start(["run_name=tiny", "ckpt_path=last"], tmp_path)
    second.join(300)
    assert second.exitcode == 0, (second.exitcode, output.read_text(encoding="utf-8"))
    assert_close(curve(folder)["val_loss"], curve(straight.folder)["val_loss"])
