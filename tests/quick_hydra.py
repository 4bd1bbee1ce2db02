"""Hydra and YAML for tests, which compose thousands of times: they remember what a text says, and
what `hydra.compose` made of the files of conf/.

Half of the time of the quick tests went into composing the same settings.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import hydra
import pytest
import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from azllm_lightning.cli.composition import conf_dir

CHOICES = ("override_choices", "append_group_defaults", "deletions")


def remember(patch: pytest.MonkeyPatch) -> None:
    """Have both remember what was read, chosen and merged, until `patch` is undone."""
    names = (
        (yaml, "load", remembers_yaml),
        (yaml, "safe_dump", writes_in_c),
        (OverridesParser, "parse_rule", remembers_parsed),
        (defaults_list, "_create_defaults_list", remembers_choices),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list", remembers_merged),
        (hydra, "compose", remembers_composed),
    )
    for owner, name, remembering in names:
        patch.setattr(owner, name, remembering(getattr(owner, name)))


def remembers_yaml(load: Callable[..., Any]) -> Callable[..., Any]:
    """`yaml.load`, also that of `OmegaConf.load`, whose class of loaders is made anew each time.

    libyaml is ten times as fast; what it refuses, PyYAML reads or refuses in its words.
    """
    known: dict[tuple[str, str], bytes] = {}

    def read(text: str, loader: type) -> Any:
        if loader is yaml.SafeLoader:
            with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):
                return load(text, getattr(yaml, "CSafeLoader", loader))
        return load(text, loader)

    def call(stream: Any, Loader: type) -> Any:
        text = stream if isinstance(stream, str) else stream.read()
        if not isinstance(text, str):
            return load(text, Loader)
        key = text, Loader.__name__
        if key not in known:
            known[key] = pickle.dumps(read(text, Loader))
        return pickle.loads(known[key])

    return call


def writes_in_c(dump: Callable[..., str]) -> Callable[..., str]:
    """`yaml.safe_dump` by libyaml, which does not know lone surrogates."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    def call(data: Any, **settings: Any) -> str:
        try:
            text: str = yaml.dump(data, Dumper=dumper, **settings)
        except UnicodeEncodeError:
            return dump(data, **settings)
        return text

    return call


def remembers_parsed(parse: Callable[..., Any]) -> Callable[..., Any]:
    """`OverridesParser.parse_rule`, which takes a setting apart by a grammar."""
    known: dict[tuple[str, str], Any] = {}

    def call(self: OverridesParser, s: str, rule_name: str) -> Any:
        if (s, rule_name) not in known:
            known[s, rule_name] = parse(self, s, rule_name)
        return copy.deepcopy(known[s, rule_name])

    return call


def remembers_choices(choose: Callable[..., Any]) -> Callable[..., Any]:
    """`_create_defaults_list`, which finds out the files; it also notes them in `overrides`."""
    known: dict[str, Any] = {}

    def call(repo: Any, config_name: str, overrides: Any, **settings: Any) -> Any:
        if not reads_only_conf(repo):
            return choose(repo, config_name, overrides, **settings)
        chosen = [getattr(overrides, name) for name in CHOICES]
        key = repr((config_name, chosen, settings))
        if key not in known:
            result = choose(repo, config_name, overrides, **settings)
            state = {k: v for k, v in vars(overrides).items() if k != "config_overrides"}
            known[key] = result, copy.deepcopy(state)
        result, state = known[key]
        vars(overrides).update(copy.deepcopy(state))
        return result

    return call


def remembers_merged(merge: Callable[..., Any]) -> Callable[..., Any]:
    """`ConfigLoaderImpl._compose_config_from_defaults_list`, which merges the files."""
    known: dict[str, Any] = {}

    def call(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        if not reads_only_conf(repo):
            return merge(self, defaults=defaults, repo=repo)
        key = repr(defaults)
        if key not in known:
            known[key] = merge(self, defaults=defaults, repo=repo)
        return copy.deepcopy(known[key])

    return call


def remembers_composed(compose: Callable[..., Any]) -> Callable[..., Any]:
    """`hydra.compose`, whose configs nobody may change; environment variables are read later, when
    a config is resolved.
    """
    known: dict[str, Any] = {}

    def call(*names: Any, **settings: Any) -> Any:
        if not reads_only_conf(GlobalHydra.instance().config_loader()):
            return compose(*names, **settings)
        key = repr((names, sorted(settings.items())))
        if key not in known:
            known[key] = compose(*names, **settings)
            OmegaConf.set_readonly(known[key], True)
        return known[key]

    return call


def reads_only_conf(repo: Any) -> bool:
    """Whether no file is a test's own."""
    paths = {source.path for source in repo.get_sources() if source.scheme() == "file"}
    return paths == {str(conf_dir())}
