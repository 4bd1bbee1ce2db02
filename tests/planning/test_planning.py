"""The rules, the law, the choice of a run, and the warning: each by what it promises."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.optimizer import MuonConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.corpus import Document, documents
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.shards import SPLITS, Manifest, Split
from azllm_lightning.planning import rule
from azllm_lightning.planning.choice import (
    LEAST_STEPS,
    SAMPLES_AND_PAGE_SECONDS,
    VALIDATIONS,
    Candidate,
    Choice,
    Task,
    choose,
    longer,
    planned,
    state_bytes,
)
from azllm_lightning.planning.far_off import USUAL_RATES, TextSize, advice
from azllm_lightning.planning.forecast import forecast
from azllm_lightning.planning.law import (
    DOCUMENT_SPREAD,
    Size,
    coefficients,
    effective_data,
    predict,
)
from azllm_lightning.planning.models import named_models
from azllm_lightning.planning.speed import Speed
from azllm_lightning.planning.survey import Sample, Text, prepared, scale_of, spread_of, survey
from azllm_lightning.training.batch import CPU_BYTES, HEADROOM, activation_bytes, divisors
from azllm_lightning.training.schedule import branching

MB = 1e6
SIZE = Size(5_000_000, 200_000, 1_600_000, 1_000_000, 8192, 5.0)
SLOW = replace(Speed.assumed("cpu", 2), flops=1.5e10, optimizer_flops=1.5e10)


def text(megabytes: float) -> Text:
    return Text(
        "text", 0.95 * megabytes * MB, 0.05 * megabytes * MB, 100, 0, False, 5.0, 5.3, 1.0, 400
    )


def chosen(megabytes: float, hours: float, speed: Speed = SLOW) -> Choice:
    size = rule.vocab_size(megabytes * MB)
    return choose(Task(text(megabytes), speed, named_models(), 256, size), 3600 * hours)


def test_text_read_once_needs_no_decay_and_text_read_often_a_strong_one() -> None:
    assert rule.regularization(1) == rule.Regularization(0.1, 0.0, 0.0)
    decays = [rule.regularization(passes).weight_decay for passes in (1, 2, 4, 16)]
    assert decays == sorted(decays)
    assert decays[-1] == rule.STRONG_DECAY
    assert rule.regularization(1).dropout == 0 < rule.regularization(2).dropout


def test_a_model_that_cannot_memorize_its_text_needs_no_decay() -> None:
    # As measured: benchmarks/LOG.md, 2026-11-26.
    few, some, many = (rule.regularization(passes, n) for passes, n in ((5, 1.9), (8, 3), (16, 25)))
    assert (few.weight_decay, few.table_decay) == (rule.DECAY, 0.0)
    assert rule.DECAY < some.weight_decay < rule.STRONG_DECAY
    assert many == rule.regularization(16)
    decays = [rule.regularization(16, n).weight_decay for n in (0.1, 1, 2, 4, 8, 100)]
    assert decays == sorted(decays)
    assert chosen(14, 1).regularization.weight_decay < 1  # not that of a text of 1 MB
    assert chosen(1, 1).regularization.weight_decay > 1


def test_small_text_follows_the_rule() -> None:
    config = compose(["experiment=small_text", "data.path=kitab.txt"])
    wanted = rule.regularization(16)
    assert isinstance(config.optimizer, MuonConfig)
    # The rule's decay per step, at 1.5 times the rate.
    at_default = compose().optimizer.lr * wanted.weight_decay
    assert config.optimizer.lr * config.optimizer.weight_decay == pytest.approx(at_default)
    assert config.optimizer.adam_weight_decay == wanted.table_decay
    assert config.model.dropout == wanted.dropout
    assert config.data.token_replacement == wanted.replaced
    assert (config.schedule.name == "linear") == wanted.is_linear
    assert config.data.vocab_size == rule.vocab_size(1 * MB)
    assert config.schedule.branches == rule.branches(16)
    assert config.trainer.max_steps == rule.steps_with_branches(800, config.schedule.branches)


def test_the_batch_grows_with_the_run_and_counts_tokens() -> None:
    sizes = [rule.batch_sequences(tokens, 256) for tokens in (1e5, 1e6, 1e7, 1e8)]
    assert sizes == sorted(set(sizes))
    assert rule.batch_sequences(1e7, 512) * 2 == rule.batch_sequences(1e7, 256)


def test_repetition_is_worth_less_and_less() -> None:
    worth = [effective_data(100, passes, 5.0) for passes in (1, 2, 4, 8, 1000)]
    gains = [b - a for a, b in itertools.pairwise(worth)]
    assert worth[0] == 100
    assert gains[0] < 100
    assert worth[-1] == pytest.approx(600)


def test_more_of_anything_lowers_the_expected_loss() -> None:
    now = predict(SIZE).val_bpb
    assert predict(replace(SIZE, parameters=10_000_000)).val_bpb < now
    assert predict(replace(SIZE, tokens=3_200_000)).val_bpb < now
    assert predict(replace(SIZE, unique_tokens=400_000, text_bytes=2_000_000)).val_bpb < now
    assert predict(replace(SIZE, starts_with_induction=False)).val_bpb > now


@pytest.mark.parametrize("how", ["shares_affixes", "starts_from_neighbors"])
def test_tokens_that_learn_from_others_gain_more_in_a_larger_vocabulary(how: str) -> None:
    def gain(vocab_size: int) -> float:
        size = replace(SIZE, vocab_size=vocab_size)
        alone = replace(size, **{how: False})
        return predict(alone).val_bpb - predict(size).val_bpb

    few, some, many = map(gain, (256, 2048, 32_000))
    assert few == 0
    assert 0 < some < many


def test_bits_per_byte_and_nats_per_token_are_one_prediction() -> None:
    found = predict(SIZE)
    assert found.val_loss == pytest.approx(found.val_bpb * math.log(2) * SIZE.bytes_per_token)


def test_no_run_is_expected_to_be_worse_than_a_guess() -> None:
    assert predict(replace(SIZE, tokens=512)).val_loss == pytest.approx(math.log(SIZE.vocab_size))


def test_outside_the_runs_it_says_so_and_is_less_exact() -> None:
    inside = predict(SIZE)
    outside = predict(replace(SIZE, parameters=1_000_000_000))
    assert inside.outside == ()
    assert outside.outside == ("parameters", "parameters per token of the text")
    assert outside.error > inside.error == coefficients().error


def test_a_large_model_of_little_text_is_outside_the_runs() -> None:
    little = replace(SIZE, unique_tokens=40_000, text_bytes=200_000, tokens=160_000)
    assert predict(little).outside == ("parameters per token of the text",)
    assert predict(little).error > predict(SIZE).error
    most = coefficients().ranges["parameters_per_token"][1]
    for megabytes in (0.1, 0.2, 0.4):
        assert chosen(megabytes, 5).size.parameters_per_token < 3 * most


def test_a_loss_measured_on_few_documents_is_less_exact() -> None:
    errors = [predict(SIZE, val_documents=count).error for count in (1, 9, 400, math.inf)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] == pytest.approx(math.hypot(coefficients().error, DOCUMENT_SPREAD / 3))
    assert errors[-1] == coefficients().error
    model = named_models()[0]
    texts = (text(2), replace(text(2), val_documents=4), replace(text(2), document_spread=0.5))
    many, few, varied = (
        planned(Task(each, SLOW, [model], 256, 4096), model, 1e6) for each in texts
    )
    assert few.prediction.error > many.prediction.error
    assert varied.prediction.error > many.prediction.error


@pytest.mark.slow
def test_more_time_or_a_faster_machine_is_never_worse() -> None:
    losses = [chosen(2, hours).prediction.val_bpb for hours in (0.2, 1, 5)]
    assert losses == sorted(losses, reverse=True)
    fast = replace(SLOW, flops=1e12, optimizer_flops=1e12)
    assert chosen(2, 1, fast).prediction.val_bpb < chosen(2, 1).prediction.val_bpb


def test_a_plan_keeps_to_its_time_its_memory_and_the_passes_that_were_tried() -> None:
    small = replace(SLOW, memory_bytes=1.5e9)
    for hours in (0.2, 20):
        plan = chosen(1, hours, small)
        assert plan.seconds <= 3600 * hours * 1.02
        assert plan.passes <= 16.5
        assert plan.memory_bytes <= 1.5e9


CARD = Speed.assumed("cuda", 8)


activations = cache(activation_bytes)


@pytest.mark.parametrize("model", [named_models()[0], named_models()[-1]], ids=lambda m: m.name)
def test_the_micro_batch_of_a_gpu_is_the_largest_that_fits(model: Candidate) -> None:
    """As trainer.micro_batch_size=auto has it, up to the whole step."""
    task = Task(text(500), CARD, [model], 512, 8192)
    found = set()
    for tokens, memory in itertools.product((1e6, 1e9), (1e9, 2e9, 4e9, 8e9, 15.8e9, 80e9)):
        unknown = planned(task, model, tokens)
        one = activations(unknown.shape)
        most = max(1, CPU_BYTES // one)
        assert unknown.micro_batch == max(divisors(unknown.batch, at_most=most))
        plan = planned(replace(task, speed=replace(CARD, memory_bytes=memory)), model, tokens)
        found.add(plan.micro_batch)
        assert plan.batch % plan.micro_batch == 0
        twice_as_many = plan.memory_bytes + 0.6 * plan.micro_batch * one
        usable = (1 - HEADROOM) * memory
        assert plan.memory_bytes <= usable or plan.micro_batch == 1
        assert twice_as_many > usable or plan.micro_batch == plan.batch
        if plan.micro_batch > unknown.micro_batch:
            assert plan.memory_bytes > unknown.memory_bytes
            assert plan.seconds <= unknown.seconds
    assert len(found) > 1


def test_a_model_fits_a_gpu_if_one_sequence_does() -> None:
    """A step in more micro-batches takes less memory; it is no reason for a smaller model."""
    model = named_models()[-1]
    task = Task(text(500), CARD, [model], 512, 8192)
    shape = planned(task, model, 1e9).shape
    least = state_bytes(shape) + 4 * shape.num_params() + 0.6 * activations(shape)
    smaller = named_models()[0]
    for memory, name in ((1.02 * least, model.name), (0.98 * least, smaller.name)):
        card = replace(CARD, memory_bytes=memory / (1 - HEADROOM), flops=1e14)
        both = replace(task, speed=card, candidates=[smaller, model])
        assert choose(both, 36_000).candidate.name == name


@pytest.mark.parametrize(
    ("gpus", "memory"),
    [
        ([{"name": "T4", "memory_bytes": 15.8e9}], 15.8e9),
        ([{"name": "T4", "memory_bytes": None}], None),
        ([{"name": "T4"}], None),
        ([], None),
    ],
)
def test_the_memory_of_a_gpu_is_its_own(gpus: list[dict[str, Any]], memory: float | None) -> None:
    """Never that of the machine."""
    skipped = {part: {"status": "skipped"} for part in ("disk", "data", "compile", "steps")}
    machine = {"cpu_cores": 2, "cpu_model": "CPU", "memory_bytes": 64e9, "gpus": gpus}
    for device, expected in (("cuda", memory), ("cpu", 64e9)):
        findings = {"machine": {"device": device, **machine}, "products": {}, **skipped}
        assert Speed.from_check(findings).memory_bytes == expected


def test_a_run_of_all_passes_has_branches_besides_and_others_have_none() -> None:
    fast = replace(SLOW, flops=1e15, optimizer_flops=1e15)
    task = Task(text(3), fast, [named_models()[1]], 256, 8192)
    for seconds in (20, 100, 3600):
        plan = choose(task, seconds)
        values = plan.values()
        branched = branching(values["schedule.branches"], plan.steps)
        is_long = plan.size.passes >= rule.BRANCHED_PASSES
        assert (branched is not None) == is_long
        assert ("schedule.branches=2" in plan.overrides()) == is_long
        if branched is not None:
            first = branched.first_end * plan.batch * plan.shape.block_size
            assert first == pytest.approx(plan.size.tokens, rel=0.01)
            assert plan.passes == pytest.approx(1.2 * plan.size.passes, rel=0.01)
            ends = (branched.first_end, plan.steps)
            assert [end % plan.every for end in ends] == [0, 0], "the end of each is validated"
            assert plan.steps / plan.every == pytest.approx(12, abs=3)
            assert plan.disk_bytes > planned(task, task.candidates[0], first / 2).disk_bytes
    assert is_long


def test_twice_the_time_is_never_planned_as_less() -> None:
    fast = replace(SLOW, flops=2.6e11, optimizer_flops=2.6e11)
    for megabytes, hours in ((1, 0.5), (2, 1), (2, 0.2)):
        task = Task(text(megabytes), fast, named_models(), 256, rule.vocab_size(megabytes * MB))
        plan = choose(task, 3600 * hours)
        assert longer(task, 3600 * hours, plan).seconds >= plan.seconds


def test_a_time_that_is_too_short_gives_the_shortest_run() -> None:
    """Not the largest model, whose few steps would take even longer."""
    shortest = chosen(1, 0.001)
    assert shortest.candidate.name == "nano"
    assert shortest.steps == LEAST_STEPS


def test_the_planned_command_is_a_run_of_that_size() -> None:
    plan = chosen(2, 1)
    config = compose(["data=text", "data.path=kitab.txt", *plan.overrides()])
    assert (config.schedule.name == "linear") == plan.regularization.is_linear
    shape = config.model.for_data(config.data.vocab_size, config.data.block_size, 0)
    assert shape.num_params() == plan.shape.num_params()
    tokens = config.trainer.max_steps * config.trainer.global_batch_size * config.data.block_size
    assert tokens == plan.size.tokens
    assert settled_advice(config, 400_000) is None


def settled_advice(config: RunConfig, unique_tokens: int) -> list[str] | None:
    shape = config.model.for_data(config.data.vocab_size, config.data.block_size, 0)
    size = TextSize(unique_tokens, 5.2 * unique_tokens, 5.0)
    found = advice(replace(config, model=shape), size, named_models())
    return None if found is None else list(found.overrides)


def test_many_passes_without_decay_are_warned_of_with_the_decay_that_helps() -> None:
    typed = ["data=text", "data.path=kitab.txt", "model=tiny", "trainer.max_steps=1000"]
    better = settled_advice(compose(typed), 211_000)
    assert better is not None
    assert {"optimizer.weight_decay=3", "schedule.name=linear"} <= set(better)
    cosine = settled_advice(compose([*typed, "schedule=cosine"]), 211_000)
    assert cosine == [setting for setting in better if not setting.startswith("schedule")]
    assert settled_advice(compose([*typed, *better]), 211_000) is None
    assert settled_advice(compose([*typed, "teachers=run"]), 211_000) is None


@pytest.mark.parametrize(
    "typed",
    [
        ["experiment=course", "optimizer=muon"],
        ["optimizer.lr=1e-4"],
        ["optimizer=adamw", "optimizer.lr=0.01"],
        ["optimizer=adamw", "optimizer.lr=1e-4"],
    ],
)
def test_a_learning_rate_of_another_optimizer_is_warned_of(typed: list[str]) -> None:
    """An experiment's rate stays where the command names another optimizer."""
    typed = [*typed, "data=text", "data.path=kitab.txt", "model=course", "trainer.max_steps=5000"]
    better = settled_advice(compose(typed), 130_000_000)
    assert better == [f"optimizer.lr={USUAL_RATES[compose(typed).optimizer.name]:g}"]
    assert settled_advice(compose([*typed, *better]), 130_000_000) is None
    assert settled_advice(compose([*typed, "init_from=run"]), 130_000_000) is None


def test_usual_learning_rates_are_those_of_conf() -> None:
    for name, rate in USUAL_RATES.items():
        assert compose([f"optimizer={name}"]).optimizer.lr == rate


def test_a_batch_that_leaves_few_steps_is_warned_of() -> None:
    typed = ["data=text", "data.path=kitab.txt", "model=tiny", "trainer.max_steps=200"]
    better = settled_advice(compose([*typed, "trainer.global_batch_size=128"]), 20_000_000)
    assert better is not None
    assert settled_advice(compose([*typed, *better]), 20_000_000) is None


def test_a_model_far_too_large_is_warned_of_with_a_smaller_one() -> None:
    """134 M parameters that read 14 MB once."""
    typed = ["data=text", "data.path=kitab.txt", "model=course", "trainer.max_steps=600"]
    better = settled_advice(compose(typed), 2_658_000)
    assert better is not None
    named = [override for override in better if override.startswith("model=")]
    assert named in (["model=nano"], ["model=tiny"], ["model=small10m"])
    assert settled_advice(compose([*typed, *better]), 2_658_000) is None


def test_no_other_model_is_advised_to_a_run_that_has_its_weights() -> None:
    """The command would be refused."""
    typed = ["data=text", "data.path=kitab.txt", "model=course", "trainer.max_steps=600"]
    assert settled_advice(compose([*typed, "init_from=run"]), 2_658_000) is None


@pytest.mark.parametrize(
    ("experiment", "tokens"),
    [
        ("t4", 130_000_000),
        ("small_text", 211_000),
        pytest.param("laptop_4gb", 130_000_000, marks=pytest.mark.slow),
        pytest.param("debug", 1000, marks=pytest.mark.slow),
    ],
)
def test_our_own_experiments_are_not_warned_of(experiment: str, tokens: int) -> None:
    config = compose([f"experiment={experiment}", "data=text", "data.path=kitab.txt"])
    assert settled_advice(config, tokens) is None


@pytest.mark.slow
def test_models_are_those_of_conf() -> None:
    for candidate in named_models():
        assert compose(list(candidate.overrides)).model == candidate.model


def test_a_survey_counts_bytes_documents_and_duplicates(tmp_path: Path) -> None:
    lines = [f"Sətir {i}. Bakı Xəzər dənizinin sahilində yerləşir." for i in range(300)]
    (tmp_path / "kitab.txt").write_text("\n\n".join([*lines, *lines[:20]]), encoding="utf-8")
    config = compose(["data=text", f"data.path={tmp_path}"]).data
    found = survey(config)
    assert found.num_documents == 300
    assert found.num_duplicates == 20
    expected = sum(len(line.encode()) for line in lines)
    assert found.train_bytes + found.val_bytes == expected
    assert not found.is_estimate
    assert 2 < found.bytes_per_token(8192) < 60


def rows_of(first: int, count: int) -> list[str]:
    letters = random.Random(first)
    return [
        f"{i} " + "".join(letters.choices("abcçdeə ", k=150)) for i in range(first, first + count)
    ]


def as_text(rows: list[str]) -> bytes:
    return "\n\n".join(rows).encode()


def as_jsonl(rows: list[str], ensure_ascii: bool = False) -> bytes:
    """With other fields, which take more room than the text."""
    objects = [
        {"url": f"https://az.az/{'x' * 150}", "title": row[:40], "text": row} for row in rows
    ]
    return "\n".join(json.dumps(each, ensure_ascii=ensure_ascii) for each in objects).encode()


def as_csv(rows: list[str]) -> bytes:
    lines = [f"{number};{'x' * 150};{row}" for number, row in enumerate(rows)]
    return "\n".join(["id;other;text", *lines]).encode()


def twice(rows: list[str]) -> list[str]:
    return [row for row in rows for _ in range(2)]


ROWS = rows_of(0, 600)
OTHERS = rows_of(1000, 60)
LARGE: dict[str, dict[str, bytes]] = {
    "a text": {"a.txt": as_text(ROWS)},
    "other fields": {"a.jsonl": as_jsonl(ROWS)},
    "other columns": {"a.csv": as_csv(ROWS)},
    "escaped letters": {"a.jsonl": as_jsonl(ROWS, ensure_ascii=True)},
    "compressed": {
        f"{i:03}.jsonl.gz": gzip.compress(as_jsonl(ROWS[i : i + 15])) for i in range(0, 600, 15)
    },
    "duplicates": {"a.jsonl": as_jsonl(twice(ROWS))},
    "duplicates in a table": {"a.csv": as_csv(twice(ROWS))},
    "validation in other fields": {"a.txt": as_text(ROWS), "val/a.jsonl": as_jsonl(OTHERS)},
    "validation without fields": {"a.jsonl": as_jsonl(ROWS), "val/a.txt": as_text(OTHERS)},
    "more validation than is read": {
        "a.jsonl": as_jsonl(twice(OTHERS)),
        "val/a.jsonl": as_jsonl(twice(ROWS)),
    },
}


@pytest.fixture
def little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In small steps, and without what is not of its amount."""
    for place, size in (
        ("planning.survey.MOST_BYTES", 40_000),
        ("data.corpus.BLOCK_CHARS", 2000),
        ("data.decoder.CHUNK_BYTES", 1000),
        ("data.decoder.HEAD_BYTES", 100),
        ("data.content._BUFFER_BYTES", 1000),
        ("data.delimited._SAMPLE_LINES", 10),
    ):
        monkeypatch.setattr(f"azllm_lightning.{place}", size)
    monkeypatch.setattr(Sample, "token_bytes", lambda self: (5.0, 5.0))


def folder_of(files: dict[str, bytes], folder: Path) -> dict[str, str]:
    """The settings of `files`: those in val/ are for validation."""
    for name, content in files.items():
        path = folder / ("val" if name.startswith("val/") else "train") / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    val = {"val_path": str(folder / "val")} if (folder / "val").exists() else {}
    return {"path": str(folder / "train"), **val}


@pytest.mark.usefixtures("little_is_read")
@pytest.mark.parametrize("max_bytes", [None, 10**9])
@pytest.mark.parametrize("kind", LARGE)
def test_a_survey_of_a_part_tells_how_much_all_is(
    kind: str, max_bytes: int | None, tmp_path: Path
) -> None:
    """Whatever takes room in the files besides new text."""
    config = DataConfig(**folder_of(LARGE[kind], tmp_path), max_bytes=max_bytes, val_fraction=0.3)
    found = survey(config)
    assert found.is_estimate
    rows = {"train": ROWS, "val": OTHERS if config.val_paths else []}
    if kind == "more validation than is read":
        rows = {"train": OTHERS, "val": ROWS}
    number = len(rows["train"]) + len(rows["val"])
    sizes = {split: sum(len(row.encode()) for row in rows[split]) for split in rows}
    if config.val_paths:
        assert found.train_bytes == pytest.approx(sizes["train"], rel=0.1)
        assert found.val_bytes == pytest.approx(sizes["val"], rel=0.1)
        assert found.val_documents == pytest.approx(len(rows["val"]), rel=0.1)
    assert found.train_bytes + found.val_bytes == pytest.approx(sum(sizes.values()), rel=0.1)
    assert found.num_documents == pytest.approx(number, rel=0.1)
    is_twice = kind.startswith("duplicates") or kind == "more validation than is read"
    assert found.num_duplicates == pytest.approx(number * is_twice, rel=0.15)


@pytest.mark.usefixtures("little_is_read")
@pytest.mark.parametrize("kind", ["other fields", "duplicates", "validation in other fields"])
def test_a_survey_expects_no_more_than_max_bytes(kind: str, tmp_path: Path) -> None:
    files = folder_of(LARGE[kind], tmp_path)
    found = survey(DataConfig(**files, max_bytes=50_000, val_fraction=0.1))
    assert found.is_estimate
    size = found.train_bytes if "val_path" in files else found.train_bytes + found.val_bytes
    assert size == pytest.approx(50_000, rel=0.01)
    assert "val_path" not in files or found.val_bytes <= 5000


@pytest.mark.usefixtures("little_is_read")
@pytest.mark.parametrize(
    ("max_bytes", "size"), [(None, 200_000), (80_000, 80_000), (10**9, 200_000)]
)
def test_tales_are_as_many_as_are_to_be_written(max_bytes: int | None, size: int) -> None:
    found = survey(DataConfig(name="tales", tales_bytes=200_000, max_bytes=max_bytes))
    assert found.is_estimate
    assert found.train_bytes + found.val_bytes == pytest.approx(size, rel=0.1)


def test_a_survey_that_may_take_no_time_has_text_to_train_on(tmp_path: Path) -> None:
    config = DataConfig(**folder_of({"a.txt": as_text(ROWS)}, tmp_path), val_fraction=0.1)
    val_first = sorted(documents(config), key=lambda document: document.split == "train")
    folder_of({"a.txt": as_text([document.text for document in val_first])}, tmp_path)
    assert survey(config, seconds=0).train_bytes > 0


NOTHING: dict[str, tuple[dict[str, bytes], dict[str, Any]]] = {
    "empty rows": ({"a.jsonl": as_jsonl(["", " "])}, {}),
    "empty cells": ({"a.csv": as_csv(["", " "])}, {}),
    "only validation": ({"a.txt": as_text(ROWS[:1])}, {"val_fraction": 0.9999}),
    "only what is for validation": ({"a.txt": as_text(ROWS[:3]), "val/a.txt": as_text(ROWS)}, {}),
    "empty rows beside validation": ({"a.jsonl": as_jsonl([""]), "val/a.txt": as_text(ROWS)}, {}),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_to_train_on_is_refused_as_prepare_does(kind: str, tmp_path: Path) -> None:
    files, settings = NOTHING[kind]
    config = DataConfig(**folder_of(files, tmp_path), **settings, prepare_workers=1)
    refusals = []
    for refuse in (survey, prepare):
        with pytest.raises(ValueError, match=r"too little text: .* the train split has 0") as error:
            refuse(config)
        refusals.append(str(error.value))
    assert refusals[0] == refusals[1]


def test_text_that_fills_no_window_is_refused(tmp_path: Path) -> None:
    """`train` would refuse the planned command."""
    files = folder_of({"a.txt": as_text(ROWS)}, tmp_path)
    size = survey(DataConfig(**files, val_fraction=0.01)).train_bytes
    survey(DataConfig(**files, val_fraction=0.01, block_size=round(size / 2)))
    with pytest.raises(ValueError, match=r"too little text: a window of data\.block_size="):
        survey(DataConfig(**files, val_fraction=0.01, block_size=round(size)))


def test_nothing_to_train_on_is_no_fault_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    files, _ = NOTHING["empty rows"]
    with pytest.raises(ValueError, match="the train split has 0") as error:
        survey(DataConfig(**folder_of(files, tmp_path), dir=str(tmp_path / "new")))
    assert "data.dir" not in str(error.value)


@pytest.mark.usefixtures("little_is_read")
def test_an_empty_file_after_much_validation_is_nothing_to_train_on(tmp_path: Path) -> None:
    config = DataConfig(**folder_of({"a.txt": b"", "val/a.txt": as_text(ROWS)}, tmp_path))
    with pytest.raises(ValueError, match="the train split has 0"):
        survey(config)


@pytest.mark.parametrize("empty", SPLITS)
def test_a_prepared_folder_without_text_of_a_split_is_refused(empty: str, tmp_path: Path) -> None:
    splits = {split: Split(5, 500, 100, ()) for split in SPLITS}
    splits[empty] = Split(0, 0, 0, ())
    Manifest(1, "", 300, splits, (), {}, {}).write(tmp_path)
    config = DataConfig(path="book.txt", dir="folder")
    with pytest.raises(ValueError, match=rf"the {empty} split has 0.*data\.dir=folder keeps"):
        prepared(config, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("looked_at", ["all of it", "pieces"])
def test_prepared_text_is_expected_to_be_as_hard_as_its_files(
    looked_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two kinds and lengths, and harder than the text of the law's runs."""
    if looked_at == "pieces":
        monkeypatch.setattr("azllm_lightning.planning.survey.READ_TOKENS", 100_000)
        monkeypatch.setattr("azllm_lightning.planning.survey.SLICES", 8)
    generator = random.Random(0)
    letters = "abcçdeəfgğhxıijkqlmnoöprsştuüvyz "
    rows = ["".join(generator.choices(letters, k=1500)) for _ in range(150)]
    rows += ["".join(generator.choices("aəbd ", k=600)) for _ in range(150)]
    generator.shuffle(rows)
    settings = {**folder_of({"a.txt": as_text(rows)}, tmp_path), "val_fraction": 0.2}
    config = DataConfig(**settings, vocab_size=1024, prepare_workers=1)
    read = survey(config)
    found = prepared(config, prepare(replace(config, dir=str(tmp_path / "p"))))
    assert read.scale > 1.1
    assert found.scale == pytest.approx(read.scale, rel=0.05)
    assert read.document_spread > 2 * DOCUMENT_SPREAD
    assert found.document_spread == pytest.approx(read.document_spread, rel=0.1)
    few = 0.25 if looked_at == "pieces" else 0.001
    assert found.val_documents == pytest.approx(read.val_documents, rel=few)
    model = named_models()[0]
    ways = [planned(Task(each, SLOW, [model], 256, 1024), model, 1e6) for each in (read, found)]
    of_files, of_shards = (way.prediction for way in ways)
    assert of_shards.val_bpb == pytest.approx(of_files.val_bpb, rel=0.05)
    assert of_shards.error == pytest.approx(of_files.error, rel=0.1)


def test_a_few_long_documents_count_as_fewer(tmp_path: Path) -> None:
    lines = [f"Sətir {i}. Bakı Xəzər dənizinin sahilində yerləşir." for i in range(400)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines), encoding="utf-8")
    even = survey(compose(["data=text", f"data.path={tmp_path / 'a.txt'}"]).data)
    count = round(even.val_bytes / len(lines[100].encode()))
    assert even.val_documents == pytest.approx(count, rel=0.05)
    long = "Sətir. " * 2000
    (tmp_path / "b.txt").write_text("\n\n".join([*lines[:200], long]), encoding="utf-8")
    paths = ["data.path=" + str(tmp_path / "a.txt"), f"data.val_path={tmp_path / 'b.txt'}"]
    assert survey(compose(["data=text", *paths]).data).val_documents < 10


def test_documents_of_several_kinds_differ_more() -> None:
    generator = random.Random(0)
    easy = ["Bakı Xəzər dənizinin sahilində yerləşir. " * 30] * 100
    letters = "abcçdeəfgğhxıijkqlmnoöprsştuüvyz "
    hard = ["".join(generator.choices(letters, k=1200)) for _ in range(100)]
    assert spread_of(easy) == pytest.approx(0, abs=0.02)
    assert spread_of(hard) < 0.1
    assert spread_of([*easy, *hard]) > 0.5
    assert spread_of(hard[:10]) == DOCUMENT_SPREAD  # too few to tell
    assert spread_of(["qısa mətn"] * 1000) == DOCUMENT_SPREAD


def test_the_kind_of_a_text_is_that_of_all_of_it() -> None:
    """Not that of its beginning."""
    generator = random.Random(0)
    easy = ["Bakı Xəzər dənizinin sahilində yerləşir. " * 50] * 200
    letters = "abcçdeəfgğhxıijkqlmnoöprsştuüvyz "
    hard = ["".join(generator.choices(letters, k=2000)) for _ in range(200)]
    scales = []
    for texts in ([*easy, *hard], [*hard, *easy]):
        sample = Sample()
        for each in texts:
            sample.add(Document(each, "a", "train"), len(each.encode()))
        scales.append(sample.scale())
    assert scales[0] == pytest.approx(scales[1], rel=0.1)


def test_text_that_compresses_better_is_easier() -> None:
    generator = random.Random(0)
    words = ["".join(generator.choices("abçdəfghxıijk", k=6)) for _ in range(20_000)]
    varied = " ".join(generator.choices(words, k=40_000))
    uniform = " ".join(generator.choices(words[:200], k=40_000))
    assert scale_of(uniform) < scale_of(varied)
    assert scale_of("qısa mətn") == 1.0


def curve(steps: int, until: float, end: float = 3.0) -> list[tuple[int, float]]:
    """A loss that falls as a healthy one does, validated at each tenth."""
    shares = [tenth / 10 for tenth in range(1, 11) if tenth / 10 <= until]
    return [(round(p * steps), end * (1 + 0.5 * (1 - p) ** 1.5)) for p in shares]


def test_a_forecast_comes_closer_as_the_run_goes_on() -> None:
    errors = []
    for until in (0.3, 0.6, 0.9):
        found = forecast(curve(1000, until), 1000)
        assert found is not None
        assert found.low < found.val_loss < found.high
        errors.append(found.error)
    assert errors == sorted(errors, reverse=True)
    done = forecast(curve(1000, 1.0), 1000)
    assert done is not None
    assert (done.val_loss, done.error) == (pytest.approx(3.0), 0.0)


def test_there_is_no_forecast_from_too_little() -> None:
    assert forecast([], 1000) is None
    assert forecast([(0, 9.0), (500, 4.0)], 1000) is None
    assert forecast([(10, 8.0), (20, 7.0)], 1000) is None
    assert forecast([(400, math.nan), (500, math.inf)], 1000) is None


def test_the_speed_follows_a_check(tmp_path: Path) -> None:
    steps = {
        "status": "ok",
        "global_batch_size": 16,
        "block_size": 128,
        "vocab_size": 2048,
        "tokens_per_second": 4000.0,
        "optimizer_seconds": 0.1,
        "optimizer": "muon",
        "device": "cpu",
        "compile": False,
        "flops_per_token": 14e6,
        "startup_seconds": 8.0,
    }
    part = {"status": "skipped", "reason": "-"}
    findings = {
        "overrides": [],
        "machine": {
            "device": "cpu",
            "gpus": [],
            "cpu_model": "CPU",
            "cpu_cores": 2,
            "memory_bytes": 8e9,
        },
        "products": {"types": {"fp32": {"flops_per_second": 1e11}}},
        "disk": part,
        "data": part,
        "compile": part,
        "steps": steps,
    }
    speed = Speed.from_check(json.loads(json.dumps(findings)))
    shape = compose().model.for_data(2048, 128, 0)
    flops = 16 * 128 * 14e6
    seconds = speed.training_seconds(shape, 16, 16, 100)
    measured = 100 * 16 * 128 / 4000
    assert seconds == pytest.approx(measured * shape.flops_per_token() / 14e6, rel=0.1)
    assert speed.flops == pytest.approx(flops / (16 * 128 / 4000 - 0.1))
    unknown = Speed.from_check({**findings, "steps": part})
    assert unknown.error(shape) > speed.error(shape)
    # What took 0.1 s was less work without affixes, so the optimizer of a plan takes longer.
    slower = Speed.from_check({**findings, "overrides": ["optimizer.affix_rate=0"]})
    assert slower.flops == speed.flops
    assert slower.training_seconds(shape, 16, 16, 100) > seconds


def test_the_time_of_a_plan_counts_samples_and_the_page_of_each_validation() -> None:
    model = named_models()[0]
    speed = replace(SLOW, flops=1e15, optimizer_flops=1e15)  # all other work takes no time
    found = planned(Task(text(2), speed, [model], 256, 4096), model, 1e5)
    known = speed.startup_seconds + found.prepare_seconds
    assert found.seconds > known + VALIDATIONS * SAMPLES_AND_PAGE_SECONDS
