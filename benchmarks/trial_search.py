"""A search over combinations of settings, by what the trials so far have shown.

A search file is a JSON object: `base`, the settings of all its trials; `space`, for each setting
that may change a list of values, the first of which is that of `base`; `seeds`. Each result that
differs from `base` in nothing else is an observation. The effects of the values on val_loss are
taken to add up: a Bayesian linear regression. The next trial has the values that are better for all
that is known, and in some settings, chosen at random, those that are best by one sample of the
posterior (Thompson 1933).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

EFFECT, NOISE = 0.04, 0.03
"""Standard deviations in nats: of the effect of a value before any trial, and of val_loss."""

CAP = 0.3
"""A val_loss further than this above the median counts as that: one that diverged says enough."""

EXPLORED = 0.25
"""Share of the settings with a sampled value."""

DOUBT = 0.7
"""Standard deviations by which a value has to be better than that of the base."""

Settings = dict[str, Any]
IGNORED = {"name", "seed", "data_root", "device", "keep_losses", "ema", "ema_mix", "tail"}
"""Settings in which observations may differ, besides those of the space."""


def propose(
    search: dict[str, Any], results: Iterable[dict[str, Any]], defaults: Settings, number: int
) -> Settings:
    """The settings of trial `number` of the `search`; what a result does not name is as in
    `defaults`.
    """
    rng = np.random.default_rng(number)
    space: dict[str, list[Any]] = search["space"]
    columns = columns_of(space)
    mean, covariance = posterior(*observations(search, results, defaults), len(columns))
    sampled = rng.multivariate_normal(mean, covariance)
    sure = mean + DOUBT * np.sqrt(np.diag(covariance))
    settings = dict(search["base"])
    for key, values in space.items():
        effects = sampled if rng.random() < EXPLORED else sure
        mine = [0.0] + [effects[j] for j, (name, _) in enumerate(columns) if name == key]
        settings[key] = values[int(np.argmin(mine))]
    settings["seed"] = search["seeds"][number % len(search["seeds"])]
    settings["name"] = f"search:{number}"
    return settings


def observations(
    search: dict[str, Any], results: Iterable[dict[str, Any]], defaults: Settings
) -> tuple[list[list[float]], list[float]]:
    """The values of each usable result as zeros and ones, one for each of `columns_of`, and its
    val_loss.
    """
    space: dict[str, list[Any]] = search["space"]
    kept = {k: v for k, v in {**defaults, **search["base"]}.items() if k not in {*space, *IGNORED}}
    rows, losses = [], []
    for result in results:
        ours = {**defaults, **result["settings"]}
        usable = "val_loss" in result and all(ours[key] == value for key, value in kept.items())
        if usable and all(ours[key] in values for key, values in space.items()):
            rows.append([float(ours[key] == space[key][i]) for key, i in columns_of(space)])
            losses.append(float(result["val_loss"]))
    return rows, losses


def columns_of(space: dict[str, list[Any]]) -> list[tuple[str, int]]:
    """Each setting with the index of each of its values but the first."""
    return [(key, i) for key, values in space.items() for i in range(1, len(values))]


def posterior(
    rows: list[list[float]], losses: list[float], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the `count` effects."""
    if not rows:
        return np.zeros(count), np.eye(count) * EFFECT**2
    y = np.array(losses)
    y = np.minimum(np.where(np.isfinite(y), y, np.inf), np.median(y) + CAP)
    X = np.column_stack([np.array(rows), np.ones(len(y))])
    y = y - y.mean()
    prior = np.append(np.full(count, EFFECT**-2), 1.0)  # the last is the base's own loss
    covariance = np.linalg.inv(X.T @ X / NOISE**2 + np.diag(prior))
    mean = covariance @ X.T @ y / NOISE**2
    return mean[:count], covariance[:count, :count]


def table(search: dict[str, Any], results: Iterable[dict[str, Any]], defaults: Settings) -> str:
    """The effect of each value and its standard deviation, best first."""
    columns = columns_of(search["space"])
    rows, losses = observations(search, results, defaults)
    mean, covariance = posterior(rows, losses, len(columns))
    seen = np.array(rows).sum(axis=0) if rows else np.zeros(len(columns))
    lines = [
        f"{mean[j]:+.4f} ± {covariance[j, j] ** 0.5:.4f}  n {seen[j]:.0f}  "
        f"{key}={search['space'][key][i]}"
        for j, (key, i) in enumerate(columns)
    ]
    return "\n".join(sorted(lines, key=lambda line: float(line.split()[0])))
