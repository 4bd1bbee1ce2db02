"""Values as people type them: each gets what was meant, or a message with the way out."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
import typing
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.cli.composition import composed_mapping
from azllm_lightning.cli.overrides import LIST_KEYS, TEXT_KEYS
from azllm_lightning.config.callbacks import HealthConfig
from azllm_lightning.config.compose import CONFIGS, compose
from azllm_lightning.config.local_paths import OUTPUT, check_folder_name
from azllm_lightning.config.optimizer import CHOICES, AdamWConfig, MuonConfig, OptimizerConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.strict import from_mapping
from azllm_lightning.config.trainer import parse_deadline

NEEDED = {"export": ["out=m"], "plan": ["data.path=x"]}
"""What a verb cannot do without."""

VERBS = sorted(CONFIGS.keys() - {"prepare", "prove_resume"})
"""Those with settings of their own; the two others have those of train."""


def settings_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of the dataclass `cls` with its type, nested ones included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = MuonConfig if hints[field.name] is OptimizerConfig else hints[field.name]
        if hint is RunConfig:
            continue  # as of train
        if dataclasses.is_dataclass(hint):
            yield from settings_of(typing.cast("type", hint), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def kinds_in(hint: Any) -> set[Any]:
    """The kinds of path in a type."""
    found = set(getattr(hint, "__metadata__", ()))
    return found or found.union(*map(kinds_in, typing.get_args(hint)))


PATHS = [
    (verb, key, kind)
    for verb in VERBS
    for key, hint in settings_of(CONFIGS[verb])
    for kind in kinds_in(hint)
    if not (verb == "evaluate" and key in ("data.val_path", "data.tokenizer"))
]
FLOATS = [
    (verb, key)
    for verb in VERBS
    for key, hint in settings_of(CONFIGS[verb])
    if float in (hint, *typing.get_args(hint))
]
COUNTS = [key for key, hint in settings_of(RunConfig) if int in (hint, *typing.get_args(hint))]


@cache
def defaults(verb: str) -> dict[str, Any]:
    return composed_mapping(verb, NEEDED.get(verb, []))


def typed(verb: str, key: str, value: Any) -> Any:
    """The value of `key` in the config of `verb` where it was set to `value`."""
    values = copy.deepcopy(defaults(verb))
    *groups, name = key.split(".")
    group = values
    for part in groups:
        group = group[part]
    if key in ("data.path", "data.val_path") and verb == "train":
        group["name"] = "text"
    group[name] = value
    config = CONFIGS[verb].from_mapping(values)
    for part in [*groups, name]:
        config = getattr(config, part)
    return config


def test_there_are_settings_to_try() -> None:
    paths = "logs_dir out check ckpt_path init_from teachers hf pairs data.path data.val_path"
    assert {key for _, key, _ in PATHS} == {*paths.split(), "data.dir", "data.tokenizer"}
    assert len(FLOATS) >= 15
    assert len(COUNTS) >= 20


@pytest.mark.parametrize(("verb", "key", "kind"), PATHS)
def test_a_tilde_is_the_home_folder(
    verb: str, key: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert typed(verb, key, "~/mənim yerim") == str(tmp_path / "mənim yerim")
    if key in LIST_KEYS:
        assert typed(verb, key, ["~/a", "b"]) == [str(tmp_path / "a"), "b"]


@pytest.mark.parametrize(("verb", "key", "kind"), PATHS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_is_found_in_either_unicode_form(
    form: typing.Literal["NFC", "NFD"],
    verb: str,
    key: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(unicodedata.normalize(form, "çörək"))
    (folder / unicodedata.normalize(form, "şəkər.txt")).mkdir(parents=True)
    for other in ("NFC", "NFD"):
        there = typed(verb, key, unicodedata.normalize(other, "çörək/şəkər.txt"))
        assert Path(there).exists()


@pytest.mark.parametrize(("verb", "key", "kind"), PATHS)
def test_a_path_is_not_empty_and_a_url_only_where_text_is_read(
    verb: str, key: str, kind: str
) -> None:
    with pytest.raises(ValueError, match=f"{key} is empty"):
        typed(verb, key, " ")
    if key in ("data.path", "data.val_path", "pairs"):
        assert typed(verb, key, "https://x.az/a.txt") == "https://x.az/a.txt"
    else:
        with pytest.raises(ValueError, match=f"{key}=s3://b/x: a URL"):
            typed(verb, key, "s3://b/x")
    assert typed(verb, key, "file:///a/b") == str(Path("/a/b"))


@pytest.mark.parametrize(("verb", "key", "kind"), PATHS)
def test_undecodable_bytes_reach_a_file_that_is_read(verb: str, key: str, kind: str) -> None:
    name = b"a\xff.x".decode("utf-8", "surrogateescape")
    if kind == OUTPUT:
        with pytest.raises(ValueError, match=f"{key}=.*not UTF-8"):
            typed(verb, key, name)
    else:
        assert typed(verb, key, name) == name


@pytest.mark.parametrize(
    ("verb", "key"),
    [("train", "run_name"), ("generate", "prompt"), ("generate", "stop"), ("export", "license")],
)
def test_undecodable_bytes_in_other_text_are_refused(verb: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=.*not UTF-8"):
        typed(verb, key, "a\udcff")


@pytest.mark.parametrize(("verb", "key"), FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, int("9" * 400)])
def test_a_number_is_finite(verb: str, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key}=-?(nan|inf) is not a finite number"):
        typed(verb, key, value)


def test_numbers_in_a_list_are_finite() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.betas=.* is not a list of numbers"):
        compose(["optimizer.betas=[0.9,nan]"])
    for cls in CHOICES.values():
        assert issubclass(cls, AdamWConfig)


@pytest.mark.parametrize("key", COUNTS)
def test_a_count_may_have_an_exponent(key: str) -> None:
    if key not in ("model.n_head", "model.n_kv_head", "model.n_embd"):  # they go together
        assert typed("train", key, 1e4) == 10_000
    with pytest.raises(ValueError, match=f"{key}=10000.5 is not a whole number"):
        typed("train", key, 10_000.5)


WRITTEN = {
    "trainer.max_steps=10k": "write 10000",
    "trainer.max_steps=10 000": "write 10000",
    "trainer.max_steps=1.000.000": "write 1000000",
    "trainer.max_steps=10.000": "write 10, or 10000 for 10,000",
    "trainer.max_steps=10,000": "without separators",
    "data.max_bytes=700MB": "write 700000000",
    "data.max_bytes=1.5 GB": "write 1500000000",
    "optimizer.lr=1e−3": "write 1e-3",
    "optimizer.lr=0,01": "with a point",
    "optimizer.betas=(0.9,0.95)": "write [0.9,0.95]",
    "trainer.compile=yes": "write true",
    "trainer.deterministic=0": "write false",
    "callbacks.samples.prompts=Bir gün": "write [Bir gün]",
    "callbacks.samples.prompts='[Bir gün,Bakı]'": "write [Bir gün,Bakı]",
    "seed=null": "seed=null",
    "trainer.precision=16": "16-mixed",
    "model=böyük": "available: course",
    "data=kitab": "available: fineweb2",
    "experiment=t5": "available: colab",
    "run_name=${ad}": "${oc.env:ad}",
    "callbacks=null": "takes the name of one of its files",
}


@pytest.mark.parametrize(("text", "advice"), WRITTEN.items())
def test_what_cannot_be_meant_gets_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError) as refused:
        compose([text])
    assert advice in str(refused.value)
    assert text.partition("=")[0] in str(refused.value) or "group" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "variable", "value"),
    [
        ("run_name", "077", "077"),
        ("data.tokenizer", "a b", "a b"),
        ("trainer.max_steps", "77", 77),
        ("optimizer.lr", "1e-3", 1e-3),
        ("callbacks.early_stopping", "true", True),
        ("trainer.precision", "bf16-mixed", "bf16-mixed"),
        ("data.languages", "[az,tr]", ["az", "tr"]),
    ],
)
def test_the_advice_on_an_environment_variable_works(
    key: str, variable: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="there is no setting STEPS") as refused:
        compose([f"{key}=${{STEPS}}"])
    monkeypatch.setenv("STEPS", variable)
    config = compose([f"{key}={str(refused.value).rpartition(' ')[2]}"])
    assert operator.attrgetter(key)(config) == value


@pytest.mark.parametrize(
    "text", [text for text, said in WRITTEN.items() if said.startswith("write ")]
)
def test_the_advice_works(text: str) -> None:
    key = text.partition("=")[0]
    with pytest.raises(ValueError) as refused:
        compose([text])
    value = str(refused.value).partition(": write ")[2].partition(", or")[0]
    compose([f"{key}={value}"])


@pytest.mark.parametrize("value", [2026, 0, 12])
def test_a_number_is_text_where_text_is_wanted(value: int) -> None:
    config = RunConfig.from_mapping({**compose().to_mapping(), "run_name": value})
    assert config.run_name == str(value)
    with pytest.raises(ValueError, match="run_name=true is not text: put it in quotes"):
        RunConfig.from_mapping({**compose().to_mapping(), "run_name": True})


def test_python_s_none_is_null() -> None:
    assert compose(["init_from=None"]).init_from is None
    assert compose(["run_name=None"], "generate").run_name is None
    assert compose(["prompt=None"], "generate").prompt == "None"


def test_a_run_has_one_name_in_both_unicode_forms() -> None:
    names = {
        compose([f"run_name={unicodedata.normalize(form, 'çay')}"]).run_name
        for form in ("NFC", "NFD")
    }
    assert names == {"çay"}


RESERVED = ["con", "PRN", "Aux", "nul", "COM1", "com9.txt", "lpt0", "LPT³", "nul.tar.gz", "conin$"]


@pytest.mark.parametrize("name", [*RESERVED, "a/b", "a\\b", "a:b", "x.", " x", "..", "ə" * 101, ""])
def test_a_name_that_some_system_does_not_allow(name: str) -> None:
    with pytest.raises(ValueError, match="run_name="):
        check_folder_name("run_name", name)


@pytest.mark.parametrize("name", ["console", "com", "com10", "nul_1", "a.b", "ə" * 100])
def test_a_name_that_every_system_allows(name: str) -> None:
    check_folder_name("run_name", name)


@pytest.mark.parametrize(
    ("text", "advice"),
    [("1438", "'23:58'"), ("750", "'12:30'"), ("90", "90m"), ("20261123", "20261123m")],
)
def test_a_deadline_without_a_unit(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_deadline(text, now=0.0)


def test_a_deadline_may_have_spaces() -> None:
    assert parse_deadline("11h 30m", now=0.0) == 41_400


def test_every_text_key_is_a_text() -> None:
    texts = set()
    for cls in CONFIGS.values():
        for key, hint in settings_of(cls):
            if str in {
                getattr(part, "__origin__", part) for part in (hint, *typing.get_args(hint))
            }:
                texts.add(key)
    assert TEXT_KEYS - {"callbacks.samples.prompts"} <= texts
    chosen = "lang format quant init_embeddings init_attention data.txt_documents data.on_bad_utf8"
    chosen += " trainer.precision optimizer.name"
    chosen += " trainer.devices trainer.strategy schedule.name data.verify data.encoding"
    chosen += " data.languages host"
    texts -= {"overrides", "callbacks.custom", "logger.custom", "auto.device", "auto.settings"}
    texts = {key for key in texts if not key.startswith("run.")}  # of check: those of train
    assert texts - TEXT_KEYS == set(chosen.split())


def test_infinity_does_not_pass_for_a_whole_number() -> None:
    values = dataclasses.asdict(compose().callbacks.health) | {"patience": math.inf}
    with pytest.raises(ValueError, match="patience=inf is not a whole number"):
        from_mapping(HealthConfig, values)
