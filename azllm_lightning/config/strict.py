"""One strict door for settings: a mapping becomes a frozen dataclass, or one message that lists every mistake."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from plain `values`, refusing unknown keys and wrong types.

    `where` is the config group that the user would edit ("data", "trainer"; "" for keys outside groups); it starts
    every complaint.
    An int is taken where a float is asked for; nothing else is converted, so that `batch_size=4.5` or
    `seed=abc` is told and not bent. Rules between values belong in the dataclass's `__post_init__`.

    Raises ValueError with all mistakes at once.
    """
    hints = typing.get_type_hints(cls)
    group = f"{where}." if where else ""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    problems = [
        unknown_key(group + key, [group + k for k in known]) for key in values if key not in known
    ]
    accepted: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in values:
            if f.default is MISSING and f.default_factory is MISSING:
                problems.append(f"{group}{f.name} is missing")
            continue
        value = values[f.name]
        if not _fits(value, hints[f.name]):
            problems.append(f"{group}{f.name}={value!r} is not {_spell(hints[f.name])}")
        elif (
            isinstance(value, int)
            and not isinstance(value, bool)
            and float in _options(hints[f.name])
        ):
            accepted[f.name] = value if int in _options(hints[f.name]) else float(value)
        else:
            accepted[f.name] = value
    if problems:
        raise ValueError("\n".join(problems))
    return cls(**accepted)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The complaint about an unknown `key`, with the nearest known one if there is any."""
    if key in (known := list(known)):  # by the defaults; the group's choice here is another
        return f"{key} is no setting of the {key.partition('.')[0]} chosen here: leave it out"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown setting {key}" + (f"; did you mean {near[0]}?" if near else "")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for option in _options(hint):
        origin = typing.get_origin(option) or option
        if option is Any:
            return True
        if origin is typing.Literal:
            if value in typing.get_args(option):
                return True
        elif option is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif origin in (list, tuple):
            inner = (typing.get_args(option) or (Any,))[0]
            if isinstance(value, (list, tuple)) and all(_fits(v, inner) for v in value):
                return True
        elif origin is dict:
            if isinstance(value, Mapping):
                return True
        elif isinstance(value, origin):
            return True
    return False


def _spell(hint: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    words |= {list: "a list", tuple: "a list", dict: "a mapping"}
    spelt = [
        f"one of {', '.join(map(str, typing.get_args(option)))}"
        if typing.get_origin(option) is typing.Literal
        else words[typing.get_origin(option) or option]
        for option in _options(hint)
    ]
    return " or ".join(dict.fromkeys(spelt))
