"""The models of conf/model, without Hydra, which would take a second to compose them."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.config.model import ModelConfig
from azllm_lightning.planning.choice import Candidate


@cache
def named_models() -> tuple[Candidate, ...]:
    """The models that model=NAME chooses, smallest first."""
    names = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml"))
    found = [Candidate((f"model={name}",), ModelConfig(**_values(name))) for name in names]
    return tuple(sorted(found, key=lambda candidate: _layers(candidate.model)))


def _values(name: str) -> dict[str, Any]:
    file = conf_dir() / "model" / f"{name}.yaml"
    own: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    inherited: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if base != "_self_":
            inherited |= _values(base)
    return inherited | own


def _layers(model: ModelConfig) -> int:
    return model.for_data(512, 256, 0).num_params(embeddings=False)
