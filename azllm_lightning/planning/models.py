"""The models of conf/model, alone and with what was typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import yaml

from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.config.compose import tried
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.model import ModelConfig
from azllm_lightning.planning.choice import Candidate


@cache
def named_models() -> tuple[Candidate, ...]:
    """The models that model=NAME chooses, smallest first; read without Hydra, which would take a
    second to compose them.
    """
    names = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml"))
    found = [Candidate((f"model={name}",), ModelConfig(**_values(name))) for name in names]
    return tuple(sorted(found, key=lambda candidate: _layers(candidate.model)))


def models_with(overrides: Sequence[str]) -> tuple[Candidate, ...]:
    """The same models next to `overrides`, whose model=NAME does not count: with the further
    settings of the model that they or their experiment have, and without the models that these do
    not go with.
    """
    keys = typed_keys(overrides)
    if not any(key == "experiment" or key.startswith("model.") for key in keys):
        return named_models()
    others = [text for text in overrides if typed_keys([text]) != {"model"}]
    found = (_composed(others, candidate) for candidate in named_models())
    return tuple(candidate for candidate in found if candidate is not None)


def _composed(overrides: list[str], candidate: Candidate) -> Candidate | None:
    """`candidate` as `overrides` change it; None if they do not go together."""
    for settings in _ways(overrides, candidate):
        try:
            return Candidate(settings, tried((*overrides, *settings)).model)
        except ValueError:
            continue
    return None


def _ways(overrides: list[str], candidate: Candidate) -> Iterator[tuple[str, ...]]:
    """How `candidate` can be typed: the heads of an experiment are for its own width."""
    yield candidate.overrides
    if "model.n_head" not in typed_keys(overrides):
        yield (*candidate.overrides, f"model.n_head={candidate.model.n_head}")


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
