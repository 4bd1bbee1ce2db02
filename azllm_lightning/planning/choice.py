"""The best run for a text, a machine and a time: model, length, batch, and what it reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from azllm_lightning.config.model import GPTConfig, ModelConfig
from azllm_lightning.planning import rule
from azllm_lightning.planning.law import Prediction, Size, predict
from azllm_lightning.planning.speed import Speed
from azllm_lightning.planning.survey import Text
from azllm_lightning.training.affixes import PER_TOKEN
from azllm_lightning.training.batch import CPU_BYTES, HEADROOM, activation_bytes, divisors
from azllm_lightning.training.branches import kept_bytes
from azllm_lightning.training.saving import KEEP

MOST_PASSES = 16.0
"""More passes, besides those of branches, were not tried, and gain nothing."""

GAIN = 0.005
"""A longer run, or a larger model, is chosen if it lowers the loss by this share."""

VALIDATIONS = 12
VALIDATION_SHARE = 0.08
"""How often a run is validated, and the share of its time that this may take."""

VAL_WINDOWS = 512
LEAST_VAL_WINDOWS = 32

DEFAULTS = {
    "schedule.name": "power",
    "schedule.branches": 1,
    "data.token_replacement": 0.0,
    "data.val_windows": VAL_WINDOWS,
}
"""Settings of a plan that a run of one's own text has without them."""

SAMPLES_AND_PAGE_SECONDS = 1.2
"""What a validation takes besides its windows: writing samples, and the page of the run. 1.1 to
1.4 s for nano on 2 cores of an AMD EPYC.
"""

BASE_BYTES = 7e8
"""Memory of Python with PyTorch."""

MEMORY_SHARE = {"cpu": 0.8, "cuda": 1 - HEADROOM}
"""Share of the memory that a run may take: of a GPU, as much as trainer.micro_batch_size=auto does.
"""

ACTIVATION_SHARE = {"cpu": 1.0, "cuda": 0.6}
"""Of the activations in fp32, what is kept: on a GPU, most of them have 16 bits."""

LEAST_STEPS = 20

TIME_ROUNDING = 0.05
"""By so much a run may be longer than asked for, since its steps are whole and its batches powers
of two.
"""


@dataclass(frozen=True)
class Candidate:
    """A model, as `model` and further overrides name it."""

    overrides: tuple[str, ...]
    model: ModelConfig

    @property
    def name(self) -> str:
        """How a table calls it."""
        return self.overrides[0].partition("=")[2] if self.overrides else "-"


@dataclass(frozen=True)
class Task:
    """What is given: a text, a machine, and what the user has decided."""

    text: Text
    speed: Speed
    candidates: Sequence[Candidate]
    block_size: int
    vocab_size: int
    shares_affixes: bool = True
    starts_from_neighbors: bool = True
    starts_with_induction: bool = True
    """The last three as in `law.Size`."""


@dataclass(frozen=True)
class Choice:
    """A planned run."""

    candidate: Candidate
    shape: GPTConfig
    size: Size
    """To the end of the first branch; what more of them gain is not in `prediction`."""
    batch: int
    micro_batch: int
    steps: int
    """All of them, those of all branches too."""
    branches: int
    val_windows: int | None
    """None: as many as there are, at most VAL_WINDOWS."""
    every: int
    """Steps between two validations, and between two saves."""
    regularization: rule.Regularization
    prediction: Prediction
    seconds: float
    time_error: float
    """Of `seconds`, as a share."""
    prepare_seconds: float
    """Of `seconds`."""
    disk_bytes: float
    memory_bytes: float

    @property
    def tokens(self) -> int:
        """Tokens that are read."""
        return self.steps * self.batch * self.shape.block_size

    @property
    def passes(self) -> float:
        """How often the text is read."""
        return self.tokens / self.size.unique_tokens

    def values(self) -> dict[str, Any]:
        """The settings that the plan chooses, besides the model."""
        return {
            "data.vocab_size": self.shape.vocab_size,
            "data.block_size": self.shape.block_size,
            "model.dropout": self.regularization.dropout,
            "optimizer.weight_decay": self.regularization.weight_decay,
            "optimizer.adam_weight_decay": self.regularization.table_decay,
            "schedule.warmup_steps": rule.warmup_steps(self.steps),
            "trainer.max_steps": self.steps,
            "trainer.global_batch_size": self.batch,
            "trainer.val_every_steps": self.every,
            "trainer.checkpoint_every_steps": self.every,
            "schedule.branches": self.branches,
            "schedule.name": "linear" if self.regularization.is_linear else "power",
            "data.token_replacement": self.regularization.replaced,
            "data.val_windows": self.val_windows or VAL_WINDOWS,
        }

    def overrides(self) -> list[str]:
        """The settings to type, besides those of the text, if nothing else is typed."""
        values = {key: value for key, value in self.values().items() if DEFAULTS.get(key) != value}
        return [*self.candidate.overrides, *(setting(key, values[key]) for key in values)]


def setting(key: str, value: float | str) -> str:
    """An override as people type it."""
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def choose(task: Task, seconds: float) -> Choice:
    """The run that reaches the lowest loss within `seconds`; a shorter or smaller one where the
    difference is below GAIN.

    It is the shortest of the models that fit into the memory where none of them gets LEAST_STEPS
    done in that time, and one of the first model where none fits.
    """
    found = [choice for choice in _choices(task, seconds) if _fits(choice, task.speed)]
    if not found:
        found = list(_choices(replace(task, candidates=task.candidates[:1]), seconds))
    in_time = [choice for choice in found if choice.seconds <= (1 + TIME_ROUNDING) * seconds]
    if not in_time:
        return min(found, key=lambda choice: choice.seconds)
    found = in_time
    lowest = min(map(_cautious_bpb, found))
    good = [choice for choice in found if _cautious_bpb(choice) <= (1 + GAIN) * lowest]
    return min(good, key=lambda choice: choice.seconds)


def longer(task: Task, seconds: float, choice: Choice) -> Choice:
    """The run within twice the `seconds` that `choice` was made for: `choice` itself where a longer
    one gains nothing.
    """
    return max(choose(task, 2 * seconds), choice, key=lambda each: each.seconds)


def _cautious_bpb(choice: Choice) -> float:
    """Where the law knows less, as of larger models than its runs had, it must promise more."""
    return choice.prediction.val_bpb * (1 + choice.prediction.error)


def _choices(task: Task, seconds: float) -> Iterable[Choice]:
    """Each model with the longest run in `seconds`, and with shorter ones."""
    for candidate in task.candidates:
        most = _most_tokens(task, candidate, seconds)
        for halvings in range(4):
            yield planned(task, candidate, most / 2**halvings)


def _most_tokens(task: Task, candidate: Candidate, seconds: float) -> float:
    """Tokens that a run reads in `seconds`, at most MOST_PASSES times the text."""
    unique = task.text.unique_tokens(task.vocab_size)
    low, high = math.log(LEAST_STEPS * task.block_size), math.log(MOST_PASSES * unique)
    for _ in range(20):
        middle = (low + high) / 2
        if planned(task, candidate, math.exp(middle)).seconds <= seconds:
            low = middle
        else:
            high = middle
    return math.exp(low if planned(task, candidate, math.exp(high)).seconds > seconds else high)


def planned(task: Task, candidate: Candidate, tokens: float) -> Choice:
    """The run of a model over about `tokens` tokens, by the rules."""
    text, speed = task.text, task.speed
    shape = candidate.model.for_data(task.vocab_size, task.block_size, 0)
    unique = max(1.0, text.unique_tokens(task.vocab_size))
    batch = rule.batch_sequences(tokens, task.block_size)
    steps = max(LEAST_STEPS, round(tokens / (batch * task.block_size)))
    size = Size(
        parameters=multiplied(shape),
        unique_tokens=unique,
        tokens=steps * batch * task.block_size,
        text_bytes=text.train_bytes,
        vocab_size=shape.vocab_size,
        bytes_per_token=text.bytes_per_token(task.vocab_size),
        is_tied=shape.tie_embeddings,
        shares_affixes=task.shares_affixes,
        starts_from_neighbors=task.starts_from_neighbors,
        starts_with_induction=task.starts_with_induction,
    )
    branches = rule.branches(size.passes)
    steps, every = rule.steps_and_interval(steps, branches, VALIDATIONS)
    micro_batch = _micro_batch(shape, batch, speed)
    training = speed.training_seconds(shape, batch, micro_batch, steps)
    val_windows, is_reduced = _val_windows(task, shape, training)
    state = state_bytes(shape)
    kept = kept_bytes(state, 4.0 * shape.num_params()) if branches > 1 else 0.0
    state += kept
    preparing = _prepare_seconds(text, speed)
    validation = speed.validation_seconds(shape, val_windows) + SAMPLES_AND_PAGE_SECONDS
    validating = (VALIDATIONS + 1) * validation
    saving = VALIDATIONS * state / speed.write_bytes_per_second
    return Choice(
        candidate=candidate,
        shape=shape,
        size=size,
        batch=batch,
        micro_batch=micro_batch,
        steps=steps,
        branches=branches,
        val_windows=val_windows if is_reduced else None,
        every=every,
        regularization=rule.regularization(size.passes, size.parameters_per_token),
        # A window is of one document, or of a few.
        prediction=predict(
            size,
            text.scale,
            val_documents=min(text.val_documents, val_windows),
            document_spread=text.document_spread,
        ),
        seconds=speed.startup_seconds + preparing + training + validating + saving,
        time_error=speed.error(shape),
        prepare_seconds=preparing,
        disk_bytes=_disk_bytes(text, task.vocab_size, state, shape),
        memory_bytes=_memory_bytes(shape, micro_batch, speed)
        + (kept if speed.device == "cpu" else 0.0),
    )


def multiplied(shape: GPTConfig) -> int:
    """Parameters that are multiplied: those of the layers and the head."""
    return shape.num_params(embeddings=False) + shape.vocab_size * shape.n_embd


def state_bytes(shape: GPTConfig) -> float:
    """A checkpoint with Muon in fp32: weights, one moment of layers, two of tables and affixes."""
    params = shape.num_params()
    tables = params - shape.num_params(embeddings=False)
    return 4.0 * (2 * params + (1 + 2 * PER_TOKEN) * tables)


def _micro_batch(shape: GPTConfig, batch: int, speed: Speed) -> int:
    """About what trainer.micro_batch_size=auto finds; on a GPU whose memory is not known, what it
    finds on a CPU.
    """
    room, each = float(CPU_BYTES), float(_activation_bytes(shape))
    if speed.device == "cuda" and speed.memory_bytes is not None:
        room = _usable_bytes(speed) - _memory_bytes(shape, 0, speed)
        each *= ACTIVATION_SHARE["cuda"]
    return max(divisors(batch, at_most=max(1, int(room / each))))


def _activation_bytes(shape: GPTConfig) -> int:
    key = (shape.n_layer, shape.n_embd, shape.n_head, shape.block_size, shape.vocab_size)
    if key not in _known_activations:
        _known_activations[key] = activation_bytes(shape)
    return _known_activations[key]


_known_activations: dict[tuple[int, ...], int] = {}


def _val_windows(task: Task, shape: GPTConfig, training: float) -> tuple[int, bool]:
    """Windows of a validation, and whether time leaves fewer than there are."""
    tokens = task.text.val_bytes / task.text.bytes_per_token(task.vocab_size)
    there = min(VAL_WINDOWS, max(1, int(tokens // task.block_size)))
    each = task.speed.validation_seconds(shape, 1)
    affordable = int(VALIDATION_SHARE * training / ((VALIDATIONS + 1) * each))
    if affordable >= there:
        return there, False
    return min(there, max(LEAST_VAL_WINDOWS, affordable)), True


def _prepare_seconds(text: Text, speed: Speed) -> float:
    """Reading and tokenizing the text; nothing if it is prepared already."""
    if text.vocab_size is not None:
        return 0.0
    size = text.train_bytes + text.val_bytes
    return size / (speed.tokenizing_bytes_per_second * max(1, speed.cores)) + min(size, 2e8) / 1e6


def _disk_bytes(text: Text, vocab_size: int, state: float, shape: GPTConfig) -> float:
    """Prepared text and its copy while it is prepared, and the checkpoints."""
    size = text.train_bytes + text.val_bytes
    tokens = size / text.bytes_per_token(vocab_size)
    return size + 4 * tokens + (KEEP + 1) * state + 4.0 * shape.num_params()


def _memory_bytes(shape: GPTConfig, micro_batch: int, speed: Speed) -> float:
    """Weights, gradients, moments, activations."""
    activations = ACTIVATION_SHARE[speed.device] * micro_batch * _activation_bytes(shape)
    gradients = 4.0 * shape.num_params()
    base = BASE_BYTES if speed.device == "cpu" else 0.0
    return base + state_bytes(shape) + gradients + activations


def _fits(choice: Choice, speed: Speed) -> bool:
    return choice.memory_bytes <= _usable_bytes(speed)


def _usable_bytes(speed: Speed) -> float:
    """What a run may take of the memory; infinity if that is not known."""
    if speed.memory_bytes is None:
        return math.inf
    return MEMORY_SHARE[speed.device] * speed.memory_bytes
