"""The settings of conf/trainer: what a run does, counted in optimizer steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems, from_mapping

if TYPE_CHECKING:
    from typing_extensions import Self

AUTO = ("precision", "compile", "micro_batch_size")
"""Settings for which `auto` means what this machine does best."""


STRATEGIES = ("auto", "ddp")

SHARDING = ("fsdp", "deepspeed", "model_parallel")
"""How the strategies of Lightning begin that divide a model among GPUs."""


@dataclass(frozen=True, kw_only=True)
class AutoChoices:
    """Which settings of the trainer, of those in AUTO, have a value that `auto` chose."""

    device: str = ""
    """The name of the GPU or CPU that they were chosen for."""
    settings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long a run lasts, on what, and how often it validates and saves.

    Steps are always optimizer steps. The meaning of each key is in conf/trainer/default.yaml.
    """

    max_steps: int
    global_batch_size: int
    micro_batch_size: int | Literal["auto"]
    gradient_clip_val: float
    val_every_steps: int
    checkpoint_every_steps: int
    checkpoint_every_minutes: float | None
    log_every_steps: int
    precision: str
    compile: bool | Literal["auto"]
    accelerator: Literal["auto", "cpu", "gpu", "cuda"]
    devices: int | str
    """A number of them, auto, or the numbers of GPUs as Lightning writes them: "0,1", or "1," for
    number 1 alone.
    """
    num_nodes: int
    strategy: str
    deterministic: bool
    deadline: str | None

    def __post_init__(self) -> None:
        problems = Problems("trainer")
        for name in (
            "max_steps",
            "global_batch_size",
            "micro_batch_size",
            "val_every_steps",
            "checkpoint_every_steps",
            "log_every_steps",
            "num_nodes",
        ):
            value = getattr(self, name)
            problems.require(value == "auto" or value >= 1, name, value, tr("at least 1"))
        clip = self.gradient_clip_val
        problems.require(clip >= 0, "gradient_clip_val", clip, tr("at least 0 (0: no clipping)"))
        precisions = ("auto", "32-true", "16-mixed", "bf16-mixed")
        problems.require_choice("precision", self.precision, precisions)
        if self.strategy.startswith(SHARDING):
            problems.add(
                tr(
                    "trainer.strategy={strategy} is not supported: every GPU holds all of the "
                    "model. For a model that does not fit, choose a smaller "
                    "trainer.micro_batch_size, a shorter data.block_size, "
                    "trainer.precision=auto, or optimizer=muon (it stores less than adamw); "
                    "to divide the batch among GPUs, trainer.strategy=ddp",
                    strategy=self.strategy,
                )
            )
        else:
            problems.require_choice("strategy", self.strategy, STRATEGIES)
        minutes = self.checkpoint_every_minutes
        wanted = tr("above 0, or null")
        problems.require(
            minutes is None or minutes > 0, "checkpoint_every_minutes", minutes, wanted
        )
        problems.require(
            self._devices_are_valid(),
            "devices",
            self.devices,
            tr("a number of at least 1, a list like [0,1], or auto"),
        )
        if self.deadline is not None:
            deadline = self.deadline
            problems.attempt(lambda: parse_deadline(deadline, now=0.0))
        problems.raise_if_any()

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> Self:
        """The config of a mapping in which `devices` may be a list, as it is typed."""
        devices = values.get("devices")
        if isinstance(devices, (list, tuple)):
            end = "," if len(devices) == 1 else ""
            values = {**values, "devices": ",".join(map(str, devices)) + end}
        return from_mapping(cls, values, group)

    def _devices_are_valid(self) -> bool:
        text = str(self.devices)
        if text.isdecimal():
            return int(text) >= 1
        return text == "auto" or re.fullmatch(r"\d+,|\d+(,\d+)+", text) is not None


def listed_gpus(devices: int | str) -> list[int]:
    """The numbers of GPUs in trainer.devices; none if it is a number of devices, or auto."""
    text = str(devices)
    return [int(number) for number in text.split(",") if number] if "," in text else []


def parse_deadline(text: str, now: float) -> float:
    """Seconds since the epoch of a deadline.

    It is a duration from `now` ("11h30m", "45m", "90s") or a clock time ("06:30"). A clock time
    that has passed today means tomorrow's; "2026-11-23T06:30" names the day too.

    Raises ValueError for any other text, and for a duration beyond the year 9999.
    """
    if text.isdecimal():
        raise ValueError(_without_unit(text))
    duration = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", "".join(text.lower().split()))
    here = datetime.fromtimestamp(now)
    if duration and any(duration.groups()):
        hours, minutes, seconds = (float(part or 0) for part in duration.groups())
        try:
            span = timedelta(hours=hours, minutes=minutes, seconds=seconds)
            _ = here + span  # a date that the clock knows
        except OverflowError:
            raise ValueError(
                tr(
                    "trainer.deadline={deadline} is too far away; null means no deadline",
                    deadline=text,
                )
            ) from None
        return now + span.total_seconds()
    if clock := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text):
        at = here.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return (at if at > here else at + timedelta(days=1)).timestamp()
    try:
        moment = datetime.fromisoformat(text).timestamp()
        datetime.fromtimestamp(moment)  # which a message will show
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            tr(
                "trainer.deadline={deadline} is neither a duration (11h30m, 45m, 90s) nor a time "
                "(06:30, 2026-11-23T06:30)",
                deadline=repr(text),
            )
        ) from None
    return moment


def _without_unit(text: str) -> str:
    """The message about a deadline that is a bare number, as YAML reads the clock time 23:58."""
    minutes = int(text)
    advice = tr(
        "trainer.deadline={deadline} has no unit: write {deadline}m, {deadline}s or {deadline}h "
        "for a duration",
        deadline=text,
    )
    if not 60 <= minutes < 24 * 60:
        return advice
    return tr(
        "{advice}. In a YAML file a clock time needs quotes: deadline: '{clock}'",
        advice=advice,
        clock=f"{minutes // 60}:{minutes % 60:02}",
    )
