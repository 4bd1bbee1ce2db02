"""The micro-batch that fits, what becomes of a run whose memory runs out, and how often a step waits for the device."""

from __future__ import annotations

import itertools
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import Crash, Probe, assert_same_end, curve, final_state, raw_points

from azllm_lightning.cli.entrance import Resumable, compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.session.build import check
from azllm_lightning.train import train
from azllm_lightning.training import batch as micro_batch
from azllm_lightning.training import hardware
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.muon import MuonAdamW
from azllm_lightning.training.saving import PeriodicCheckpoint

Train = Callable[..., Path]
MODEL = GPTConfig(300, 32, n_layer=2, n_head=2, n_embd=32)
ADAMW = OptimizerConfig("adamw", lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def config(size: int, accumulate: int) -> dict[str, Any]:
    return {"data": {"batch_size": size}, "trainer": {"accumulate_grad_batches": accumulate}}


def batch_of(values: dict[str, Any]) -> tuple[int, int]:
    return values["data"]["batch_size"], values["trainer"]["accumulate_grad_batches"]


def stored(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(
        (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
    )
    return values


def assert_close(ours: dict[int, float], theirs: dict[int, float]) -> None:
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-5, rel=0)


# --- data.batch_size=auto ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "size"), [(1, 1), (2, 2), (5, 4), (47, 24), (48, 48), (1000, 48)])
def test_the_largest_divisor_that_fits_is_taken(most: int, size: int) -> None:
    asked = []

    def fits(candidate: int) -> bool:
        asked.append(candidate)
        return candidate <= most

    assert micro_batch.largest_that_fits(48, fits) == size
    assert asked == sorted(asked)
    assert all(48 % candidate == 0 for candidate in asked)


def test_a_model_that_never_fits_is_told() -> None:
    with pytest.raises(ValueError, match=r"not even one window.*model=.*data\.block_size"):
        micro_batch.largest_that_fits(48, lambda size: False)


def test_a_gpu_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is found by running out of memory, or by how little stays free."""
    forward, free = GPT.forward, 0.5

    def small(self: GPT, input_ids: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError
        out: torch.Tensor = forward(self, input_ids, *args, **settings)
        return out

    monkeypatch.setattr(GPT, "forward", small)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * 1000, 1000))
    fits = micro_batch.trial(MODEL, ADAMW, "32-true", "cpu")
    assert [fits(size) for size in (1, 4, 8, 2)] == [True, True, False, True]
    free = 0.09
    assert not fits(1)


def test_a_cpu_gets_what_a_bounded_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    net, window = GPT(MODEL), torch.zeros((1, 32), dtype=torch.long)
    state = torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = net.hidden(window)
    weights = sum(kept.get(p.untyped_storage().data_ptr(), 0) for p in net.parameters())
    told = micro_batch.activation_bytes(MODEL)
    assert told == pytest.approx(sum(kept.values()) - weights, rel=0.3), alive.shape
    assert torch.equal(torch.get_rng_state(), state)
    for room, expected in ((100, (24, 2)), (10.5, (8, 6)), (0.1, (1, 48))):
        monkeypatch.setattr(micro_batch, "CPU_BYTES", int(room * told) if room < 100 else 30 * told)
        assert (
            batch_of(micro_batch.fitted(config(12, 4), "cpu", MODEL, ADAMW, "32-true")) == expected
        )


def test_auto_keeps_the_windows_of_each_step_and_is_settled(
    tiny: list[str], train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_tiny("trainer.accumulate_grad_batches=2")
    order = dict(probe.windows)
    probe.windows.clear()
    probe.crash(5)
    with pytest.raises(Crash):
        train_tiny("trainer.accumulate_grad_batches=2", "data.batch_size=auto")
    folder = straight.with_name("version_1")
    assert batch_of(stored(folder)) == (8, 1)
    monkeypatch.setattr(micro_batch, "activation_bytes", lambda model: micro_batch.CPU_BYTES // 2)
    train_tiny("ckpt_path=last", "data.batch_size=auto")
    assert batch_of(stored(folder)) == (2, 4)
    assert probe.windows == order
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight)[tag], curve(folder)[tag])


def test_auto_that_has_no_number_beneath_is_told(tiny: list[str]) -> None:
    asked = compose([*tiny, "data.batch_size=auto"])
    with pytest.raises(
        ValueError, match=r"data\.batch_size=auto keeps the windows .* train\(compose"
    ):
        train(asked)
    devices = ["data.batch_size=auto", "trainer.devices=2"]
    with pytest.raises(ValueError, match=r"trainer\.devices=2 set data\.batch_size to a number"):
        train(compose([*tiny, *devices]), [*tiny, *devices])


# --- out of memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [((12, 4), (6, 8)), ((3, 16), (1, 48)), ((6, 1), (3, 2)), ((5, 4), (2, 10)), ((2, 1), (1, 2))],
)
def test_half_a_micro_batch_keeps_the_effective_one(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    assert batch_of(micro_batch.halved(config(*before), 1)) == after


def test_what_cannot_be_halved_is_told_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"data\.batch_size=1, the smallest there is: .*model=.*data\.block_size"
    ):
        micro_batch.halved(config(1, 48), 1)
    with pytest.raises(
        ValueError,
        match=r"data\.batch_size=12, and a run on 2 devices .*resume with data\.batch_size=6",
    ):
        micro_batch.halved(config(12, 2), 2)


def narrow(probe: Probe, first_step: int, most: int) -> None:
    """From `first_step` on, training on more than `most` windows at a time runs out of memory."""
    failed: list[weakref.ref[CausalLM]] = []

    def factor(step: int, batch: torch.Tensor) -> float:
        assert not any(module() for module in failed), (
            "the network of a fit that is over is still held"
        )
        if step >= first_step and len(batch) > most:
            failed.append(weakref.ref(probe.module))
            del probe.module
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 1.0

    probe.factor = factor


def test_a_run_goes_on_in_less_memory_and_loses_no_step(
    train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "data.batch_size=8",
        "trainer.accumulate_grad_batches=2",
        "trainer.checkpoint_every_steps=100",
    ]
    straight = train_tiny(*settings)
    order = dict(probe.windows)
    probe.windows.clear()
    narrow(probe, 3, most=2)
    probe.at(2, lambda: probe.at(2, lambda: pytest.fail("a step was taken twice")))
    capsys.readouterr()
    narrowed = train_tiny(*settings)
    probe.actions.clear()
    told = capsys.readouterr().err
    assert told.count("the memory ran out after step 3") == 2
    assert "micro-batches of 2, 8 of them a step" in told
    assert probe.windows == order
    for tag in ("train_loss", "val_loss", "tokens_seen", "lr"):
        assert_close(curve(straight)[tag], curve(narrowed)[tag])
    points = raw_points(narrowed)
    assert len(points) == len(set(points))
    assert [at for tag, at in points if tag == "train_loss"] == list(range(1, 9))
    assert batch_of(stored(narrowed)) == (2, 8)
    saved = torch.load(step_files(narrowed / "checkpoints")[0][1], weights_only=True)
    assert batch_of(yaml.safe_load(saved["azllm"]["config"])) == (2, 8)
    summary = yaml.safe_load((narrowed / "summary.json").read_text(encoding="utf-8"))
    assert (summary["steps"], summary["status"], summary["resumed_from"]) == (8, "done", [])

    # Stopped after that and resumed, it ends bit for bit the same.
    probe.signal(6, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*settings)
    assert_same_end(narrowed, train_tiny("ckpt_path=last"))


@pytest.mark.parametrize("step", [4, 8])
def test_memory_that_runs_out_in_a_validation(
    step: int, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation is repeated, not the step before it; but after the last step none would be, without a step."""
    straight = train_tiny()
    order = dict(probe.windows)
    validation_step = CausalLM.validation_step

    def narrowed(self: CausalLM, batch: torch.Tensor, batch_idx: int) -> None:
        if self.trainer.global_step == step and len(batch) > 2:
            probe.at(3, lambda: pytest.fail("the step before was taken twice"))
            raise torch.OutOfMemoryError
        validation_step(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "validation_step", narrowed)
    folder = train_tiny()
    assert batch_of(stored(folder)) == (2, 2)
    assert probe.windows == order
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight)[tag], curve(folder)[tag])


@pytest.mark.parametrize(("step", "saved"), [(0, -1), (2, -1), (5, 4)])
def test_an_optimizer_that_fails_half_way_goes_back_to_the_newest_file(
    step: int, saved: int, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_tiny()
    order, again = dict(probe.windows), []
    optimizer_step, failed = MuonAdamW.step, []

    def half(self: MuonAdamW, closure: Any = None) -> Any:
        loss = optimizer_step(self, closure)
        if probe.module.trainer.global_step == step and not failed:
            failed.append(step)
            for first in range(8):
                probe.at(first, lambda first=first: again.append(first))
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(MuonAdamW, "step", half)
    folder = train_tiny()
    assert again == list(range(max(0, saved), 8))
    assert probe.windows == order
    points = raw_points(folder)
    assert len(points) == len(set(points))
    assert [at for tag, at in points if tag == "train_loss"] == list(range(1, 9))
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight)[tag], curve(folder)[tag])
    assert final_state(folder)["/TokenDataModule/global_batch_size"] == 4


def test_a_disk_that_is_full_as_well_costs_steps_but_not_the_run(
    train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_tiny()
    monkeypatch.setattr(PeriodicCheckpoint, "save", lambda self, trainer: None)
    narrow(probe, 3, most=2)
    folder = train_tiny()
    assert_close(curve(straight)["train_loss"], curve(folder)["train_loss"])


def test_one_window_that_does_not_fit_ends_the_run_with_a_message(
    train_tiny: Train, probe: Probe
) -> None:
    narrow(probe, 3, most=0)
    with pytest.raises(ValueError, match=r"data\.batch_size=1, the smallest there is"):
        train_tiny()


# --- one wait a step --------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: values read by the host, and values that the host puts on the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0

        def counted(original: Any, device_only: bool = False) -> Any:
            def call(*args: Any, **settings: Any) -> Any:
                self.count += not device_only or settings.get("device") is not None
                return original(*args, **settings)

            return call

        for name in ("tolist", "numpy", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        monkeypatch.setattr(torch, "tensor", counted(torch.tensor, device_only=True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_step_waits_once_for_the_device(
    precision: str, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four micro-batches, clipped and logged, under fp16 with the scaler's check: one wait."""
    monkeypatch.setattr(hardware, "resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr(hardware, "peak_flops", lambda device, precision: 1e12)
    quiet = [f"trainer.{key}_every_steps=100" for key in ("val", "checkpoint")]
    waits, counts, training_step = Waits(monkeypatch), [], CausalLM.training_step

    def counted(self: CausalLM, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx % 4 == 0:
            counts.append(waits.count)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "training_step", counted)
    with waits:
        train_tiny(
            "trainer.accumulate_grad_batches=4",
            "data.batch_size=1",
            f"trainer.precision={precision}",
            *quiet,
        )
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert steps == [1] * 7


def test_batches_are_pinned_and_sent_without_waiting(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TokenDataModule(check(compose(tiny)).data)
    data.setup()
    for device in ("cuda", "cpu"):
        strategy = SimpleNamespace(root_device=torch.device(device))
        trainer: Any = SimpleNamespace(
            global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=1, strategy=strategy
        )
        data.trainer = trainer
        assert (
            data.train_dataloader().pin_memory
            == data.val_dataloader().pin_memory
            == (device == "cuda")
        )
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, **settings: told.update(settings) or self
    )
    data.transfer_batch_to_device(torch.zeros(2, 33), torch.device("cuda"), 0)
    assert told == {"non_blocking": True}
