"""Strict validation: a mapping becomes a frozen dataclass, or one message with every mistake."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from azllm_lightning.cli.keys import unknown_key
from azllm_lightning.cli.messages import tr
from azllm_lightning.config.local_paths import check_unicode, path_as_meant
from azllm_lightning.config.suggestions import SMALLEST_FLOAT_COUNT, shown, suggestion

T = TypeVar("T")


class Problems:
    """Collects what is wrong with the settings of one `group`, to report all of it at once."""

    def __init__(self, group: str = "") -> None:
        self.prefix = f"{group}." if group else ""
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Add one complete message."""
        self.messages.append(message)

    def require(self, ok: bool, name: str, value: object, wanted: str) -> None:
        """Unless `ok`, report that the setting `name` must be `wanted` ("at least 1") and is
        `value`.
        """
        if not ok:
            key = self.prefix + name
            self.add(tr("{key}={value} must be {wanted}", key=key, value=value, wanted=wanted))

    def require_choice(self, name: str, value: object, choices: Iterable[object]) -> None:
        """Report a `value` of the setting `name` that is not one of `choices`."""
        wanted = tr("one of {choices}", choices=", ".join(map(str, choices)))
        self.require(value in choices, name, value, wanted)

    def attempt(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; None, and its message added, if it raises ValueError."""
        try:
            return read()
        except ValueError as error:
            self.add(str(error))
            return None

    def raise_if_any(self) -> None:
        """Raise ValueError with every message, one per line."""
        if self.messages:
            raise ValueError("\n".join(dict.fromkeys(self.messages)))


def from_mapping(cls: type[T], values: Mapping[str, Any], group: str = "") -> T:
    """Build the dataclass `cls` from plain `values`, refusing unknown keys and wrong types.

    `group` is the config group that the user would edit ("data", "trainer"; "" for keys outside
    groups); it starts every message. A field whose type is a dataclass takes a mapping; if that
    class has a method `read(values, group)`, that builds it. An int is accepted where a float or
    a text is wanted, and 1e4 where an int is; nothing else is converted, so that `max_steps=4.5`
    or `seed=abc` is reported, not coerced. A float must be finite, a text must be valid Unicode,
    and a path gets what `path_as_meant` gives. Rules between values belong in the dataclass's
    `__post_init__`.

    Raises ValueError with every mistake.
    """
    problems = Problems(group)
    hints = typing.get_type_hints(cls, include_extras=True)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            full = [problems.prefix + name for name in known]
            problems.add(unknown_key(problems.prefix + key, full))
    accepted: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        name = field.name
        if name in values:
            accepted[name] = _accept(values[name], hints[name], problems.prefix + name, problems)
        elif field.default is MISSING and field.default_factory is MISSING:
            problems.add(tr("{key} is missing", key=problems.prefix + name))
    problems.raise_if_any()
    return cls(**accepted)


def _accept(value: Any, hint: Any, key: str, problems: Problems) -> Any:
    """`value` as the field's type `hint` wants it; a mistake is added to `problems`."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            problems.add(
                tr("{key}={value} is not a group of settings", key=key, value=shown(value))
            )
            return None
        read = getattr(hint, "read", None)
        if read is not None:
            return problems.attempt(lambda: read(value, key))
        return problems.attempt(lambda: from_mapping(typing.cast("type[Any]", hint), value, key))
    options = _options(hint)
    value = _converted(value, set(map(_plain, options)))
    if not any(_fits(value, option) for option in options):
        problems.add(_misfit(value, options, key))
        return None
    return problems.attempt(lambda: _as_meant(value, options, key))


def _converted(value: Any, options: set[Any]) -> Any:
    """`value` in the type that is wanted, where its meaning is beyond doubt."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and int not in options:
        if float in options:
            return float(value) if abs(value) <= sys.float_info.max else math.inf
        return str(value) if str in options else value
    # A smaller one is rather 10.000 for ten thousand than 1e1 for ten.
    is_count = isinstance(value, float) and value.is_integer() and value >= SMALLEST_FLOAT_COUNT
    if is_count and int in options and float not in options:
        return int(value)
    if isinstance(value, (list, tuple)):
        items = {_plain(item) for option in options for item in typing.get_args(option)}
        return [_converted(item, items) for item in value] if str in items else value
    return value


def _as_meant(value: Any, options: tuple[Any, ...], key: str) -> Any:
    """`value` with each path in it as `path_as_meant` gives it.

    Raises ValueError for text that is not Unicode; a path may have any bytes.
    """
    kinds = [kind for option in options for kind in _path_kinds(option)]
    texts = value if isinstance(value, (list, tuple)) else [value]
    if kinds and isinstance(value, list):
        return [path_as_meant(text, key, kinds[0]) for text in value]
    if kinds and isinstance(value, str):
        return path_as_meant(value, key, kinds[0])
    for text in texts:
        if isinstance(text, str):
            check_unicode(key, text)
    return value


def _path_kinds(option: Any) -> tuple[str, ...]:
    """The kind of path that the type `option` is, or that its items are."""
    kinds = getattr(option, "__metadata__", ())
    return kinds or tuple(
        kind for item in typing.get_args(option) for kind in getattr(item, "__metadata__", ())
    )


def _plain(option: Any) -> Any:
    """`option` without what annotates it."""
    return option.__origin__ if hasattr(option, "__metadata__") else option


def _misfit(value: Any, options: tuple[Any, ...], key: str) -> str:
    """The message about a value of the wrong type."""
    wanted = tr(" or ").join(dict.fromkeys(map(_described, options)))
    if isinstance(value, float) and not math.isfinite(value) and float in options:
        wanted = tr("a finite number")
    message = tr("{key}={value} is not {wanted}", key=key, value=shown(value), wanted=wanted)
    if hint := suggestion(value, set(map(_plain, options))):
        return tr("{message}: {hint}", message=message, hint=hint)
    return message


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fits(value: Any, option: Any) -> bool:
    """Whether `value` is of the type `option`, which is not a union."""
    option = _plain(option)
    origin = typing.get_origin(option) or option
    if origin is typing.Literal:
        return value in typing.get_args(option)
    if option is Any:
        return True
    if option in (int, float):
        numbers = (int, float) if option is float else (int,)
        is_infinite = isinstance(value, float) and not math.isfinite(value)
        return isinstance(value, numbers) and not isinstance(value, bool) and not is_infinite
    if origin in (list, tuple):
        inner = (typing.get_args(option) or (Any,))[0]
        return isinstance(value, (list, tuple)) and all(_fits(item, inner) for item in value)
    return isinstance(value, Mapping if origin is dict else origin)


def _described(option: Any) -> str:
    option = _plain(option)
    if float in typing.get_args(option):
        return tr("a list of numbers")
    if str in map(_plain, typing.get_args(option)):
        return tr("a list of texts")
    if typing.get_origin(option) is typing.Literal:
        choices = ", ".join(map(str, typing.get_args(option)))
        return tr("one of {choices}", choices=choices)
    words = {
        int: tr("a whole number"),
        float: tr("a number"),
        str: tr("text"),
        bool: tr("true or false"),
        type(None): "null",
        dict: tr("a mapping"),
    }
    return words[typing.get_origin(option) or option]
