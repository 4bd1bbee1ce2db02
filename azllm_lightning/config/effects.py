"""Which of the settings that were typed have no effect next to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.overrides import parse_override

NAMED_CHECKPOINTS = ("best", "last")
"""Values of ckpt_path that mean a file of a run; any other value names the file itself."""


class Rule(NamedTuple):
    """The settings `keys` have no effect on a config for which `holds`, for a `reason`."""

    keys: str
    holds: Callable[[Any], bool]
    reason: Callable[[Any], str]


def typed_keys(overrides: Iterable[str]) -> frozenset[str]:
    """The settings that `overrides` set: trainer.max_steps, model (a group), ..."""
    parsed = map(parse_override, overrides)
    return frozenset(".".join(override.path) for override in parsed if not override.is_deletion)


def ignored_settings(rules: Sequence[Rule], config: Any, overrides: Iterable[str]) -> list[str]:
    """A message for each of `rules` that concerns a setting among `overrides`."""
    typed = typed_keys(overrides)
    found = [(rule, sorted(typed & set(rule.keys.split()))) for rule in rules]
    return [
        tr("{keys}: no effect, since {reason}", keys=", ".join(keys), reason=rule.reason(config))
        for rule, keys in found
        if keys and rule.holds(config)
    ]


TRAIN = [
    Rule(
        "callbacks.early_stopping_patience",
        lambda config: not config.callbacks.early_stopping,
        lambda config: "callbacks.early_stopping=false",
    ),
    Rule(
        "callbacks.samples.prompts callbacks.samples.temperature",
        lambda config: config.callbacks.samples.max_new_tokens == 0,
        lambda config: "callbacks.samples.max_new_tokens=0",
    ),
    Rule(
        "optimizer.head_lr optimizer.head_eps",
        lambda config: config.model.tie_embeddings,
        lambda config: "model.tie_embeddings=true",
    ),
    Rule(
        "init_embeddings init_attention",
        lambda config: config.init_from is not None or config.ckpt_path is not None,
        lambda config: tr(
            "{key} gives all weights", key="ckpt_path" if config.ckpt_path else "init_from"
        ),
    ),
    Rule(
        "teacher_share teacher_temperature",
        lambda config: not config.teachers,
        lambda config: "teachers=null",
    ),
    Rule(
        "schedule.decay_ratio schedule.min_lr_ratio schedule.total_steps",
        lambda config: config.schedule.name == "constant",
        lambda config: "schedule.name=constant",
    ),
]

PROVE_RESUME = [
    Rule(
        "run_name logs_dir data.val_windows trainer.max_steps trainer.val_every_steps "
        "trainer.checkpoint_every_steps trainer.checkpoint_every_minutes trainer.log_every_steps "
        "trainer.deadline",
        lambda config: True,
        lambda config: tr("prove_resume sets it for its short runs"),
    ),
]

DATA = [
    Rule(
        "data.text_field data.source_field data.txt_documents data.encoding data.on_bad_utf8",
        lambda config: config.data.name == "tales",
        lambda config: tr("data=tales reads no files"),
    ),
    Rule(
        "data.tales_bytes data.tales_seed",
        lambda config: config.data.name != "tales",
        lambda config: tr("only data=tales generates text"),
    ),
    Rule(
        "data.val_fraction",
        lambda config: config.data.val_path is not None and config.data.max_bytes is None,
        lambda config: tr("data.val_path is the validation text"),
    ),
    Rule(
        "data.tokenizer_sample_bytes",
        lambda config: config.data.tokenizer is not None,
        lambda config: tr("data.tokenizer is not trained here"),
    ),
]

CHECKPOINT = [
    Rule(
        "logs_dir",
        lambda config: config.ckpt_path not in NAMED_CHECKPOINTS,
        lambda config: tr("ckpt_path names the file"),
    ),
]

GENERATE = [
    *CHECKPOINT,
    Rule(
        "top_k top_p min_p seed num_samples",
        lambda config: config.temperature == 0,
        lambda config: tr("temperature=0 always gives the same text"),
    ),
]

PLANNED = (
    "data.val_windows data.token_replacement model.dropout optimizer.weight_decay "
    "optimizer.adam_weight_decay schedule schedule.name schedule.warmup_steps schedule.branches "
    "trainer.max_steps trainer.global_batch_size trainer.val_every_steps "
    "trainer.checkpoint_every_steps"
)
"""What the plan of a run decides, whatever is typed."""

PLAN = [Rule(PLANNED, lambda config: True, lambda config: tr("the plan chooses it"))]

EVALUATE = [
    *CHECKPOINT,
    Rule(
        "data.text_field data.source_field data.txt_documents data.encoding data.on_bad_utf8 "
        "data.max_bytes",
        lambda config: config.data.path is None,
        lambda config: tr("data.path is not set"),
    ),
    Rule(
        "ckpt_path run_name logs_dir",
        lambda config: config.hf is not None and not config.needs_run,
        lambda config: tr("hf is the model that is scored"),
    ),
    Rule(
        "stride block_size",
        lambda config: config.samples,
        lambda config: tr("samples=true scores no text"),
    ),
]
