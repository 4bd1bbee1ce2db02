"""The LightningModule around the network: one optimizer step, its metrics, and what a checkpoint
restores.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.data.datamodule import TokenDataModule, TrainingWindows, datamodule_of
from azllm_lightning.formats.load import FORMAT, PREFIX, name_of, tokenizer_folder
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.model_paths import read_model
from azllm_lightning.training.branches import Branches
from azllm_lightning.training.compiled import uncompiled
from azllm_lightning.training.hardware import check_trainer, muon_dtype
from azllm_lightning.training.induction import induction_heads
from azllm_lightning.training.loops import canonical_loops
from azllm_lightning.training.metrics import TokenLoss, perplexity
from azllm_lightning.training.neighbors import SCALE, TIED_SCALE, counted, neighbor_embeddings
from azllm_lightning.training.optimizer import build_optimizer, parameter_groups
from azllm_lightning.training.schedule import Branching, lr_factor
from azllm_lightning.training.stopping import NO_REQUESTS, Requests
from azllm_lightning.training.teachers import Teachers
from azllm_lightning.training.threads import mean_loss, token_losses

FLUSH_SECONDS = 2.0
"""Seconds between two flushes of the curves during training. Waiting for the disk at each point
would slow down a small model by several percent."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, read from the device once, and the same in every process."""

    loss: float
    """Mean over the step's micro-batches of all processes, in nats per token."""
    grad_norm: float
    """Before clipping."""
    lr: float
    loss_scale: float
    """The factor on the loss in the backward pass; 1 without a scaler."""
    requests: Requests = NO_REQUESTS
    """What the processes ask for at the end of this step; with one process, nothing."""

    @property
    def finite(self) -> bool:
        """Whether the step was taken; a step with a non-finite loss or gradient is skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class CausalLM(LightningModule):
    """Trains `net`, a GPT, to predict the next token. Batches are token ids (B, T + 1).

    Logged at optimizer steps: train_loss and train_ppl (mean over the accumulated micro-batches),
    lr, grad_norm, tokens_seen and, with a scaler, loss_scale. Logged at validations: val_loss (sum
    of NLL / tokens, in nats), val_ppl, val_bpb, generalization_gap (val_loss minus the mean
    training loss of all steps since the previous validation), and val_loss_by_source/<source> if
    there are several sources (`TokenDataModule.val_sources`).

    Hyperparameters are plain types, so that checkpoints load with `weights_only=True`. Dropout is
    seeded by (seed, step, micro-batch, rank), so that no RNG state has to be saved. Also works
    under a plain `lightning.Trainer(max_steps=...)` with a `TokenDataModule`, on several devices
    with `strategy="ddp"`; all weights are then random, unless `start_from_neighbors` and
    `start_with_induction` are called. Its `validate` returns what a validation logs.
    """

    def __init__(
        self,
        model: GPTConfig | dict[str, Any],
        optimizer: OptimizerConfig | dict[str, Any],
        schedule: ScheduleConfig | dict[str, Any],
        seed: int = 0,
        log_every_steps: int = 10,
    ) -> None:
        super().__init__()
        # `load_from_checkpoint` passes the hyperparameters, which are dicts.
        self.model_config = GPTConfig(**model) if isinstance(model, dict) else model
        self.optimizer_config = (
            OptimizerConfig.read(optimizer, "optimizer")
            if isinstance(optimizer, dict)
            else optimizer
        )
        self.schedule_config = (
            ScheduleConfig(**schedule) if isinstance(schedule, dict) else schedule
        )
        self.seed = seed
        self.log_every_steps = log_every_steps
        self.save_hyperparameters(
            {
                "model": self.model_config.to_dict(),
                "optimizer": self.optimizer_config.to_dict(),
                "schedule": asdict(self.schedule_config),
                "seed": seed,
                "log_every_steps": log_every_steps,
            }
        )
        # The weights depend on the seed alone, not on what was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "weights"))
            self.net = GPT(self.model_config)
        self.is_compiled = False
        """Whether `net` is compiled."""
        self.branches: Branches | None = None
        """Those of this training, from `setup` on."""
        self.teachers: Teachers | None = None
        """The models that this one learns from, if it is a student."""
        self.started_from: str | None = ""
        """The name of the model whose weights were the first; "" if they were random, None if that
        is not known.
        """
        self.run_config = ""
        """The settled config of the run as YAML, for its checkpoints."""
        self.requests: Callable[[], Requests] = Requests
        """What this process asks for at the end of a step; `PeriodicCheckpoint` sets it."""
        self.step_report: StepReport | None = None
        """The optimizer step that this batch completed; None during accumulation."""
        self.validated_step = -1
        """The last validated step, so that a resume neither repeats nor omits a validation."""
        self.last_validation: dict[str, float] = {}
        """What the last validation logged."""
        # Losses of the steps since the last validation.
        self._train_loss_sum = 0.0
        self._train_steps = 0
        self._flushed_at = -math.inf
        self.register_buffer("_loss_sum", torch.zeros(()), persistent=False)
        self._loss_sum: Tensor
        self.token_bytes: Tensor
        self.val_metric: TokenLoss
        # Not a buffer: it differs between the processes of DDP.
        self._val_sources: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Read from the data the UTF-8 bytes of each token and the sources of the validation set.

        Raises ValueError if the tokenizer does not fit the model, and under a plain Trainer for
        `test`, for a training without a number of steps, and for devices that do not fit.
        """
        check_trainer(self.trainer)
        if stage == TrainerFn.TESTING:
            raise ValueError(
                tr("there is no test set beside the validation set: use Trainer.validate")
            )
        if stage == TrainerFn.FITTING and self.trainer.max_steps < 1:
            raise ValueError(
                tr("the length of a training is its optimizer steps: give Trainer(max_steps=...)")
            )
        if stage == TrainerFn.FITTING:
            if self.schedule_config.total_steps is None:  # under a plain Trainer
                steps = self.trainer.max_steps
                self.schedule_config = replace(self.schedule_config, total_steps=steps)
            self.branches = Branches(self.schedule_config)
        data = datamodule_of(self.trainer)
        if not isinstance(data, TokenDataModule):
            raise ValueError(
                tr(
                    "CausalLM needs the data of a TokenDataModule: give "
                    "Trainer.fit(model, datamodule=...)"
                )
            )
        tokenizer = data.tokenizer
        if tokenizer.vocab_size != self.model_config.vocab_size:
            raise ValueError(
                tr(
                    "the model has {embeddings:,} token embeddings, but the tokenizer of the data "
                    "has {tokens:,} tokens: this model was made for a different tokenizer",
                    embeddings=self.model_config.vocab_size,
                    tokens=tokenizer.vocab_size,
                )
            )
        token_bytes = torch.from_numpy(tokenizer.token_bytes).to(self.device)
        self.register_buffer("token_bytes", token_bytes, persistent=False)
        self.tokenizer_json = tokenizer.to_json()
        if self.teachers:
            self.teachers.to(self.device)
        names, self._val_sources = data.val_sources()
        self.val_metric = TokenLoss(names)

    # Training

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Begin a branch if it is time, and clear the report of the previous step."""
        if self.branches and batch_idx % self.trainer.accumulate_grad_batches == 0:
            optimizer = self.trainer.optimizers[0]
            self.branches.before_step(self.trainer.global_step, self.net, optimizer)
        # Not before: what fails while a branch begins leaves no state to save.
        self.step_report = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """What is minimized, in nats, of a micro-batch (B, T + 1): its mean NLL, unless there are
        teachers. train_loss is the mean NLL in any case.
        """
        micro = batch_idx % self.trainer.accumulate_grad_batches
        if self.model_config.dropout > 0:
            rank = self.trainer.global_rank
            step = self.trainer.global_step
            seed_device(self.device, derived_seed(self.seed, step, micro, rank))
        inputs = datamodule_of(self.trainer).training_inputs(batch, micro)
        loss_of = partial(self.teachers.losses, self.net) if self.teachers else self.net
        if self.is_compiled:
            losses = loss_of(inputs[:, :-1], batch[:, 1:])
        else:
            losses = mean_loss(self.net, inputs[:, :-1], batch[:, 1:], loss_of)
        minimized, nll = losses if self.teachers else (losses, losses)
        self._loss_sum += nll.detach()
        return minimized

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, and the schedule as a function of the step."""
        dtype = muon_dtype(str(self.trainer.precision), self.device)
        several = self.trainer.world_size > 1
        group = torch.distributed.group.WORLD if several else None
        tokenizer = datamodule_of(self.trainer).tokenizer
        optimizer = build_optimizer(self.net, self.optimizer_config, dtype, group, tokenizer)
        scheduler = LambdaLR(optimizer, lambda step: lr_factor(step, self.schedule_config))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Replace the restored learning rates and decays by this run's, so that a changed setting
        takes effect.
        """
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            assert isinstance(scheduler, LambdaLR)
            fresh = parameter_groups(self.net, self.optimizer_config)
            scheduler.base_lrs = [group["lr"] for group in fresh]
            for group, new, factor in zip(
                scheduler.optimizer.param_groups, fresh, scheduler.lr_lambdas, strict=True
            ):
                settings = {key: value for key, value in new.items() if key not in ("params", "lr")}
                group.update(settings, lr=new["lr"] * factor(scheduler.last_epoch))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient, and skip the step if that or the loss is not finite.

        This is the only place where a step waits for the device, and for the other processes; all
        its values are read at once. DDP has averaged the gradients, so that their norm is the same
        in every process; the loss is averaged here, so that all take the step or none.

        To skip a step, its gradients are removed: optimizers leave parameters without a gradient as
        they are (no update, no decay, no moments).
        """
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss = self._loss_sum / self.trainer.accumulate_grad_batches
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = torch.ones_like(loss) if scaler is None else scaler.scale(torch.ones_like(loss))
        values = torch.cat((torch.stack((norm.to(loss), scale)), self._agreed(loss))).tolist()
        norm_value, scale_value, loss_value, num_stop, num_save = values
        self._loss_sum.zero_()
        requests = Requests(stop=num_stop > 0, save=num_save > 0)
        lr = optimizer.param_groups[0]["lr"]
        self.step_report = StepReport(loss_value, norm_value, lr, scale_value, requests)
        if not self.step_report.finite:
            optimizer.zero_grad(set_to_none=True)
        elif gradient_clip_val and norm_value > gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def _agreed(self, loss: Tensor) -> Tensor:
        """Mean loss of all processes, and how many of them ask for a stop and for a save: (3,).

        A single process has nothing to agree on and asks for neither.
        """
        processes = self.trainer.world_size
        if processes == 1:
            return torch.stack((loss, torch.zeros_like(loss), torch.zeros_like(loss)))
        asked = torch.tensor(self.requests(), dtype=loss.dtype, device=loss.device)
        values = torch.cat((loss[None] / processes, asked))
        # Lightning's own reduction (2.6) adds a barrier to each all-reduce.
        torch.distributed.all_reduce(values)
        return values

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step and count its loss, before any callback may save the state after it."""
        super().optimizer_step(*args, **kwargs)
        report = self.step_report
        assert report is not None
        if report.finite:
            self._train_loss_sum += report.loss
            self._train_steps += 1

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """Log a completed optimizer step; after the last one, validate and stop."""
        report = self.step_report
        if report is None:
            return
        if self.trainer.global_step >= self.trainer.max_steps:
            # Lightning then validates once more, unless a validation is due anyway.
            self.trainer.should_stop = True
        if self.logs_now:
            values = {
                "train_loss": report.loss,
                "train_ppl": perplexity(report.loss),
                "lr": report.lr,
                "grad_norm": report.grad_norm,
                "tokens_seen": float(self.tokens_seen),
            }
            if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
                values["loss_scale"] = report.loss_scale
            self.log_pinned(values)

    def on_train_end(self) -> None:
        """Leave the mean of the branches in the network, now that the last state is saved."""
        if self.branches:
            self.branches.show_mean(self.net)

    # Validation

    def on_validation_start(self) -> None:
        """Validate the mean of the branches, if there are any."""
        if self.branches:
            self.branches.show_mean(self.net)

    def on_validation_end(self) -> None:
        """Go on with the present branch: the callbacks before have sampled and saved the mean."""
        if self.branches and self.trainer.state.fn == TrainerFn.FITTING:
            self.branches.hide_mean(self.net)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums, which an interrupted validation may have left behind."""
        self.val_metric.reset()
        if self._val_sources is not None:
            self._val_sources = self._val_sources.to(self.device)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Add the NLL of a batch (B, T + 1) to the sums."""
        size = datamodule_of(self.trainer).micro_batch_size
        labels = batch[:, 1:]
        sources = None
        if self._val_sources is not None:
            first = batch_idx * size
            sources = self._val_sources[first : first + len(batch)]
        # A compiled network would be compiled again for a smaller last batch; on a CPU that takes
        # longer than it gains in any validation.
        eager = self.device.type == "cpu" or len(batch) < size
        with uncompiled() if eager else contextlib.nullcontext():
            if self.device.type == "cpu" and not self.is_compiled:
                nll = token_losses(self.net, batch[:, :-1], labels)
            else:
                nll = self.net(batch[:, :-1], labels, reduction="none")
        self.val_metric.update(nll, self.token_bytes[labels], sources)

    def on_validation_epoch_end(self) -> None:
        """Log val_loss, val_ppl, val_bpb and the gap to the training loss, over all processes."""
        metric = self.val_metric.compute()
        self.validated_step = self.trainer.global_step
        values = {f"val_{name}": value for name, value in metric.items()}
        mean = self._train_loss_sum / self._train_steps if self._train_steps else math.nan
        self._train_loss_sum = 0.0
        self._train_steps = 0
        if not math.isnan(mean):
            values["generalization_gap"] = metric["loss"] - mean
        self.last_validation = values
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_pinned(values)
        else:  # `Trainer.validate` returns what Lightning has logged
            self.log_dict(values, sync_dist=True)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Never called: without this method, `Trainer.test` would not come to `setup`."""

    # Logging

    @property
    def logs_now(self) -> bool:
        """Whether the completed step is logged: the first, the last, and every log_every_steps."""
        step = self.trainer.global_step
        return step == 1 or step >= self.trainer.max_steps or step % self.log_every_steps == 0

    @property
    def branching(self) -> Branching | None:
        """When the branches of this training begin; None without any."""
        return None if self.branches is None else self.branches.plan

    def began_branch(self, steps_ago: int = 0) -> bool:
        """Whether a second or later branch begins with the next step, or began `steps_ago`."""
        plan = self.branching
        return plan is not None and self.trainer.global_step - steps_ago in plan.starts

    @property
    def is_within_branch(self) -> bool:
        """Whether a second or later branch has begun and not ended: the mean is not what it will
        be.
        """
        plan = self.branching
        return plan is not None and plan.is_between(self.trainer.global_step)

    @property
    def tokens_seen(self) -> int:
        """Tokens that the completed optimizer steps were trained on."""
        sequences = self.trainer.global_step * datamodule_of(self.trainer).global_batch_size
        return sequences * self.model_config.block_size

    def log_pinned(self, values: dict[str, float]) -> None:
        """Log `values` once, at the current optimizer step.

        Replaces Lightning's `self.log` (2.6), whose x axis restarts on a resume, and which repeats
        the last values at every step that logs none, drops the validation at step 0, and copies
        each value to the device, which forces a synchronization. The monitored values are those of
        `last_validation`, without rounding to fp32.
        """
        if not self.trainer.sanity_checking:
            self.trainer.callback_metrics.update(
                {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
            )
        now = time.monotonic()
        flush = not self.trainer.training or now - self._flushed_at >= FLUSH_SECONDS
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)
            if flush:
                logger.save()
                self._flushed_at = now

    # Checkpoints

    def start_from(self, path: str) -> None:
        """Initialize the weights from `path`: a checkpoint, a run folder or an exported folder.

        A head of its own starts as the embedding table if that model's head is its table. Raises
        ValueError if that is a model of another shape.
        """
        net, _ = read_model("init_from", path)
        theirs = net.config.to_dict()
        if theirs["tie_embeddings"]:
            theirs["tie_embeddings"] = self.model_config.tie_embeddings
        ours = self.model_config.to_dict()
        differing = [
            tr(
                "{key} is {theirs} there and {ours} here",
                key=key,
                theirs=theirs[key],
                ours=ours[key],
            )
            for key in ours
            if key not in ("dropout", "block_size") and ours[key] != theirs[key]
        ]
        if differing:
            raise ValueError(
                tr(
                    "init_from={path} has a different model: {differing}; choose model= "
                    "accordingly, and its tokenizer, data.tokenizer={folder}",
                    path=path,
                    differing=", ".join(differing),
                    folder=tokenizer_folder(path),
                )
            )
        self.net.load_state_dict(net.state_dict())
        self.started_from = name_of(Path(path))

    def start_from_neighbors(self, windows: TrainingWindows) -> None:
        """Initialize the embeddings by what stands next to each token in the text of `windows`."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "embeddings"))
        shape = self.model_config
        table = self.net.model.embed_tokens.weight
        scale = TIED_SCALE if shape.tie_embeddings else SCALE
        found = neighbor_embeddings(
            counted(windows), shape.vocab_size, shape.n_embd, scale, generator
        )
        with torch.no_grad():
            table.copy_(found)

    def start_with_induction(self) -> None:
        """Initialize two attention heads, and what they need of the embeddings as they are, so that
        the model can continue what the text repeats.
        """
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "attention"))
        induction_heads(self.net, generator)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the file usable on its own (tokenizer, config as YAML), and what a resume
        needs.
        """
        checkpoint["azllm"] = {
            "format": FORMAT,
            "tokenizer": self.tokenizer_json,
            "config": self.run_config,
            "data": datamodule_of(self.trainer).fingerprint,
            "validation": datamodule_of(self.trainer).validation,
            "step": self.trainer.global_step,
            "validated_step": self.validated_step,
            "train_loss_sum": self._train_loss_sum,
            "train_steps": self._train_steps,
            "metrics": self.last_validation,
            "teachers": self.teachers.digests if self.teachers else [],
            "started_from": self.started_from,
            # The order of sums on a CPU depends on it.
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }
        if self.branches:
            self.branches.save(checkpoint, self.net, PREFIX)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore a state between two optimizer steps, whichever hook of Lightning saved it."""
        state = checkpoint["azllm"]
        self.started_from = state.get("started_from")
        if self._trainer is None:  # load_from_checkpoint needs only the weights
            return
        self.validated_step = state["validated_step"]
        self._train_loss_sum = state["train_loss_sum"]
        self._train_steps = state["train_steps"]
        self.last_validation = dict(state["metrics"])
        self.branches = None  # a validation is of the weights of the file, which are the mean
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.branches = Branches(self.schedule_config)
            self.branches.load(checkpoint, state["step"], self.net, PREFIX)
        checkpoint["loops"]["fit_loop"] = canonical_loops(
            self.trainer, state["step"], validation_done=self.validated_step == state["step"]
        )


def derived_seed(*key: object) -> int:
    """A seed for one use of random numbers, independent of that of any other key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seed what draws dropout on `device`.

    The numbers are those of torch.manual_seed, which also seeds every other kind of device: that
    takes a millisecond, as long as a step of a small model on a GPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
