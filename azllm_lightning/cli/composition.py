"""Compose conf/ and overrides with Hydra into a plain mapping, or explain why that fails."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from azllm_lightning.cli.keys import keys_of, unknown_key
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.misspelled import nearest
from azllm_lightning.cli.overrides import TEXT_KEYS, hydra_overrides
from azllm_lightning.cli.system_errors import explained

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)

REFUSALS = {
    "ambiguous": r"Ambiguous value for argument '([^=']+)=(.+)'\n",
    "unknown": r"Could not override '([^']+)'\.\nTo append to your config",
}
"""How messages of Hydra about one setting begin."""

NO_GROUP = (
    r"(In 'experiment/(?P<experiment>[^']+)': )?"
    r"Could not override '(?P<group>[^']+)'\. No match in the defaults list"
)
"""How a message of Hydra about a group that a verb lacks begins."""


def conf_dir() -> Path:
    """The folder of Hydra configs: the packaged one if there is one, else the repository's."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def composed_mapping(verb: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed config of `verb` as plain containers, not yet validated.

    Raises ValueError, with a message for the user, if Hydra cannot compose it.
    """
    with _composed(verb, overrides) as config:
        return plain(config)


def group_choices(verb: str, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The file that each group of `verb` takes: tiny for model, small_text for experiment.

    Raises ValueError, with a message for the user, if Hydra cannot compose it.
    """
    with _composed(verb, overrides, return_hydra_config=True) as config:
        choices: dict[str, str] = dict(config.hydra.runtime.choices)
    return {group: name for group, name in choices.items() if not group.startswith("hydra")}


@contextlib.contextmanager
def _composed(verb: str, overrides: Sequence[str], **options: bool) -> Iterator[DictConfig]:
    """The config of `verb`; what is wrong with it, also when it is read, is a ValueError."""
    import hydra

    typed = hydra_overrides(overrides)
    try:
        with _our_hydra():
            yield hydra.compose(config_name=verb, overrides=typed, **options)
    except (*HYDRA_ERRORS, ValueError) as error:
        raise ValueError(explanation(error, verb, overrides)) from None


@contextlib.contextmanager
def _our_hydra() -> Iterator[None]:
    """Have `hydra.compose` read our conf/, whatever Hydra the program uses itself, and give its own
    back to it.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    theirs = GlobalHydra.instance().hydra
    if theirs is not None and _reads_our_conf(theirs.config_loader):
        yield  # of the running command, which may have a --config-dir too
        return
    version = VersionBase.instance().getbase()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = theirs
        VersionBase.instance().version_base = version


def _reads_our_conf(loader: ConfigLoader) -> bool:
    places = [element.path or "" for element in loader.get_search_path().get_path()]
    return str(conf_dir()) in [place.removeprefix("file://") for place in places]


def plain(config: DictConfig) -> dict[str, Any]:
    """A resolved config as plain containers."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    if values.get("lang") == "" == os.environ.get("AZLLM_LANG"):
        values["lang"] = "en"  # an empty variable counts as none
    return {str(key): value for key, value in values.items()}


def explanation(error: BaseException, verb: str, overrides: Sequence[str] = ()) -> str:
    """What an error means for the user, and how to fix it.

    Hydra stops at the first of `overrides` that it refuses: the message has all that it refuses for
    the same reason, which do not depend on each other.
    """
    messages = [_explanation(error, verb)]
    for other in _others(error, verb, hydra_overrides(overrides)):
        messages.append(_explanation(other, verb))
    return "\n".join(dict.fromkeys(messages))


def _others(error: BaseException, verb: str, overrides: Sequence[str]) -> Iterator[BaseException]:
    """What Hydra says next, each time without the setting that it refused before."""
    import hydra

    refused = _refused(error)
    while refused is not None:
        rest = [text for text in overrides if text.partition("=")[0].lstrip("+~") != refused.key]
        if len(rest) == len(overrides):  # it is in a file
            return
        overrides = rest
        try:
            with _our_hydra():
                hydra.compose(config_name=verb, overrides=overrides)
            return
        except HYDRA_ERRORS as found:
            following = _refused(found)
            if following is None or following.why != refused.why:
                return
            refused = following
            yield found


class _Refused(NamedTuple):
    """The setting that Hydra refuses, and why."""

    key: str
    why: str


def _refused(error: BaseException) -> _Refused | None:
    """What `error` is about; None if that is no single setting."""
    if isinstance(error, OverrideParseException):
        return _Refused(str(error.override).partition("=")[0].lstrip("+~"), "unreadable")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _Refused(error.missing_cfg_file.rpartition("/")[0], "unknown choice")
    for why, pattern in REFUSALS.items():
        if match := re.match(pattern, str(error)):
            return _Refused(match[1], why)
    return None


def _explanation(error: BaseException, verb: str) -> str:
    """The message about one error."""
    message = explained(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(str(error.override), verb)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return _unknown_choice(group, choice, error.options)
    if message.startswith("Config group override must be"):
        return tr(
            "a group (model, data, trainer, ...) takes the name of one of its files, such as "
            "model=nano; --help lists them"
        )
    if match := re.match(r"Multiple values for (\S+)\.", message):
        return tr(
            "{group} is chosen twice: keep one of {group}=NAME",
            group=match[1].rpartition("/")[2].partition("@")[0],
        )
    if match := re.match(REFUSALS["ambiguous"], message):
        setting = f"{match[1]}={match[2]}"
        return _number_with_a_comma(setting) or tr(
            "{setting} is ambiguous: write a decimal number with a point (0.5), a large one "
            "without separators (10000), text with a comma in two kinds of quotes "
            "(\"key='a,b'\"), a list as key=[a,b], or add -m for one run per value",
            setting=setting,
        )
    if match := re.match(NO_GROUP, message):
        return _no_group(match["group"], match["experiment"], verb)
    if isinstance(error, InterpolationKeyError):
        return _dangling_reference(str(error.full_key), message)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {message.splitlines()[0]}"
    if unknown := re.match(REFUSALS["unknown"], message):
        return unknown_key(unknown[1], keys_of(composed_mapping(verb)))
    return message


def _dangling_reference(key: str, message: str) -> str:
    """What to write instead of ${NAME}, in the value of `key`, where NAME is no setting."""
    found = re.search("Interpolation key '(.+?)'", message)
    name = found[1] if found else ""
    variable = f"${{oc.env:{name}}}"  # which is text, also of digits
    return tr(
        "{key}: there is no setting {name} for ${{{name}}} to refer to; an environment variable "
        "is {variable}",
        key=key,
        name=name,
        variable=variable if key in TEXT_KEYS else f"${{oc.decode:{variable}}}",
    )


def _no_group(group: str, experiment: str | None, verb: str) -> str:
    """An `experiment`, or a choice of a `group`, is typed for a verb without such groups."""
    setting = f"experiment={experiment}" if experiment else f"{group}=..."
    needed = "trainer" if experiment else group  # an experiment changes the groups of a run
    verbs = sorted(file.stem for file in conf_dir().glob("*.yaml"))
    verbs = [name for name in verbs if needed in group_choices(name)]
    if experiment and verb == "prepare":
        return tr(
            "{setting} is for {verbs}; train prepares the text itself, and prepare takes settings "
            "of data alone, such as data=text data.path=FILE",
            setting=setting,
            verbs=", ".join(verbs),
        )
    return tr(
        "{setting} is for {verbs}, not for {verb}",
        setting=setting,
        verbs=", ".join(verbs),
        verb=verb,
    )


def _number_with_a_comma(setting: str) -> str:
    """What to write instead of hours=0,5 or trainer.max_steps=10,000; "" for anything else."""
    key, _, value = setting.partition("=")
    if key == "trainer.devices":
        return tr(
            "{setting}: write a list of GPUs as {key}=[{value}]",
            setting=setting,
            key=key,
            value=value,
        )
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", value) and not value.startswith("0"):
        return tr(
            "{setting}: write a large number without separators, {key}={number}, or a decimal "
            "number with a point, {key}={decimal}",
            setting=setting,
            key=key,
            number=value.replace(",", ""),
            decimal=value.replace(",", ".", 1).replace(",", ""),
        )
    if re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", value):
        return tr(
            "{setting}: write a decimal number with a point, {key}={decimal}",
            setting=setting,
            key=key,
            decimal=value.replace(",", "."),
        )
    return ""


def _unreadable_override(text: str, verb: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or key != key.strip():
        return tr(
            "{text} is not a setting: type key=value without spaces around the equals sign, and "
            'put straight quotes around text with spaces: prompt="Bir gün"',
            text=text,
        )
    group = conf_dir() / key.lstrip("+")
    if group.is_dir():
        return _unknown_choice(
            group.name, value, sorted(file.stem for file in group.glob("*.yaml"))
        )
    values = composed_mapping(verb)
    name = key.lstrip("+~")
    if name not in keys_of(values):
        return unknown_key(name, keys_of(values))
    return tr(
        "{text} cannot be read: write a number in digits; text needs quotes inside the shell's "
        "quotes, \"{key}='{value}'\"",
        text=text,
        key=key,
        value=value,
    )


def _unknown_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    near = nearest(choice, choices)
    if near is not None:
        return tr(
            'unknown {group} "{choice}"; did you mean {near}? Available: {choices}',
            group=group,
            choice=choice,
            near=near,
            choices=", ".join(choices),
        )
    return tr(
        'unknown {group} "{choice}"; available: {choices}',
        group=group,
        choice=choice,
        choices=", ".join(choices),
    )
