"""Hydra for tests, which compose thousands of times: it remembers what the files of conf/ say, and
what `hydra.compose` made of them.

Half of the time of the quick tests went into composing the same settings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hydra
import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from azllm_lightning.cli.composition import conf_dir

CHOICES = ("override_choices", "append_group_defaults", "deletions")


def remember(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra remember what it read, chose and merged, until `patch` is undone."""
    names = (
        (FileConfigSource, "load_config", remembers_files),
        (defaults_list, "_create_defaults_list", remembers_choices),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list", remembers_merged),
        (hydra, "compose", remembers_composed),
    )
    for owner, name, remembering in names:
        patch.setattr(owner, name, remembering(getattr(owner, name)))


def remembers_files(load: Callable[..., Any]) -> Callable[..., Any]:
    """`FileConfigSource.load_config`, which parses YAML."""
    known: dict[str, Any] = {}

    def call(self: FileConfigSource, config_path: str) -> Any:
        if self.path != str(conf_dir()):
            return load(self, config_path)
        if config_path not in known:
            known[config_path] = load(self, config_path)
        return copy.deepcopy(known[config_path])

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
