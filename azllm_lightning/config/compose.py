"""From overrides, as one types them, to the checked settings of a verb."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, overload

from azllm_lightning.cli.composition import composed_mapping
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.verbs import (
    ChatConfig,
    CheckConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    PlanConfig,
    PrepareConfig,
    ProveResumeConfig,
    ReportConfig,
    RunsConfig,
)

log = logging.getLogger(__name__)

CONFIGS: dict[str, Any] = {
    "train": RunConfig,
    "prove_resume": ProveResumeConfig,
    "prepare": PrepareConfig,
    "generate": GenerateConfig,
    "chat": ChatConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "runs": RunsConfig,
    "check": CheckConfig,
    "plan": PlanConfig,
}
"""The dataclass of conf/<verb>.yaml, by verb."""


@overload
def compose(overrides: Sequence[str] = (), verb: Literal["train"] = "train") -> RunConfig: ...


@overload
def compose(overrides: Sequence[str], verb: str) -> Any: ...


def compose(overrides: Sequence[str] = (), verb: str = "train") -> Any:
    """The settings of `verb`, with `overrides` on top of the defaults as on the command line.

    Example: ``compose(["experiment=t4", "trainer.max_steps=10"])`` is a `RunConfig`.

    Raises ValueError with all unknown names at once, or with all wrong values.
    """
    config = CONFIGS[verb].from_mapping(composed_mapping(verb, overrides), overrides)
    for message in config.ignored():
        log.warning(message)
    return config


@cache
def tried(overrides: tuple[str, ...]) -> RunConfig:
    """What `train` would run with, for a command that is only considered: without warnings.

    Raises ValueError as `compose` does.
    """
    return RunConfig.from_mapping(composed_mapping("train", overrides), overrides)
