"""Strict validation: a mapping becomes a frozen dataclass, or one message with every mistake."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from azllm_lightning.cli.keys import unknown_key
from azllm_lightning.cli.messages import tr

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
            raise ValueError("\n".join(self.messages))


def from_mapping(cls: type[T], values: Mapping[str, Any], group: str = "") -> T:
    """Build the dataclass `cls` from plain `values`, refusing unknown keys and wrong types.

    `group` is the config group that the user would edit ("data", "trainer"; "" for keys outside
    groups); it starts every message. A field whose type is a dataclass takes a mapping; if that
    class has a method `read(values, group)`, that builds it. An int is accepted where a float is
    wanted; nothing else is converted, so that `max_steps=4.5` or `seed=abc` is reported, not
    coerced. Rules between values belong in the dataclass's `__post_init__`.

    Raises ValueError with every mistake.
    """
    problems = Problems(group)
    hints = typing.get_type_hints(cls)
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
            problems.add(tr("{key}={value} is not a group of settings", key=key, value=repr(value)))
            return None
        read = getattr(hint, "read", None)
        if read is not None:
            return problems.attempt(lambda: read(value, key))
        return problems.attempt(lambda: from_mapping(typing.cast("type[Any]", hint), value, key))
    options = _options(hint)
    if not any(_fits(value, option) for option in options):
        wanted = tr(" or ").join(dict.fromkeys(map(_described, options)))
        problems.add(tr("{key}={value} is not {wanted}", key=key, value=repr(value), wanted=wanted))
        return None
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_int and float in options and int not in options else value


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fits(value: Any, option: Any) -> bool:
    """Whether `value` is of the type `option`, which is not a union."""
    origin = typing.get_origin(option) or option
    if origin is typing.Literal:
        return value in typing.get_args(option)
    if option is Any:
        return True
    if option in (int, float):
        numbers = (int, float) if option is float else (int,)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if origin in (list, tuple):
        inner = (typing.get_args(option) or (Any,))[0]
        return isinstance(value, (list, tuple)) and all(_fits(item, inner) for item in value)
    return isinstance(value, Mapping if origin is dict else origin)


def _described(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        choices = ", ".join(map(str, typing.get_args(option)))
        return tr("one of {choices}", choices=choices)
    words = {
        int: tr("a whole number"),
        float: tr("a number"),
        str: tr("text"),
        bool: tr("true or false"),
        type(None): "null",
        list: tr("a list"),
        tuple: tr("a list"),
        dict: tr("a mapping"),
    }
    return words[typing.get_origin(option) or option]
