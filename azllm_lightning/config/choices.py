"""Groups (model=tiny, experiment=t4) that are chosen anew when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azllm_lightning.cli.composition import composed_mapping, group_choices
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.overrides import hydra_overrides, parse_override
from azllm_lightning.config.suggestions import shown

Values = dict[str, Any]
Leaves = dict[tuple[str, ...], Any]


@dataclass(frozen=True)
class NewChoices:
    """What the choices of a run give `before` and `after` the new ones in `typed`."""

    typed: tuple[str, ...]
    before: Values
    after: Values
    alone: Values
    """What the groups in `typed` give without the other choices of the run, as its experiment."""
    replaces_model: bool
    earlier: tuple[str, ...]
    """What was typed for the run before, without the choices that are replaced."""

    def apply(self, values: Values) -> None:
        """Set in `values`, those of the run, what the new choices change."""
        _apply_difference(values, self.before, self.after)
        if self.replaces_model:  # what it leaves at null follows from its own sizes
            values["model"] |= self.alone["model"]

    def kept(self, resumed: Mapping[str, Any], typed: Sequence[str]) -> list[str]:
        """A message for each new choice that does not have its own values in the `resumed`
        settings, because others were typed for the run before, and not again in `typed`.
        """
        messages = []
        now = dict(_leaves(resumed))
        mine = {parse_override(text).path for text in self.earlier}
        alone = dict(_leaves(self.alone))
        mine |= {path for path, value in _leaves(self.after) if alone.get(path, value) != value}
        mine -= {parse_override(text).path for text in typed}
        for choice in self.typed:
            others = {
                path: value
                for path, value in self._brings(choice).items()
                if path in mine and value is not None and now.get(path, value) != value
            }
            if others:
                messages.append(
                    tr(
                        "{choice}: what was typed for this run before stays: {kept} ({choice} "
                        "alone: {others}). To change it, type the setting itself",
                        choice=choice.lstrip("+"),
                        kept=_settings({path: now[path] for path in others}),
                        others=_settings(others),
                    )
                )
        return messages

    def _brings(self, choice: str) -> Leaves:
        """The values of a group; of an experiment, those that are not the defaults."""
        leaves = dict(_leaves(self.alone))
        group = _group(choice)
        if group != "experiment":
            return {path: value for path, value in leaves.items() if path[0] == group}
        defaults = dict(_leaves(composed_mapping("train")))
        return {path: value for path, value in leaves.items() if defaults.get(path) != value}


def new_choices(
    started_with: Sequence[str], typed: Sequence[str], composed: Mapping[str, Any]
) -> NewChoices | None:
    """The groups in `typed`, for a config like `composed`, that are new to a run that was
    `started_with` others; None if there are none.

    A choice that the run was started with changes nothing when it is typed again. A new experiment
    replaces the choice of each group for which it makes one.
    """
    old = _choices(started_with, composed)
    now = _choices(typed, composed)
    new = [text for group, text in now.items() if old.get(group) != text]
    if not new:
        return None
    made = set(group_choices("train", new).items()) - set(group_choices("train").items())
    replaced = {group for group, _ in made} | now.keys()
    remaining = [text for group, text in old.items() if group not in replaced]
    before = list(old.values())
    after = [*remaining, *now.values()]
    return NewChoices(
        typed=tuple(new),
        before=composed_mapping("train", before),
        after=composed_mapping("train", after),
        alone=composed_mapping("train", list(now.values())),
        replaces_model=_model(before) != _model(after),
        earlier=tuple(
            text
            for text in started_with
            if not parse_override(text).is_group(composed) or _group(text) not in replaced
        ),
    )


def _choices(overrides: Sequence[str], composed: Mapping[str, Any]) -> dict[str, str]:
    """The last choice of each group, in the form that Hydra reads."""
    chosen = [text for text in overrides if parse_override(text).is_group(composed)]
    return {_group(text): hydra_overrides([text])[0] for text in chosen}


def _group(choice: str) -> str:
    return parse_override(choice).path[0]


def _model(choices: Sequence[str]) -> str:
    return group_choices("train", choices)["model"]


def _apply_difference(values: Values, base: Values, changed: Values) -> None:
    for key in base.keys() - changed.keys():  # another optimizer has other settings
        values.pop(key, None)
    for key, value in changed.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _apply_difference(values.setdefault(key, {}), base[key], value)
        elif key not in base or base[key] != value:
            values[key] = value


def _leaves(values: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Iterator[Any]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*parents, key))
        else:
            yield (*parents, key), value


def _settings(leaves: Leaves) -> str:
    return ", ".join(
        f"{'.'.join(path)}={value if isinstance(value, str) else shown(value)}"
        for path, value in leaves.items()
    )
