"""The measures of `evaluate`: what each needs, what it stores and what it prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from azllm_lightning.cli.messages import tr
from azllm_lightning.data.shards import Manifest, TokenShards
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import data_fingerprint, load
from azllm_lightning.formats.suite_card import no_samples, suite_markdown
from azllm_lightning.inference import free_samples, pair_scores, second_half, text_scores
from azllm_lightning.inference.scoring import Scorer, gpt_scorer, load_hf, scorer_of
from azllm_lightning.inference.trained_on import Overlap

if TYPE_CHECKING:
    from azllm_lightning.config.verbs import EvaluateConfig

Measured = tuple[dict[str, Any], str]
"""What is stored as JSON, and what is printed."""


class Writer(NamedTuple):
    """`write` gives the texts that a model writes by itself, of up to `max_new_tokens` tokens."""

    write: Callable[[], list[str]]
    max_new_tokens: int


class Subject(NamedTuple):
    """A model to measure.

    `writer` is None if it cannot begin a text, and `checkpoint` is that of our run whose text is
    scored, if there is one.
    """

    name: str
    scorer: Scorer
    writer: Writer | None
    checkpoint: Path | None


def open_subject(config: EvaluateConfig, checkpoint: Path | None, device: str) -> Subject:
    """The model of `hf`, else that of the checkpoint.

    Raises ValueError if it cannot be loaded, a window is too long for it, or samples are asked for
    that it cannot begin.
    """
    block_size = None if config.samples else config.block_size  # samples have no windows
    if config.hf is not None:
        peer, its_tokenizer = load_hf(config.hf, device)
        scorer = scorer_of(peer, its_tokenizer, config.hf, block_size)
        if config.samples and not scorer.start:
            raise ValueError(
                tr(
                    "hf={folder} has no start token, so the model cannot begin a text by itself: "
                    "choose another measure than samples=true",
                    folder=config.hf,
                )
            )
        writer = _peer_writer(peer, its_tokenizer, scorer.start) if scorer.start else None
        return Subject(config.hf, scorer, writer, checkpoint)
    assert checkpoint is not None
    model, tokenizer = load(checkpoint, device)
    write = partial(free_samples.own_samples, model, tokenizer)
    own = Writer(write, free_samples.MAX_NEW_TOKENS)
    return Subject(str(checkpoint), gpt_scorer(model, tokenizer, block_size), own, checkpoint)


def _peer_writer(peer: Any, tokenizer: Any, start: list[int]) -> Writer:
    length = free_samples.hf_length(peer, start)
    return Writer(partial(free_samples.hf_samples, peer, tokenizer, start, length), length)


def measured(config: EvaluateConfig, subject: Subject) -> Measured:
    """The results of the measure that `config` asks for."""
    if config.suite:
        return suite(config, subject)
    if config.samples:
        return samples(config, subject)
    if config.pairs:
        return pairs(config, subject, config.pairs)
    return halves(config, subject) if config.second_half else text(config, subject)


def text(config: EvaluateConfig, subject: Subject) -> Measured:
    """How well the model predicts a text, by source."""
    found = text_scores.text_to_score(config.data, subject.checkpoint)
    overlap = _overlap(config, subject)
    if overlap is not None:
        found = found._replace(documents=overlap.watch(found.documents))
    print(f"{tr('text'):<12}{found.origin}", file=sys.stderr)
    scores = text_scores.score_by_source(subject.scorer, found, config.stride)
    results = text_scores.text_results(subject.scorer, scores, config.stride)
    share = None if overlap is None else overlap.share()
    report = text_scores.text_report(subject.scorer, results)
    is_unknown = share is None and config.data.path is not None and subject.checkpoint is not None
    if is_unknown or (share is not None and share >= text_scores.LEAST_SHARE):
        report += "\n" + text_scores.training_text_note(share)
    return {"text": found.origin, "trained_share": share, **results}, report


def halves(config: EvaluateConfig, subject: Subject) -> Measured:
    """Bits of the second half of each line."""
    found = text_scores.text_to_score(config.data, subject.checkpoint)
    print(f"{tr('text'):<12}{found.origin}", file=sys.stderr)
    scores = second_half.half_scores_by_source(subject.scorer, found, config.stride)
    # Of a model that does not record its training text, data.dir is only the text that is scored.
    folder = _training_folder(config, subject) if _data_fingerprint(config, subject) else None
    size = Manifest.read(folder).splits["train"].text_bytes if folder else None
    results = second_half.half_results(subject.scorer, scores, config.stride, size)
    return {"text": found.origin, **results}, second_half.half_report(subject.scorer, results)


def pairs(config: EvaluateConfig, subject: Subject, which: bool | str) -> Measured:
    """Minimal pairs: ours, those of Turkish interference, or those of a file."""
    found = pair_scores.pairs_to_score(which)
    own = which in (True, pair_scores.TURKISH)
    results = pair_scores.pair_results(subject.scorer, found, config.stride, own)
    return {"pairs": which, **results}, pair_scores.pair_report(subject.scorer, results)


def samples(config: EvaluateConfig, subject: Subject) -> Measured:
    """What the model writes by itself.

    Raises ValueError, before the work, if it cannot be compared with the training text.
    """
    assert subject.writer is not None
    write, length = subject.writer
    folder = _compared_folder(config, subject)
    given = config.data.dir
    if config.samples and given is not None and folder != Path(given):
        raise ValueError(
            tr(
                "data.dir={folder} is not the text that {checkpoint} was trained on, with which "
                "samples=true compares: omit data.dir",
                folder=given,
                checkpoint=subject.name,
            )
        )
    results = free_samples.sample_results(write(), folder, length)
    return results, free_samples.sample_report(results)


def suite(config: EvaluateConfig, subject: Subject) -> Measured:
    """All of them; the samples are None if the model cannot begin a text.

    Raises ValueError, before the work, if the samples cannot be compared with the training text.
    """
    read = _compared_folder if subject.writer else _training_folder
    folder = read(config, subject)
    parts: dict[str, tuple[dict[str, Any] | None, str]] = {
        "text": text(config, subject),
        "second_half": halves(config, subject),
        "pairs": pairs(config, subject, True),
        "turkish": pairs(config, subject, pair_scores.TURKISH),
        "samples": samples(config, subject) if subject.writer else (None, no_samples()),
    }
    results: dict[str, Any] = {
        "training_text": str(folder) if folder else None,
        "data_fingerprint": Manifest.read(folder).fingerprint if folder else None,
        "own_split": _is_own_split(config, subject, folder),
        **{name: values for name, (values, _) in parts.items()},
    }
    report = "\n\n".join(printed for _, printed in parts.values())
    return results, report


def _is_own_split(config: EvaluateConfig, subject: Subject, folder: Path | None) -> bool:
    """Whether the text that is scored is the validation split of `folder`, and the model is known
    to be trained on that.
    """
    if folder is None or config.data.path is not None or _data_fingerprint(config, subject) is None:
        return False
    return config.data.dir is None or Path(config.data.dir) == folder


def suite_page(results: dict[str, Any]) -> str:
    """The Markdown page of a suite."""
    names = {key: pair_scores.named(key) for key in results["pairs"]["phenomena"]}
    names |= {key: pair_scores.named(key) for key in results["turkish"]["phenomena"]}
    return suite_markdown(results, names)


def _overlap(config: EvaluateConfig, subject: Subject) -> Overlap | None:
    """What compares the text of data.path with the training text; None where that is not at hand,
    which is no reason not to score another text.
    """
    if config.data.path is None:  # a validation split has no training text
        return None
    try:
        folder = _training_folder(config, subject)
        return None if folder is None else Overlap(folder)
    except ValueError:
        return None


def _compared_folder(config: EvaluateConfig, subject: Subject) -> Path | None:
    """`_training_folder`; ValueError if samples cannot be compared with the text there."""
    folder = _training_folder(config, subject)
    if folder is not None:
        for split in ("train", "val"):
            TokenShards.open(folder, split, Tokenizer.from_file(folder))
    return folder


def _training_folder(config: EvaluateConfig, subject: Subject) -> Path | None:
    """The prepared data that the model was trained on, if it is there: data.dir, or that of its own
    run. A model that does not record which it was is taken to be trained on data.dir.
    """
    given = None if config.data.dir is None else Path(config.data.dir)
    fingerprint = _data_fingerprint(config, subject)
    if fingerprint is None or subject.checkpoint is None:
        return given
    if given is not None and Manifest.read(given).fingerprint == fingerprint:
        return given
    try:
        own = text_scores.prepared_folder_of(subject.checkpoint)
    except ValueError:  # data that is gone
        return None
    return own if Manifest.read(own).fingerprint == fingerprint else None


def _data_fingerprint(config: EvaluateConfig, subject: Subject) -> str | None:
    """That of the data that the model was trained on; None if it does not record it."""
    if config.hf is not None or subject.checkpoint is None:
        return None
    return data_fingerprint(subject.checkpoint)
