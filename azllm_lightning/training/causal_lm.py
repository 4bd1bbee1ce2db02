"""The LightningModule around the network: what a step is, what is measured, what a checkpoint must restore."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.config.optimizer import OptimizerConfig
from azllm_lightning.config.schedule import ScheduleConfig
from azllm_lightning.formats.load import FORMAT, load
from azllm_lightning.model.gpt import GPT
from azllm_lightning.training.hardware import muon_dtype
from azllm_lightning.training.loops import canonical_loops
from azllm_lightning.training.metrics import TokenLoss, perplexity
from azllm_lightning.training.optimizer import build_optimizer, parameter_groups
from azllm_lightning.training.schedule import lr_factor

WRITE_EVERY_SECONDS = 2.0
"""In training, curves are written out this often: to wait for the disk at each log would cost small models some %."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step was, read from the device once: losses in nats, the gradient norm before clipping."""

    loss: float
    grad_norm: float
    lr: float
    loss_scale: float
    """What the loss was multiplied by in the backward pass; 1 without a scaler."""

    @property
    def finite(self) -> bool:
        """Whether the step was taken; a step with a non-finite loss or gradient is skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class CausalLM(LightningModule):
    """Trains `net`, a GPT, to predict the next token.

    Batches are token ids (B, T + 1). Logged at optimizer steps: train_loss and train_ppl (mean over the accumulated
    micro-batches), lr, grad_norm, tokens_seen; at validations: val_loss (sum of NLL / tokens, nats), val_ppl, val_bpb,
    generalization_gap (val_loss less the mean training loss of all steps since the validation before), and
    val_loss_by_source/<source> where there are several (`TokenDataModule.val_sources`). Hyperparameters are plain
    types, so that a checkpoint loads with `weights_only=True`. Dropout draws from a stream that is a pure function of
    (seed, step, micro-batch, rank).

    Works under a plain `lightning.Trainer(max_steps=...)` with a `TokenDataModule` too.
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
        self.model_config = GPTConfig(**model) if isinstance(model, dict) else model
        self.optimizer_config = (
            OptimizerConfig.read(optimizer, "optimizer")
            if isinstance(optimizer, dict)
            else optimizer
        )
        self.schedule_config = (
            ScheduleConfig(**schedule) if isinstance(schedule, dict) else schedule
        )
        self.seed, self.log_every_steps = seed, log_every_steps
        self.save_hyperparameters(
            {
                "model": self.model_config.to_dict(),
                "optimizer": {
                    **asdict(self.optimizer_config),
                    "betas": list(self.optimizer_config.betas),
                },
                "schedule": asdict(self.schedule_config),
                "seed": seed,
                "log_every_steps": log_every_steps,
            }
        )
        # Weights depend on the seed alone, not on what was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "weights"))
            self.net = GPT(self.model_config)
        self.run_config = ""
        """The composed config of the run as YAML; every checkpoint carries it."""
        self.step_report: StepReport | None = None
        """The optimizer step that this batch completed; None in mid-accumulation."""
        self.validated_step = -1
        """The last step whose validation is done, so that a resume neither repeats nor forgets one."""
        self._train_loss_sum, self._train_steps = 0.0, 0  # since the last validation
        self.last_validation: dict[str, float] = {}
        """What the last validation logged."""
        self._written_at = -math.inf
        self.register_buffer("_loss_sum", torch.zeros(()), persistent=False)
        self._loss_sum: Tensor
        self.token_bytes: Tensor
        self.val_metric: TokenLoss
        self._val_sources: Tensor | None = (
            None  # no buffer: DDP would want the same on all processes
        )

    # --- one step ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take from the data the UTF-8 bytes of each token, for bits per byte, and the sources to validate apart."""
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        if tokenizer.vocab_size != self.model_config.vocab_size:
            raise ValueError(
                f"the model has {self.model_config.vocab_size} token embeddings, the tokenizer of the data has "
                f"{tokenizer.vocab_size} tokens: they do not belong together"
            )
        self.register_buffer(
            "token_bytes", torch.from_numpy(tokenizer.token_bytes).to(self.device), persistent=False
        )
        self.tokenizer_json = tokenizer.to_json()
        names, self._val_sources = self.trainer.datamodule.val_sources()  # type: ignore[attr-defined]
        self.val_metric = TokenLoss(names)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Forget the report of the step before."""
        self.step_report = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean NLL of a micro-batch (B, T + 1), in nats."""
        if self.model_config.dropout > 0:
            micro = batch_idx % self.trainer.accumulate_grad_batches
            torch.manual_seed(
                stream_seed(self.seed, self.trainer.global_step, micro, self.trainer.global_rank)
            )
        loss: Tensor = self.net(batch[:, :-1], batch[:, 1:])
        self._loss_sum += loss.detach()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Add the NLL of a batch (B, T + 1) to the sums."""
        size = self.trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]
        # A smaller last batch would make a compiled network compile again: it takes the uncompiled way.
        net = self.net if len(batch) == size else self.net.forward
        labels, first = batch[:, 1:], batch_idx * size
        sources = (
            None if self._val_sources is None else self._val_sources[first : first + len(batch)]
        )
        self.val_metric.update(
            net(batch[:, :-1], labels, reduction="none"), self.token_bytes[labels], sources
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, and the schedule as a function of the step."""
        if self.schedule_config.total_steps is None:  # under a plain Trainer: to its end
            self.schedule_config = replace(self.schedule_config, total_steps=self.trainer.max_steps)
        dtype = muon_dtype(str(self.trainer.precision), self.device)
        optimizer = build_optimizer(self.net, self.optimizer_config, dtype)
        scheduler = LambdaLR(optimizer, lambda step: lr_factor(step, self.schedule_config))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm, and leave the step out where it or the loss is not finite.

        This is the step's one wait for the device: all that is to be known of it comes at once. Parameters without a
        gradient are passed over by the optimizer: no update, no decay, no moments. A short gradient is not touched.
        """
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss = self._loss_sum / self.trainer.accumulate_grad_batches
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = torch.ones_like(loss) if scaler is None else scaler.scale(torch.ones_like(loss))
        loss_value, norm_value, scale_value = torch.stack((loss, norm.to(loss), scale)).tolist()
        self._loss_sum.zero_()
        self.step_report = StepReport(
            loss_value, norm_value, optimizer.param_groups[0]["lr"], scale_value
        )
        if not self.step_report.finite:
            optimizer.zero_grad(set_to_none=True)
        elif gradient_clip_val and norm_value > gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    # --- what is told -----------------------------------------------------------------------------------------------

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """Log a completed optimizer step, and let the last step be validated."""
        report, step = self.step_report, self.trainer.global_step
        if report is None:
            return
        if report.finite:
            self._train_loss_sum += report.loss
            self._train_steps += 1
        if step >= self.trainer.max_steps:
            self.trainer.should_stop = (
                True  # Lightning then validates once more, unless it is due anyway
            )
        if self.logs_now:
            loss = self._mean_over_processes(report.loss)
            values = {
                "train_loss": loss,
                "train_ppl": perplexity(loss),
                "lr": report.lr,
                "grad_norm": report.grad_norm,
            }
            values["tokens_seen"] = float(self.tokens_seen)
            if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
                values["loss_scale"] = report.loss_scale
            self.log_pinned(values)

    @property
    def logs_now(self) -> bool:
        """Whether the completed optimizer step is one to log: the first, the last, and every log_every_steps."""
        step = self.trainer.global_step
        return step == 1 or step >= self.trainer.max_steps or step % self.log_every_steps == 0

    def log_pinned(self, values: dict[str, float]) -> None:
        """Log `values` of the step or validation just finished, once, at the optimizer step.

        Loggers get them directly: Lightning's x starts again on a resume, it writes the last values again at every
        step that logs none, and it logs nothing of the validation at step 0. So do callbacks: Lightning's log would
        copy each value to the device and wait for it.
        """
        if not self.trainer.sanity_checking:
            self.trainer.callback_metrics.update(
                {name: torch.tensor(value) for name, value in values.items()}
            )
        now = time.monotonic()
        write = not self.trainer.training or now - self._written_at >= WRITE_EVERY_SECONDS
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)
            if write:
                logger.save()
                self._written_at = now

    @property
    def tokens_seen(self) -> int:
        """Tokens that the completed optimizer steps were trained on."""
        windows = self.trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        return int(self.trainer.global_step * windows * self.model_config.block_size)

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew, whatever an interrupted validation left in them."""
        self.val_metric.reset()
        if self._val_sources is not None:
            self._val_sources = self._val_sources.to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Turn the sums of all processes into val_loss, val_ppl, val_bpb and the gap to the training loss."""
        metric = self.val_metric.compute()
        self.validated_step = self.trainer.global_step
        values = {f"val_{name}": value for name, value in metric.items()}
        mean = self._train_loss_sum / self._train_steps if self._train_steps else math.nan
        mean = self._mean_over_processes(mean)
        self._train_loss_sum, self._train_steps = 0.0, 0
        if not math.isnan(mean):
            values["generalization_gap"] = metric["loss"] - mean
        self.last_validation = values
        self.log_pinned(values)

    def _mean_over_processes(self, value: float) -> float:
        if self.trainer.world_size == 1:
            return value
        mean = self.trainer.strategy.reduce(
            torch.tensor(value, device=self.device), reduce_op="mean"
        )
        return float(mean)

    def start_from(self, path: str) -> None:
        """Take the weights of `path` (a checkpoint, a run folder or an exported one) as the start of a new run."""
        net, _ = load(path)
        theirs, ours = net.config.to_dict(), self.model_config.to_dict()
        different = [
            key for key in ours if key not in ("dropout", "block_size") and ours[key] != theirs[key]
        ]
        if different:
            told = ", ".join(f"{key} {theirs[key]} there and {ours[key]} here" for key in different)
            raise ValueError(
                f"init_from={path} has another model: {told}; choose model= and data.tokenizer= accordingly"
            )
        self.net.load_state_dict(net.state_dict())

    # --- what is kept -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the file stand alone: tokenizer and config as text, and where the run stood."""
        checkpoint["azllm"] = {
            "format": FORMAT,
            "tokenizer": self.tokenizer_json,
            "config": self.run_config,
            "step": self.trainer.global_step,
            "validated_step": self.validated_step,
            "train_loss_sum": self._train_loss_sum,
            "train_steps": self._train_steps,
            "metrics": self.last_validation,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue between two optimizer steps, whenever the file was written."""
        if self._trainer is None:  # load_from_checkpoint wants the weights only
            return
        state = checkpoint["azllm"]
        self.validated_step = state["validated_step"]
        # Checkpoints of 0.1.0 have no sum: there the mean starts at the resume.
        self._train_loss_sum, self._train_steps = (
            state.get("train_loss_sum", 0.0),
            state.get("train_steps", 0),
        )
        self.last_validation = dict(state["metrics"])
        checkpoint["loops"]["fit_loop"] = canonical_loops(
            self.trainer, state["step"], validation_done=self.validated_step == state["step"]
        )

    def on_train_start(self) -> None:
        """Lay this run's rates over the restored ones, so that a changed setting takes effect and is not forgotten."""
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


def stream_seed(*key: object) -> int:
    """A seed for one use of random numbers, far from that of any other key."""
    return (
        int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1
    )
