"""The LightningModule under a plain Trainer: what it measures and logs, and what a broken step must
not change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training import causal_lm
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.hardware import MixedPrecision
from azllm_lightning.training.schedule import lr_factor

pytestmark = pytest.mark.numerics

ADAMW = AdamWConfig(name="adamw", lr=1e-2, weight_decay=0.1, betas=[0.9, 0.95], eps=1e-8)
MUON = MuonConfig(
    name="muon",
    lr=1e-2,
    weight_decay=0.1,
    momentum=0.9,
    adam_lr=3e-3,
    adam_weight_decay=0.0,
    betas=[0.9, 0.95],
    eps=1e-8,
)
COSINE = ScheduleConfig(
    name="cosine", warmup_steps=2, total_steps=None, decay_ratio=1.0, min_lr_ratio=0.1
)


class Log(Logger):
    """Keeps what is logged: tag -> [(step, value)]."""

    name, version = "log", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[tuple[int, float]]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for tag, value in metrics.items():
            self.points.setdefault(tag, []).append((int(step or 0), float(value)))

    def steps(self, tag: str) -> list[int]:
        return [step for step, _ in self.points[tag]]

    def values(self, tag: str) -> list[float]:
        return [value for _, value in self.points[tag]]


@dataclass
class Watch(pl.Callback):
    """Records the loss of each micro-batch and the learning rate of each step."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def data(tiny: list[str]) -> DataConfig:
    return compose(tiny).data


@dataclass
class Fit:
    trainer: pl.Trainer
    module: CausalLM
    datamodule: TokenDataModule
    log: Log
    watch: Watch

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.net.parameters()])


def fit(
    data: DataConfig,
    *callbacks: pl.Callback,
    micro_batch: int = 4,
    accumulate: int = 1,
    dropout: float = 0.0,
    optimizer: OptimizerConfig = ADAMW,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> Fit:
    """Train a model of 20 k parameters under a plain Trainer; `settings` are the Trainer's."""
    datamodule = TokenDataModule(data, micro_batch, seed=3)
    datamodule.prepare_data()
    datamodule.setup()
    tokenizer = datamodule.tokenizer
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=data.block_size,
        n_layer=1,
        n_head=2,
        n_embd=32,
        eos_id=tokenizer.eot_id,
        dropout=dropout,
    )
    module = CausalLM(config, optimizer, COSINE, seed=3, log_every_steps=1)
    log, watch = Log(), Watch()
    defaults = {
        "max_steps": 5,
        "num_sanity_val_steps": -1,
        "gradient_clip_val": 1.0,
        "val_check_interval": accumulate,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=log,
        callbacks=[watch, *callbacks],
        accumulate_grad_batches=accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **settings},
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return Fit(trainer, module, datamodule, log, watch)


def test_the_validation_is_the_mean_over_tokens_of_all_windows(data: DataConfig) -> None:
    data = replace(data, val_windows=None)
    datamodule = TokenDataModule(data, 1)
    datamodule.prepare_data()
    datamodule.setup()
    count = datamodule.val_windows.num_windows
    micro_batch = next(size for size in range(3, count) if count % size)
    ragged = fit(data, micro_batch=micro_batch)
    module, datamodule = ragged.module, ragged.datamodule
    shards = datamodule.val_windows.shards
    block = data.block_size
    tokens = torch.from_numpy(shards.read(0, count * block + 1).astype("int64"))
    inputs, labels = tokens[:-1].view(count, block), tokens[1:].view(count, block)
    with torch.no_grad():
        logits = module.net.eval()(inputs).double()
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none"
    )
    last = {tag: ragged.log.values(tag)[-1] for tag in ("val_loss", "val_ppl", "val_bpb")}
    assert last["val_loss"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert last["val_ppl"] == pytest.approx(math.exp(last["val_loss"]), rel=1e-9)

    tokenizer = datamodule.tokenizer
    unscored = (
        shards.read(count * block + 1, len(shards) - count * block - 1).tolist()
        + tokens[:1].tolist()
    )
    num_bytes = shards.manifest.splits["val"].text_bytes - int(
        tokenizer.token_bytes[unscored].sum()
    )
    bits = float(nll[labels.flatten() != tokenizer.eot_id].sum()) / math.log(2)
    assert last["val_bpb"] == pytest.approx(bits / num_bytes, rel=1e-6)

    whole = fit(replace(data, val_windows=None), micro_batch=3, max_steps=1)
    other_batch = fit(replace(data, val_windows=None), micro_batch=1, accumulate=3, max_steps=1)
    assert whole.log.values("val_loss") == pytest.approx(
        other_batch.log.values("val_loss"), abs=1e-5
    )


def test_validate_returns_what_a_validation_logs(data: DataConfig) -> None:
    done = fit(data, max_steps=2)
    expected = done.module.last_validation
    log = Log()
    trainer = pl.Trainer(
        accelerator="cpu", logger=log, enable_progress_bar=False, enable_checkpointing=False
    )
    (found,) = trainer.validate(done.module, datamodule=done.datamodule, verbose=False)
    assert found.keys() == {"val_loss", "val_ppl", "val_bpb"}
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-5)
    assert [len(log.points[key]) for key in found] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"use Trainer\.validate"):
        trainer.test(done.module, datamodule=done.datamodule, verbose=False)


def test_a_file_is_validated_with_other_settings_than_it_was_trained_with(
    data: DataConfig, tmp_path: Path
) -> None:
    """Of the data only: the seed, the batch and the mix are those of a training."""
    done = fit(data, max_steps=2)
    file = tmp_path / "a.ckpt"
    done.trainer.save_checkpoint(file, weights_only=True)
    other = TokenDataModule(replace(data, mix="*: 2"), micro_batch_size=3, seed=4)
    trainer = done.trainer
    (found,) = trainer.validate(done.module, datamodule=other, ckpt_path=file, verbose=False)
    assert found["val_loss"] == pytest.approx(done.module.last_validation["val_loss"], rel=1e-5)
    with pytest.raises(ValueError, match="the checkpoint has seed=3, this run has seed=4"):
        trainer.fit(done.module, datamodule=other, ckpt_path=file)
    text = replace(data, tales_bytes=70_000)
    with pytest.raises(ValueError, match="trained on different data"):
        trainer.validate(done.module, datamodule=TokenDataModule(text, 4), ckpt_path=file)


def test_a_trainer_that_counts_epochs_is_told_to_count_steps(data: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"give Trainer\(max_steps=\.\.\.\)"):
        fit(data, max_steps=-1, max_epochs=1)


@pytest.mark.parametrize(("step", "accumulate"), [(2, 1), (4, 1), (5, 1), (5, 4)])
def test_a_state_that_lightnings_own_callback_saves_continues_the_curves(
    step: int, accumulate: int, data: DataConfig, tmp_path: Path
) -> None:
    """It saves at the end of a batch, before the module's own hook; after step 4 a validation
    comes.
    """
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    settings: dict[str, Any] = {
        "micro_batch": 4 // accumulate,
        "accumulate": accumulate,
        "val_check_interval": 4 * accumulate,
        "max_steps": 9,
    }
    whole = fit(data, saving, enable_checkpointing=True, **settings)
    resumed = fit(data, ckpt_path=tmp_path / f"step={step}.ckpt", **settings)
    assert torch.equal(resumed.weights, whole.weights)
    for tag in ("train_loss", "lr"):
        assert resumed.log.points[tag] == whole.log.points[tag][step:]
    for tag in ("val_loss", "generalization_gap"):
        later = [point for point in whole.log.points[tag] if point[0] >= step]
        assert resumed.log.points[tag] == later


def test_a_mac_is_told_to_use_its_cpu(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes its GPU by itself, and would move the sums there after `setup`."""
    strategy = pl.strategies.SingleDeviceStrategy
    monkeypatch.setattr(strategy, "root_device", torch.device("mps"))
    monkeypatch.setattr(pl.accelerators.CPUAccelerator, "setup_device", lambda *_: None)
    with pytest.raises(ValueError, match=r"no float64.*: give Trainer\(accelerator='cpu'\)"):
        fit(data)


def test_train_loss_is_the_mean_over_the_accumulated_micro_batches(data: DataConfig) -> None:
    done = fit(data, micro_batch=1, accumulate=4)
    assert len(done.watch.losses) == 20
    means = [
        sum(done.watch.losses[4 * step : 4 * step + 4]) for step in range(5)
    ]  # Lightning has divided them by 4
    assert done.log.values("train_loss") == pytest.approx(means, rel=1e-6)
    assert done.log.values("train_ppl") == pytest.approx(
        [math.exp(mean) for mean in means], rel=1e-5
    )


def test_each_tag_is_logged_once_a_step_at_its_step(data: DataConfig) -> None:
    log = fit(data, micro_batch=1, accumulate=4, max_steps=7, val_check_interval=3 * 4).log
    for tag in ("train_loss", "train_ppl", "lr", "grad_norm", "tokens_seen"):
        assert log.steps(tag) == [1, 2, 3, 4, 5, 6, 7], tag
    for tag in ("val_loss", "val_ppl", "val_bpb"):
        assert log.steps(tag) == [0, 3, 6, 7], tag  # at the start, when due, and at the end
    assert log.steps("generalization_gap") == [3, 6, 7]
    assert log.values("tokens_seen") == [step * 4 * data.block_size for step in range(1, 8)]
    val, train = log.values("val_loss"), log.values("train_loss")
    means = [sum(train[:3]) / 3, sum(train[3:6]) / 3, train[6]]  # since the validation before
    assert log.values("generalization_gap") == pytest.approx(
        [v - t for v, t in zip(val[1:], means, strict=True)], abs=1e-6
    )


def test_the_last_validation_is_not_doubled_where_it_is_due_anyway(data: DataConfig) -> None:
    assert fit(data, max_steps=4, val_check_interval=2).log.steps("val_loss") == [0, 2, 4]


def test_fewer_points_are_logged_on_demand(data: DataConfig) -> None:
    class Seldom(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            module.log_every_steps = 3

    log = fit(data, Seldom(), max_steps=7).log
    assert log.steps("train_loss") == [1, 3, 6, 7]


def test_the_logged_rate_is_the_one_used(data: DataConfig) -> None:
    done = fit(data)
    schedule = replace(COSINE, total_steps=5)
    rates = [1e-2 * lr_factor(step, schedule) for step in range(5)]
    assert done.watch.rates == pytest.approx(rates, rel=1e-12)
    assert done.log.values("lr") == pytest.approx(rates, rel=1e-6)


def test_weights_and_dropout_follow_from_the_seed_alone(data: DataConfig) -> None:
    torch.manual_seed(1)
    one = fit(data, dropout=0.3)
    torch.manual_seed(2)
    torch.rand(100)
    other = fit(data, dropout=0.3)
    assert one.watch.losses == other.watch.losses
    assert torch.equal(one.weights, other.weights)
    assert fit(data, dropout=0.31).watch.losses[0] != one.watch.losses[0]


def test_dropout_is_seeded_as_by_torch() -> None:
    torch.manual_seed(2**62 + 1)
    expected = torch.rand(5)
    causal_lm.seed_device(torch.device("cpu"), 2**62 + 1)
    assert torch.equal(torch.rand(5), expected)


def test_the_device_of_the_run_is_seeded_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[tuple[str, int]] = []
    monkeypatch.setattr(
        torch,
        "get_device_module",
        lambda device: SimpleNamespace(manual_seed=lambda seed: seeded.append((device.type, seed))),
    )
    causal_lm.seed_device(torch.device("cpu"), 3)
    causal_lm.seed_device(torch.device("cuda", 1), 4)
    assert seeded == [("cuda", 4)]
    assert torch.initial_seed() == 4


@dataclass
class Reads:
    """What the network was given, in order: whether to train on it, inputs, labels."""

    calls: list[tuple[bool, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def of(self, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of all calls in training, or of all in validation."""
        inputs = [inputs for kind, inputs, _ in self.calls if kind == training]
        labels = [labels for kind, _, labels in self.calls if kind == training]
        return torch.cat(inputs), torch.cat(labels)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found, forward = Reads(), GPT.forward

    def watched(self: GPT, inputs: torch.Tensor, labels: torch.Tensor, **settings: Any) -> Any:
        found.calls.append((self.training, inputs.clone(), labels.clone()))
        return forward(self, inputs, labels, **settings)

    monkeypatch.setattr(GPT, "forward", watched)
    return found


def test_only_the_inputs_of_training_are_replaced(data: DataConfig, reads: Reads) -> None:
    fit(data, max_steps=3)
    inputs, labels = reads.of(training=True)
    val_inputs, val_labels = reads.of(training=False)
    reads.calls.clear()
    fit(replace(data, token_replacement=0.25), max_steps=3)
    replaced, same_labels = reads.of(training=True)
    assert torch.equal(same_labels, labels)
    assert float((replaced != inputs).double().mean()) == pytest.approx(0.25, abs=0.05)
    assert torch.equal(reads.of(training=False)[0], val_inputs)
    assert torch.equal(reads.of(training=False)[1], val_labels)
    reads.calls.clear()
    fit(replace(data, token_replacement=0.25), micro_batch=1, accumulate=4, max_steps=3)
    assert torch.equal(reads.of(training=True)[0], replaced)


def test_without_replacement_the_batch_is_not_copied(data: DataConfig) -> None:
    datamodule = TokenDataModule(data, 2)
    batch = torch.zeros(2, 33, dtype=torch.int64)
    assert datamodule.training_inputs(batch, 0) is batch


def test_a_checkpoint_loads_without_a_trainer(data: DataConfig, tmp_path: Path) -> None:
    done = fit(data)
    done.trainer.save_checkpoint(tmp_path / "plain.ckpt")
    torch.load(tmp_path / "plain.ckpt", weights_only=True)
    loaded = CausalLM.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=True)
    assert loaded.hparams == done.module.hparams
    assert loaded.model_config == done.module.model_config
    for name, weight in done.module.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], weight), name


class Poison(pl.Callback):
    """Makes the loss of one step a NaN, and keeps weights and moments from before and after it."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any
    ) -> None:
        if trainer.global_step == self.step and not self.before:
            self.before = state(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any
    ) -> None:
        if trainer.global_step == self.step + 1 and not self.after:
            self.after = state(trainer, module)
            assert isinstance(module, CausalLM)
            assert module.step_report is not None
            assert not module.step_report.finite


def state(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, torch.Tensor]:
    (optimizer,) = trainer.optimizers
    found = {name: p.detach().clone() for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        found |= {f"{name}/{key}": value.clone() for key, value in optimizer.state[p].items()}
    return found


def fp16_on_a_cpu() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(
    accumulate: int, half: bool, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, forward = Poison(step=2), GPT.forward

    def broken(self: GPT, *args: Any, **settings: Any) -> torch.Tensor:
        out: torch.Tensor = forward(self, *args, **settings)
        return out * math.nan if self.training and poison.before and not poison.after else out

    monkeypatch.setattr(GPT, "forward", broken)
    done = fit(data, poison, accumulate=accumulate, plugins=[fp16_on_a_cpu()] if half else None)
    assert poison.before.keys() == poison.after.keys()
    for name, before in poison.before.items():
        assert torch.equal(poison.after[name], before), name
    losses = done.log.values("train_loss")
    assert [math.isfinite(loss) for loss in losses] == [True, True, False, True, True]
    assert torch.isfinite(done.weights).all()


def test_fused_adamw_with_clipping_and_a_scaler_agrees_with_the_plain_one(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    adamw = torch.optim.AdamW
    fused = fit(data, plugins=[fp16_on_a_cpu()], gradient_clip_val=0.1)
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *args, **settings: adamw(*args, **{**settings, "fused": False})
    )
    plain = fit(data, plugins=[fp16_on_a_cpu()], gradient_clip_val=0.1)
    assert plain.trainer.optimizers[0].defaults["fused"] is False
    assert fused.trainer.optimizers[0].defaults["fused"] is True
    assert fused.watch.losses == pytest.approx(plain.watch.losses, abs=2e-5)
    assert fused.log.values("grad_norm") == pytest.approx(plain.log.values("grad_norm"), rel=1e-3)
    assert (
        fused.weights - plain.weights
    ).abs().mean() < 1e-5  # of steps of 1e-2; fp16 enlarges what rounding begins
    assert fused.log.values("loss_scale") == [1024.0] * 5
    assert (
        min(fused.log.values("grad_norm")) > 0.1
    )  # so that clipping was at work, and the norm is the unscaled one
    assert max(fused.log.values("grad_norm")) < 100


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_fp16_with_clipping_trains_as_fp32_and_keeps_its_state_in_fp32(
    optimizer: OptimizerConfig, data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muon orthogonalizes in fp16 here, as on a GPU without bf16."""
    full = fit(data, optimizer=optimizer, gradient_clip_val=0.1)
    monkeypatch.setattr(causal_lm, "muon_dtype", lambda *_: torch.float16)
    half = fit(data, optimizer=optimizer, plugins=[fp16_on_a_cpu()], gradient_clip_val=0.1)
    assert half.watch.losses == pytest.approx(full.watch.losses, rel=2e-3)
    assert half.log.values("grad_norm") == pytest.approx(full.log.values("grad_norm"), rel=2e-2)
    (found,) = half.trainer.optimizers
    assert getattr(found, "dtype", torch.float16) == torch.float16
    assert {p.dtype for group in found.param_groups for p in group["params"]} == {torch.float32}
    assert {v.dtype for state in found.state.values() for v in state.values()} == {torch.float32}


@pytest.mark.parametrize("processes", [1, 2])
def test_muons_work_is_shared_out_if_there_are_several_processes(
    processes: int, tmp_path: Path
) -> None:
    model = GPTConfig(vocab_size=300, block_size=8, n_layer=1, n_head=2, n_embd=16)
    module = CausalLM(model, MUON, replace(COSINE, total_steps=8))
    data = SimpleNamespace(tokenizer=None)
    trainer: Any = SimpleNamespace(world_size=processes, precision="32-true", datamodule=data)
    module._trainer = trainer
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        made: Any = module.configure_optimizers()
        expected = torch.distributed.group.WORLD if processes > 1 else None
        assert made["optimizer"].process_group is expected
    finally:
        torch.distributed.destroy_process_group()


class Lengths(pl.Callback):
    """The norm of the gradient that each step was taken with."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.found: list[float] = []
        trainer.optimizers[0].register_step_post_hook(self._measure)

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        self.found.append(float(torch.nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("limit", [0.1, 0.0, 100.0, None])
def test_a_gradient_is_cut_to_its_limit_and_a_shorter_one_left_alone(
    limit: float | None, data: DataConfig
) -> None:
    lengths = Lengths()
    done = fit(data, lengths, gradient_clip_val=limit)
    norms = done.log.values("grad_norm")
    assert min(norms) > 0.1
    assert max(norms) < 100
    assert lengths.found == pytest.approx([0.1] * 5 if limit == 0.1 else norms, rel=1e-4)


def test_data_with_another_vocabulary_are_refused(data: DataConfig) -> None:
    config = GPTConfig(vocab_size=299, block_size=data.block_size, n_layer=1, n_head=2, n_embd=32)
    module = CausalLM(config, ADAMW, COSINE)
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"299 token embeddings.*300 tokens"):
        trainer.fit(module, datamodule=TokenDataModule(data, micro_batch_size=4))


@pytest.mark.parametrize("ours_is_tied", [True, False])
@pytest.mark.parametrize("theirs_is_tied", [True, False])
def test_a_tied_head_may_start_a_head_of_its_own(
    theirs_is_tied: bool, ours_is_tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = GPTConfig(vocab_size=300, block_size=8, n_layer=1, n_head=2, n_embd=16)
    theirs = GPT(replace(shape, tie_embeddings=theirs_is_tied))
    monkeypatch.setattr(causal_lm, "read_model", lambda key, path: (theirs, None))
    monkeypatch.setattr(causal_lm, "name_of", str)
    monkeypatch.setattr(causal_lm, "tokenizer_folder", str)
    module = CausalLM(replace(shape, tie_embeddings=ours_is_tied), MUON, COSINE)
    if ours_is_tied and not theirs_is_tied:
        with pytest.raises(ValueError, match="tie_embeddings is False there and True here"):
            module.start_from("run")
        return
    module.start_from("run")
    assert module.started_from == "run"
    ids = torch.randint(300, (1, 8))
    assert torch.equal(module.net(ids), theirs(ids))


def test_data_of_ones_own_is_refused_in_words() -> None:
    config = compose(["experiment=debug"])
    model = CausalLM(config.model.for_data(300, 16, 0), config.optimizer, config.schedule)
    windows = torch.zeros(8, 17, dtype=torch.long)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"TokenDataModule.*datamodule="):
        trainer.fit(model, DataLoader(windows))
