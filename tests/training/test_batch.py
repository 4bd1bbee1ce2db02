"""The micro-batch that fits, what happens when memory runs out, and how often a step waits for the
device.
"""

from __future__ import annotations

import errno
import itertools
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import (
    Crash,
    Probe,
    Uninterrupted,
    assert_close,
    assert_same_end,
    curve,
    raw_points,
)

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.cli.memory import is_out_of_memory
from azllm_lightning.config.compose import compose
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.train import train
from azllm_lightning.training import batch as micro_batch
from azllm_lightning.training import hardware
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.muon import MuonAdamW
from azllm_lightning.training.saving import PeriodicCheckpoint
from azllm_lightning.training.teachers import Teachers

Train = Callable[..., Path]
Straight = Callable[..., Uninterrupted]
MODEL = GPTConfig(vocab_size=300, block_size=32, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def settled() -> RunConfig:
    """A config whose shape and precision are known; its batch sizes are the test's to choose."""
    config = compose(["optimizer=adamw", "trainer.precision=32-true"])
    return replace(config, model=MODEL)


def with_batch(config: RunConfig, global_batch: int, micro: int | str = "auto") -> RunConfig:
    sizes = {"global_batch_size": global_batch, "micro_batch_size": micro}
    return replace(config, trainer=replace(config.trainer, **sizes))


def stored_micro_batch(folder: Path) -> int:
    text = (folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")
    size: int = yaml.safe_load(text)["trainer"]["micro_batch_size"]
    return size


@pytest.mark.parametrize(("most", "size"), [(1, 1), (2, 2), (5, 4), (47, 24), (48, 48), (1000, 48)])
def test_the_largest_divisor_that_fits_is_chosen(most: int, size: int) -> None:
    tried = []

    def fits(candidate: int) -> bool:
        tried.append(candidate)
        return candidate <= most

    assert micro_batch.largest_that_fits(48, fits) == size
    assert tried == sorted(tried)
    assert all(48 % candidate == 0 for candidate in tried)


def test_a_model_that_never_fits_is_reported() -> None:
    with pytest.raises(ValueError, match=r"not even one sequence.*model=.*data\.block_size"):
        micro_batch.largest_that_fits(48, lambda size: False)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError("out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_memory_that_ran_out_is_recognized(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not_mistaken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.fixture
def half_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that always has half of its memory free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (500, 1000))


def steps_that_take(seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock by which a step on a micro-batch of `size` takes `seconds(size)`."""
    forward, now = GPT.forward, 0.0

    def timed(self: GPT, input_ids: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        nonlocal now
        now += seconds(len(input_ids))
        out: torch.Tensor = forward(self, input_ids, *args, **settings)
        return out

    monkeypatch.setattr(GPT, "forward", timed)
    return lambda: now


@pytest.mark.parametrize("error", NO_MEMORY[:-1], ids=repr)
def test_a_gpu_is_tried_out(
    error: Exception, settled: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit runs out of memory, or leaves too little free."""
    free = 0.5

    def seconds(size: int) -> float:
        if size > 4:
            raise error
        return float(size)

    clock = steps_that_take(seconds, monkeypatch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * 1000, 1000))
    fits = micro_batch.trial(settled, "cpu", clock)
    assert [fits(size) for size in (1, 4, 8, 2)] == [True, True, False, True]
    free = 0.09
    assert not fits(1)


def test_teachers_take_part_in_a_trial(settled: RunConfig, half_free: None) -> None:
    """What they need has to fit, too."""
    seen = []

    class Recorded(Teachers):
        def __init__(self) -> None:
            self.nets = []

        def losses(self, student: GPT, inputs: Tensor, labels: Tensor) -> Tensor:
            seen.append(len(inputs))
            return torch.stack((student(inputs, labels), torch.zeros(())))

    fits = micro_batch.trial(settled, "cpu", teachers=Recorded())
    assert fits(2)
    assert seen == [2, 2]


def test_a_trial_does_not_hide_other_errors(
    settled: RunConfig, half_free: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(size: int) -> float:
        raise RuntimeError("CUDA error: device-side assert triggered")

    fits = micro_batch.trial(settled, "cpu", steps_that_take(seconds, monkeypatch))
    with pytest.raises(RuntimeError, match="device-side"):
        fits(1)


def test_a_model_that_does_not_fit_on_the_gpu_fits_with_no_micro_batch(
    settled: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: GPT, device: str) -> GPT:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(GPT, "to", refused)
    assert not micro_batch.trial(settled, "cpu")(1)


@pytest.mark.parametrize(
    ("per_sequence", "fitting"),
    [
        ({1: 9, 2: 5, 4: 3, 8: 2, 16: 2}, [1, 2, 4, 8, 16]),
        ({1: 9, 2: 5, 4: 3, 8: 6, 16: 7}, [1, 2, 4, 8, 16]),  # slower, but on the GPU
        ({1: 9, 2: 5, 4: 3, 8: 30, 16: 60}, [1, 2, 4]),
    ],
)
def test_what_spills_into_the_memory_of_the_host_does_not_fit(
    per_sequence: dict[int, float],
    fitting: list[int],
    settled: RunConfig,
    half_free: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows raises no error: a sequence only takes many times as long."""
    clock = steps_that_take(lambda size: size * per_sequence[size], monkeypatch)
    fits = micro_batch.trial(settled, "cpu", clock)
    assert [size for size in per_sequence if fits(size)] == fitting


def test_a_cpu_gets_what_a_bounded_memory_holds(
    settled: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    net, window = GPT(MODEL), torch.zeros((1, 32), dtype=torch.long)
    state = torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = net.hidden(window)
    weights = sum(kept.get(p.untyped_storage().data_ptr(), 0) for p in net.parameters())
    computed = micro_batch.activation_bytes(MODEL)
    assert computed == pytest.approx(sum(kept.values()) - weights, rel=0.3), alive.shape
    assert torch.equal(torch.get_rng_state(), state)
    for sequences, size in ((30, 24), (10.5, 8), (0.1, 1)):
        monkeypatch.setattr(micro_batch, "CPU_BYTES", int(sequences * computed))
        assert micro_batch.largest_micro_batch(with_batch(settled, 48), "cpu", devices=1) == size
        assert micro_batch.largest_micro_batch(with_batch(settled, 96), "cpu", devices=2) == size


def test_auto_keeps_the_windows_of_each_step_and_is_stored_as_a_number(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = uninterrupted("trainer.micro_batch_size=1")
    probe.crash(5)
    with pytest.raises(Crash):
        train_tiny()
    folder = Path("lightning_logs/tiny/version_0")
    assert stored_micro_batch(folder) == 4
    monkeypatch.setattr(micro_batch, "activation_bytes", lambda model: micro_batch.CPU_BYTES // 2)
    train_tiny("ckpt_path=last", "trainer.micro_batch_size=auto")
    assert stored_micro_batch(folder) == 2
    assert probe.windows == straight.windows
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight.folder)[tag], curve(folder)[tag])


@pytest.mark.parametrize(
    ("global_batch", "micro", "devices", "accumulation"),
    [(48, 12, 1, 4), (48, 12, 2, 2), (5, 5, 1, 1)],
)
def test_accumulation_makes_up_the_global_batch(
    global_batch: int, micro: int, devices: int, accumulation: int, settled: RunConfig
) -> None:
    config = with_batch(settled, global_batch, micro).trainer
    assert micro_batch.accumulation(config, devices) == accumulation


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "trainer.micro_batch_size=3",
            r"micro_batch_size=3 does not divide the 4 .*: 1, 2, 4, or auto",
        ),
        ("trainer.devices=3", r"global_batch_size=4 is not divisible by the number of devices, 3"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused_before_a_folder_is_made(
    typed: str, message: str, tiny: list[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        train(compose([*tiny, typed]))
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("share", "before", "after"), [(48, 12, 6), (48, 3, 1), (6, 6, 3), (20, 5, 2), (2, 2, 1)]
)
def test_a_halved_micro_batch_divides_the_same_global_batch(
    share: int, before: int, after: int, settled: RunConfig
) -> None:
    halved = micro_batch.halved(with_batch(settled, share, before), devices=1)
    assert halved == with_batch(settled, share, after)
    halved = micro_batch.halved(with_batch(settled, 2 * share, before), devices=2)
    assert halved == with_batch(settled, 2 * share, after)


def test_what_cannot_be_halved_is_reported_with_the_way_out(settled: RunConfig) -> None:
    message = r"micro_batch_size=1, the smallest possible: .*model=.*data\.block_size"
    with pytest.raises(ValueError, match=message):
        micro_batch.halved(with_batch(settled, 48, 1), devices=1)


def narrow(probe: Probe, first_step: int, most: int, error: Exception = NO_MEMORY[0]) -> None:
    """From `first_step` on, training on more than `most` windows at a time runs out of memory."""
    failed: list[weakref.ref[CausalLM]] = []

    def factor(step: int, batch: torch.Tensor) -> float:
        held = [module for module in failed if module()]
        assert not held, "the network of a fit that is over is still held"
        if step >= first_step and len(batch) > most:
            failed.append(weakref.ref(probe.module))
            del probe.module
            raise type(error)(*error.args)
        return 1.0

    probe.factor = factor


@pytest.mark.thorough
def test_a_run_continues_in_less_memory_and_loses_no_step(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["trainer.global_batch_size=8", "trainer.checkpoint_every_steps=100"]
    straight = uninterrupted(*overrides)
    narrow(probe, 3, most=2)
    probe.at(2, lambda: probe.at(2, lambda: pytest.fail("a step was taken twice")))
    capsys.readouterr()
    narrowed = train_tiny(*overrides, "trainer.micro_batch_size=8")
    probe.actions.clear()
    warnings = " ".join(capsys.readouterr().err.split())
    assert warnings.count("out of memory after step 3") == 2
    assert "trainer.micro_batch_size=2 (4 micro-batches per step" in warnings
    assert "model.dropout" not in warnings
    assert probe.windows == straight.windows
    for tag in ("train_loss", "val_loss", "tokens_seen", "lr"):
        assert_close(curve(straight.folder)[tag], curve(narrowed)[tag])
    assert_each_step_is_logged_once(narrowed)
    assert stored_micro_batch(narrowed) == 2
    saved = torch.load(step_files(narrowed / "checkpoints")[0][1], weights_only=True)
    assert yaml.safe_load(saved["azllm"]["config"])["trainer"]["micro_batch_size"] == 2
    assert saved["TokenDataModule"]["global_batch_size"] == 8
    summary = yaml.safe_load((narrowed / "summary.json").read_text(encoding="utf-8"))
    assert (summary["steps"], summary["status"], summary["resumed_from"]) == (8, "done", [])

    # Stopped after that and resumed, its end is bit for bit the same.
    probe.signal(6, signal.SIGTERM)
    with pytest.raises(Resumable):
        train_tiny(*overrides, "trainer.micro_batch_size=8")
    assert_same_end(narrowed, train_tiny("ckpt_path=last"))


def test_a_run_with_dropout_learns_that_less_memory_changes_its_losses(
    train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(probe, 1, most=2)
    train_tiny("model.dropout=0.1", "trainer.micro_batch_size=4", "trainer.max_steps=2")
    warnings = " ".join(capsys.readouterr().err.split())
    assert "model.dropout=0.1 is drawn for each micro-batch: the losses will differ" in warnings


def assert_each_step_is_logged_once(folder: Path) -> None:
    points = raw_points(folder)
    assert len(points) == len(set(points))
    assert [at for tag, at in points if tag == "train_loss"] == list(range(1, 9))


@pytest.mark.parametrize("step", [4, 8])
def test_memory_that_runs_out_in_a_validation(
    step: int,
    uninterrupted: Straight,
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the validation is repeated, not the step before it. Except after the last step: no
    validation would follow there without a step.
    """
    straight = uninterrupted()
    validation_step = CausalLM.validation_step

    def narrowed(self: CausalLM, batch: torch.Tensor, batch_idx: int) -> None:
        if self.trainer.global_step == step and len(batch) > 2:
            probe.at(3, lambda: pytest.fail("the step before was taken twice"))
            raise torch.OutOfMemoryError
        validation_step(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "validation_step", narrowed)
    folder = train_tiny()
    assert stored_micro_batch(folder) == 2
    assert probe.windows == straight.windows
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight.folder)[tag], curve(folder)[tag])


@pytest.mark.parametrize(
    ("step", "saved"),
    [
        pytest.param(0, -1, marks=pytest.mark.thorough),
        (2, -1),
        pytest.param(5, 4, marks=pytest.mark.thorough),
    ],
)
def test_an_optimizer_that_fails_half_way_goes_back_to_the_newest_file(
    step: int,
    saved: int,
    uninterrupted: Straight,
    train_tiny: Train,
    probe: Probe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = uninterrupted()
    repeated: list[int] = []
    optimizer_step, failed = MuonAdamW.step, []

    def half(self: MuonAdamW, closure: Any = None) -> Any:
        loss = optimizer_step(self, closure)
        if probe.module.trainer.global_step == step and not failed:
            failed.append(step)
            for first in range(8):
                probe.at(first, lambda first=first: repeated.append(first))
            raise torch.OutOfMemoryError
        return loss

    monkeypatch.setattr(MuonAdamW, "step", half)
    folder = train_tiny()
    assert repeated == list(range(max(0, saved), 8))
    assert probe.windows == straight.windows
    assert_each_step_is_logged_once(folder)
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight.folder)[tag], curve(folder)[tag])


def test_a_full_disk_as_well_costs_steps_but_not_the_run(
    uninterrupted: Straight, train_tiny: Train, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeriodicCheckpoint, "save", lambda self, trainer: None)
    narrow(probe, 3, most=2)
    folder = train_tiny()
    assert_close(curve(uninterrupted().folder)["train_loss"], curve(folder)["train_loss"])


def test_one_sequence_that_does_not_fit_ends_the_run_with_a_message(
    train_tiny: Train, probe: Probe
) -> None:
    narrow(probe, 3, most=0)
    with pytest.raises(ValueError, match=r"trainer\.micro_batch_size=1, the smallest possible"):
        train_tiny()


@pytest.mark.parametrize(
    "error",
    [NO_MEMORY[1], *(pytest.param(NO_MEMORY[i], marks=pytest.mark.thorough) for i in (5, -2))],
    ids=repr,
)
def test_a_run_continues_after_any_form_of_it(
    error: Exception, train_tiny: Train, probe: Probe
) -> None:
    narrow(probe, 3, most=2, error=error)
    assert stored_micro_batch(train_tiny()) == 2


@pytest.mark.parametrize("error", [NO_MEMORY[5], NO_MEMORY[-2]], ids=repr)
def test_a_model_that_does_not_fit_ends_with_one_message(
    error: Exception,
    tiny: list[str],
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(self: CausalLM, *args: Any, **settings: Any) -> None:
        raise type(error)(*error.args)

    monkeypatch.setattr(CausalLM, "__init__", refused)
    assert command(*tiny) == 2
    assert "out of memory: the model alone does not fit: choose" in capsys.readouterr().err


def test_other_commands_end_with_one_message_too(
    tiny: list[str], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: Exception) -> Callable[[RunConfig], None]:
        def run(config: RunConfig) -> None:
            raise error

        return run

    assert command(*tiny, run=fails(NO_MEMORY[5])) == 2
    assert "error: out of memory: close other programs" in capsys.readouterr().err
    assert command(*tiny, run=fails(NO_MEMORY[-2])) == 2
    assert "(MemoryError)" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shapes"):
        command(*tiny, run=fails(OTHERS[0]))


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: values read by the host, and values that the host puts on
    the device.
    """

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
        train_tiny("trainer.micro_batch_size=1", f"trainer.precision={precision}", *quiet)
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert steps == [1] * 7


def test_batches_are_pinned_and_sent_without_waiting(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TokenDataModule(compose(tiny).data, micro_batch_size=4)
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
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, **settings: given.update(settings) or self
    )
    data.transfer_batch_to_device(torch.zeros(2, 33), torch.device("cuda"), 0)
    assert given == {"non_blocking": True}


@pytest.mark.parametrize(("windows", "devices"), [(1, 2), (7, 8)])
def test_each_device_needs_a_validation_window(windows: int, devices: int) -> None:
    with pytest.raises(ValueError, match=rf"{windows} validation .*trainer\.devices={windows}"):
        micro_batch.check_validation(windows, devices)
    micro_batch.check_validation(devices, devices)
