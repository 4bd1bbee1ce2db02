"""The config of a resumed run: its stored settings, overridden by those typed now."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from azllm_lightning.cli.composition import composed_mapping
from azllm_lightning.cli.messages import LANGUAGES, tr
from azllm_lightning.cli.overrides import ParsedOverride, hydra_overrides, parse_override
from azllm_lightning.config.callbacks import is_custom
from azllm_lightning.config.choices import NewChoices, new_choices
from azllm_lightning.config.effects import typed_keys
from azllm_lightning.config.run import RunConfig

Values = dict[str, Any]

FRESH = ("ckpt_path", "init_from", "logs_dir")
"""Keys that decide how this session starts, and are never taken from a stored config."""

CODE = ("callbacks", "logger")
"""Groups whose `_target_` entries name code to run: it comes from the user's config, never from a
file.
"""

FIXED = (
    "seed",
    "data.block_size",
    "data.mix",
    "data.val_windows",
    "optimizer.name",
    "teacher_share",
    "teacher_temperature",
    "trainer.global_batch_size",
)
"""Settings that a resume cannot change, in addition to the shape of the model: losses on other
validation windows could not be compared with the best until then.
"""

DERIVED = ("model.n_kv_head", "model.intermediate_size")
"""Sizes that follow from the others if they are null."""

HEAD = ("head_lr", "head_eps")
"""Settings of the optimizer with one of which the head is a parameter group of its own, which a
resume cannot change.
"""


def resumed_config(stored: Mapping[str, Any], typed: RunConfig, checkpoint: str) -> RunConfig:
    """The config stored in the file `checkpoint`, overridden by what was typed for this session.

    `stored` is the mapping in the checkpoint. `typed` is composed from the defaults and what was
    typed; only the keys that were typed are taken from it. A group choice (model=tiny,
    experiment=t4) that the run was started with changes nothing; a new one sets the values in which
    it differs from the one that it replaces.

    Raises ValueError, with both values, if a setting differs that a resume cannot change.
    """
    values = {
        key: value for key, value in copy.deepcopy(dict(stored)).items() if key != "overrides"
    }
    composed = typed.to_mapping()
    # Without the values that follow from the other sizes of the defaults.
    composed["model"] = composed_mapping("train", typed.overrides)["model"]
    choices = _new_choices(stored, typed)
    if choices is not None:
        choices.apply(values)
    parsed = [parse_override(text) for text in typed.overrides]
    for override in parsed:
        if not override.is_group(composed):
            _apply_override(values, override, composed)
    has_groups = any(override.is_group(composed) for override in parsed)
    defaults = composed_mapping("train") if has_groups else composed
    for group in ("data", "schedule", "trainer", "callbacks"):
        # Keys added since the run started get their defaults, whatever an experiment says today.
        _add_missing(values[group], defaults[group])
    for key in FRESH:
        values[key] = composed[key]
    values["lang"] = resumed_language(stored, typed)
    for group in CODE:
        own = {key: value for key, value in values[group].items() if not is_custom(value)}
        theirs = {key: value for key, value in composed[group].items() if is_custom(value)}
        values[group] = own | theirs
    # Before they are checked on their own: a mixture of two models may be impossible.
    _check_same_run(stored, values, checkpoint)
    earlier = stored.get("overrides", []) if choices is None else choices.earlier
    config = RunConfig.from_mapping(values, _joined(earlier, typed.overrides, composed))
    _check_same_run(stored, config.to_mapping(), checkpoint)
    config.data.check_source()
    return config


def resumed_language(stored: Mapping[str, Any], typed: RunConfig) -> str:
    """The language of a session that resumes: as typed, else $AZLLM_LANG, else that of the run."""
    if "lang" in typed_keys(typed.overrides) or os.environ.get("AZLLM_LANG"):
        return typed.lang
    found = stored.get("lang")
    return found if found in LANGUAGES else typed.lang


def own_entries(overrides: Sequence[str]) -> list[str]:
    """Those of `overrides` that describe objects of the user's own: a resume has them only if they
    are typed again.
    """
    paths = [parse_override(text).path for text in overrides]
    described = {
        path[:2]
        for text, path in zip(overrides, paths, strict=True)
        if path[0] in CODE and "_target_" in text
    }
    return [text for text, path in zip(overrides, paths, strict=True) if path[:2] in described]


def left_out(stored: Mapping[str, Any], resumed: RunConfig) -> list[str]:
    """The objects of the user's own that the run had, and that were not typed again."""
    now = resumed.to_mapping()
    return [
        f"{group}.{name}"
        for group in CODE
        for name, value in stored[group].items()
        if is_custom(value) and name not in now[group]
    ]


def kept_settings(stored: Mapping[str, Any], typed: RunConfig, resumed: RunConfig) -> list[str]:
    """A message for each group choice in `typed` that leaves settings of the run as they are,
    because they were typed when it was started.
    """
    choices = _new_choices(stored, typed)
    return [] if choices is None else choices.kept(resumed.to_mapping(), typed.overrides)


def _new_choices(stored: Mapping[str, Any], typed: RunConfig) -> NewChoices | None:
    return new_choices(stored.get("overrides", []), typed.overrides, typed.to_mapping())


def _joined(earlier: Iterable[str], typed: Sequence[str], composed: Values) -> list[str]:
    """What was typed for a run, in the order in which it counts: each setting once, and each group
    choice. The user's own objects are those typed now.
    """
    earlier = list(earlier)
    own = own_entries(earlier)
    known = hydra_overrides(typed)
    parsed = map(parse_override, typed)
    again = {override.path for override in parsed if not override.is_group(composed)}
    kept = [
        text
        for text in earlier
        if hydra_overrides([text])[0] not in known
        and parse_override(text).path not in again
        and text not in own
    ]
    return [*kept, *typed]


def _check_same_run(stored: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    keys = [*FIXED, *(f"model.{key}" for key in stored["model"] if key != "dropout")]
    if "tales" in (stored["data"]["name"], now["data"]["name"]):  # other names are only names
        keys.append("data.name")
    changes = []
    for key in keys:
        try:
            changes.append((key, _get(stored, key.split(".")), _get(now, key.split("."))))
        except KeyError:  # a setting that is newer than the run
            continue
    before, after = _head_settings(stored), _head_settings(now)
    is_same = stored["optimizer"]["name"] == now["optimizer"]["name"]
    if is_same and any(before.values()) != any(after.values()):
        changes += [(f"optimizer.{key}", before[key], after[key]) for key in HEAD]
    differing = [
        tr("{key}: {before} in the checkpoint, {now} requested", key=key, before=old, now=new)
        for key, old, new in changes
        if old != new and not (new is None and key in DERIVED)
    ]
    if differing:
        raise ValueError(
            tr(
                "{path} cannot be resumed with different values of settings that define the "
                "run:\n  {differing}\nOmit these, or start a new run (init_from= starts it from "
                "these weights)",
                path=checkpoint,
                differing="\n  ".join(differing),
            )
        )


def _head_settings(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Those of HEAD; None where a run is older, or has another optimizer."""
    return {key: values["optimizer"].get(key) for key in HEAD}


def _apply_override(values: Values, override: ParsedOverride, composed: Values) -> None:
    *parents, name = override.path
    for key in parents:
        values = values.setdefault(key, {})
    if override.is_deletion:
        values.pop(name, None)
    else:
        values[name] = _get(composed, override.path)


def _add_missing(values: Values, defaults: Values) -> None:
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _add_missing(values[key], value)
        else:
            values.setdefault(key, copy.deepcopy(value))


def _get(values: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = values
    for key in path:
        found = found[key]
    return found
