"""What to write instead of a value of the wrong type."""

from __future__ import annotations

import re
from typing import Any

from azllm_lightning.cli.messages import tr

SMALLEST_FLOAT_COUNT = 1000
"""1e3 is a thousand where a whole number is wanted; 10.000 reads as ten but may be ten thousand."""

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
"""What the letter after a number multiplies it by: 10k, 700 MB."""

SWITCHES = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}
"""What people write for true and false."""


def suggestion(value: Any, options: set[Any]) -> str:
    """What to do about `value`, which is none of the types in `options`; "" if that is unclear."""
    if str in options and isinstance(value, (bool, float)):
        return tr("put it in quotes")
    if isinstance(value, float) and value.is_integer() and int in options:
        return tr(
            "write {number}, or {thousands} for {thousands:,}",
            number=int(value),
            thousands=int(value) * 1000,
        )
    if bool in options and (switch := SWITCHES.get(str(value).lower())):
        return tr("write {value}", value=switch)
    if isinstance(value, str) and {int, float} & options:
        number = _number(value, float in options)
        return tr("write {value}", value=number) if number is not None else ""
    is_list = any(getattr(option, "__origin__", option) in (list, tuple) for option in options)
    if is_list and isinstance(value, str):
        return tr("write {value}", value=f"[{value.strip('[]() ')}]")
    return ""


def shown(value: Any) -> str:
    """`value` as it is written in a setting."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _number(text: str, is_fraction: bool) -> str | None:
    """The number that was meant by `text`, which is none to YAML: 10k, 10 000, 1,5, 1e−3."""
    text = re.sub(r"[\s_'’]", "", text.replace("\N{MINUS SIGN}", "-"))
    if is_fraction and re.fullmatch(r"-?\d+,\d+", text):
        return text.replace(",", ".")
    text = re.sub(r"(?<=\d)[.,](?=\d{3}(\D|$))", "", text)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)b?", text.lower()):
        number = float(match[1]) * UNITS[match[2]]
        return f"{number:.0f}" if number.is_integer() else f"{number:g}" if is_fraction else None
    return text if is_fraction and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) else None
