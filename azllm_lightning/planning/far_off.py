"""One warning at the start of a run whose settings are far from what a plan would choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.optimizer import MuonConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.planning import rule
from azllm_lightning.planning.choice import Candidate, multiplied, setting
from azllm_lightning.planning.law import Size, bits_per_byte, coefficients, predict

SHORT_STEPS = 200
"""Shorter runs are trials: no warning."""

MANY_PASSES = 3.0
WEAK = 4.0
"""Decay this many times below that of the rule is too weak for text read MANY_PASSES times."""

LARGE = 4.0
FEW_STEPS = 400
"""A batch this many times as large as that of the rule is too large, if it leaves so few steps."""

HUGE = 8.0
"""A model is compared with those that are at least so many times smaller."""

USUAL_RATES = {"adamw": 1e-3, "muon": 1e-2}
FAR_RATE = 8.0
"""Learning rates this many times above or below the usual one of their optimizer are those of
another, or typing mistakes.
"""

WORTH = 0.05
"""It is too large if one of them gains this share of the loss in the same time, and more than the
law's error for a model and a text of such sizes.
"""


@dataclass(frozen=True)
class Advice:
    """What is far from the plan, as sentences, and the settings that would be better."""

    sentences: tuple[str, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class TextSize:
    """How much prepared text there is."""

    tokens: int
    """Of the training text."""
    num_bytes: float
    """Of the training text."""
    bytes_per_token: float
    """Of the validation text."""


def advice(config: RunConfig, text: TextSize, candidates: Sequence[Candidate]) -> Advice | None:
    """What is wrong with a settled `config` for `text`; None if nothing is.

    `candidates` are the models to choose from instead. A student has none of it: what is known of
    passes and decay is of models without teachers.
    """
    tokens = config.trainer.max_steps * config.trainer.global_batch_size * config.shape.block_size
    if config.trainer.max_steps < SHORT_STEPS or config.data.name == "tales" or config.teachers:
        return None
    size = Size(
        parameters=multiplied(config.shape),
        unique_tokens=text.tokens,
        tokens=tokens,
        text_bytes=text.num_bytes,
        vocab_size=config.shape.vocab_size,
        bytes_per_token=text.bytes_per_token,
        is_tied=config.shape.tie_embeddings,
        shares_affixes=config.optimizer.shares_affixes,
        starts_from_neighbors=config.init_embeddings == "neighbors",
        starts_with_induction=config.init_attention == "induction",
    )
    found = [
        problem
        for problem in (
            _unusual_rate(config),
            _weak_decay(config, size),
            _large_batch(config, size),
            _large_model(size, candidates, config),
        )
        if problem is not None
    ]
    if not found:
        return None
    # A smaller model comes last: its decay is that of its own passes.
    better = [override for _, overrides in found for override in overrides]
    last = {override.partition("=")[0]: override for override in better}
    if "trainer.global_batch_size" in last and not _is_auto(config):
        last["trainer.micro_batch_size"] = "trainer.micro_batch_size=auto"
    return Advice(tuple(sentence for sentence, _ in found), tuple(last.values()))


def _is_auto(config: RunConfig) -> bool:
    """Whether the micro-batch follows the batch; one that was set may not divide another batch."""
    micro = config.trainer.micro_batch_size
    return micro == "auto" or "micro_batch_size" in config.auto.settings


Problem = tuple[str, list[str]]


def _unusual_rate(config: RunConfig) -> Problem | None:
    """A rate that was meant for another optimizer, as an experiment's where the command names
    another; weights that are there already (init_from) may want any.
    """
    optimizer = config.optimizer
    usual = USUAL_RATES[optimizer.name]
    if config.init_from is not None or usual / FAR_RATE < optimizer.lr < usual * FAR_RATE:
        return None
    text = tr(
        "optimizer={name} trains well at learning rates around {usual:g}, and optimizer.lr is "
        "{lr:g}.",
        name=optimizer.name,
        usual=usual,
        lr=optimizer.lr,
    )
    return text, [setting("optimizer.lr", usual)]


def _weak_decay(config: RunConfig, size: Size) -> Problem | None:
    wanted = rule.regularization(size.passes, size.parameters_per_token)
    optimizer = config.optimizer
    if size.passes < MANY_PASSES or not isinstance(optimizer, MuonConfig):
        return None
    decay = min(optimizer.weight_decay, optimizer.adam_weight_decay)
    if decay * WEAK >= wanted.weight_decay:
        return None
    text = tr(
        "The text is read {passes:.0f} times with a weight decay of {decay:g}: the model will "
        "memorize it and val_loss rise.",
        passes=size.passes,
        decay=decay,
    )
    return text, _regularized(config, wanted)


def _regularized(config: RunConfig, wanted: rule.Regularization) -> list[str]:
    better = [
        setting("optimizer.weight_decay", wanted.weight_decay),
        setting("optimizer.adam_weight_decay", wanted.table_decay),
    ]
    if wanted.is_linear and config.schedule.name == "power":
        better.append("schedule.name=linear")
    if config.model.dropout < wanted.dropout / 2:
        better.append(setting("model.dropout", wanted.dropout))
    if config.data.token_replacement < wanted.replaced / 2:
        better.append(setting("data.token_replacement", wanted.replaced))
    return better


def _large_batch(config: RunConfig, size: Size) -> Problem | None:
    trainer = config.trainer
    wanted = rule.batch_sequences(size.tokens, config.shape.block_size)
    if trainer.global_batch_size < LARGE * wanted or trainer.max_steps > FEW_STEPS:
        return None
    steps = round(size.tokens / (wanted * config.shape.block_size))
    text = tr(
        "{batch} sequences per step leave only {steps:,} steps to learn in.",
        batch=trainer.global_batch_size,
        steps=trainer.max_steps,
    )
    return text, [f"trainer.global_batch_size={wanted}", f"trainer.max_steps={steps}"]


def _large_model(size: Size, candidates: Sequence[Candidate], config: RunConfig) -> Problem | None:
    """A model that a much smaller one would beat with the same compute.

    Never with init_from, whose weights fit no other model.
    """
    if config.init_from is not None:
        return None
    values = coefficients().values
    now = bits_per_byte(size, values)
    worth = max(WORTH, predict(size).error)
    best: tuple[float, Candidate, Size] | None = None
    for candidate in candidates:
        shape = candidate.model.for_data(size.vocab_size, config.shape.block_size, 0)
        factor = config.shape.flops_per_token() / shape.flops_per_token()
        tokens = min(size.tokens * factor, 16 * size.unique_tokens)
        other = replace(
            size,
            parameters=multiplied(shape),
            tokens=max(tokens, size.tokens),
            is_tied=shape.tie_embeddings,
        )
        if other.parameters * HUGE > size.parameters:
            continue
        bpb = bits_per_byte(other, values)
        if best is None or bpb < best[0]:
            best = bpb, candidate, other
    if best is None or best[0] > (1 - worth) * now:
        return None
    bpb, candidate, other = best
    batch = rule.batch_sequences(other.tokens, config.shape.block_size)
    steps = round(other.tokens / (batch * config.shape.block_size))
    text = tr(
        "The model has {ratio:.1g} tokens per parameter: model={name} would reach a lower "
        "val_loss in the same time.",
        ratio=size.tokens / size.parameters,
        name=candidate.name,
    )
    better = [*candidate.overrides, f"trainer.global_batch_size={batch}"]
    better.append(f"trainer.max_steps={steps}")
    if other.passes >= MANY_PASSES and isinstance(config.optimizer, MuonConfig):
        better += _regularized(
            config, rule.regularization(other.passes, other.parameters_per_token)
        )
    return text, better
