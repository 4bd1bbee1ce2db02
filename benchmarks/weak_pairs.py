"""Why a model fails on minimal pairs: for each phenomenon below 70 %, what its errors share.

    python benchmarks/weak_pairs.py lightning_logs/corpus --data DATA_DIR

The model is a run folder, a checkpoint, or a folder of transformers; DATA_DIR is the prepared text
that it was trained on. Prints Markdown, with a row per phenomenon:

accuracy   by the total log-probability
both ...   pairs come in couples that cancel what a word alone tells (azerbaijani/pairs.py): the
           share of couples with both right, one right, and none
context    a couple's mean margin of the right sentence over the wrong one, in bits, which is
           what the context adds to the right form: the share of couples in which it is above
           zero, and the median
form       half the difference of the two margins: how much more the model likes one of the two
           forms in either context; the median. If it is larger than the context, one is right
shorter    of the pairs that are wrong, the share whose wrong sentence has fewer tokens
frequent   and the share whose wrong form is in the training text more often than the right one
unseen     of all pairs, the share whose right form is not in the training text
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from suite import WEAK, table

from azllm_lightning import compose
from azllm_lightning.azerbaijani.morphology import lower
from azllm_lightning.azerbaijani.pairs import Pair, minimal_pairs, turkish_pairs
from azllm_lightning.azerbaijani.tales import words
from azllm_lightning.data.shards import TokenShards
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.huggingface import HF_CONFIG
from azllm_lightning.inference.measures import open_subject
from azllm_lightning.inference.pair_files import SentencePair
from azllm_lightning.inference.pair_scores import SentenceLoss, named, sentence_losses

NO_COUPLES = ("question_order", "turkish_words", "turkish_spelling", "turkish_suffixes")


class ScoredPair(NamedTuple):
    """A pair, and the losses of its two sentences."""

    pair: Pair
    right: SentenceLoss
    wrong: SentenceLoss

    @property
    def margin(self) -> float:
        """How much more probable the right sentence is, in bits."""
        return (self.wrong.total - self.right.total) / math.log(2)

    @property
    def is_correct(self) -> bool:
        """By the total log-probability."""
        return self.margin > 0


def main() -> None:
    """Score the pairs, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run folder, checkpoint, or folder of transformers")
    parser.add_argument("--data", required=True, help="folder of prepared shards")
    parser.add_argument(
        "--losses", type=Path, help="file that keeps the losses, or has them already (.jsonl.gz)"
    )
    args = parser.parse_args()
    print(report(scored_pairs(args.model, args.losses), Path(args.data)))


def scored_pairs(model: str, kept: Path | None = None) -> list[ScoredPair]:
    """All pairs with their losses, from the file `kept` if it is there."""
    pairs = [*minimal_pairs(), *turkish_pairs()]
    if kept is not None and kept.is_file():
        with gzip.open(kept, "rt", encoding="utf-8") as file:
            rows = list(map(json.loads, file))
    else:
        rows = _measured(model, pairs)
    if [tuple(row[:3]) for row in rows] != [pair[:3] for pair in pairs]:
        raise ValueError(f"{kept} has other pairs than this version")
    if kept is not None and not kept.is_file():
        with gzip.open(kept, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return [
        ScoredPair(pair, SentenceLoss(*row[3:6]), SentenceLoss(*row[6:9]))
        for pair, row in zip(pairs, rows, strict=True)
    ]


def _measured(model: str, pairs: Sequence[Pair]) -> list[list[str | float]]:
    is_peer = (Path(model) / HF_CONFIG).is_file()
    config = compose([f"hf={model}" if is_peer else f"ckpt_path={model}"], "evaluate")
    checkpoint = None
    if not is_peer:
        from azllm_lightning.runs.folder import find_checkpoint

        checkpoint = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = open_subject(config, checkpoint, device).scorer
    sentences = [SentencePair(pair.phenomenon, pair.right, pair.wrong) for pair in pairs]
    losses = sentence_losses(scorer, sentences, None)
    return [
        [*pair, *map(_rounded, right), *map(_rounded, wrong)]
        for pair, right, wrong in zip(sentences, losses[::2], losses[1::2], strict=True)
    ]


def _rounded(loss: float) -> float:
    return round(loss, 6)


def report(scored: Sequence[ScoredPair], folder: Path) -> str:
    """The table of the phenomena below 70 %."""
    tokenizer = Tokenizer.from_file(folder)
    forms = {form for each in scored for form in (each.pair.right_form, each.pair.wrong_form)}
    counts = form_counts(folder, tokenizer, forms)
    groups: dict[str, list[ScoredPair]] = {}
    for each in scored:
        groups.setdefault(each.pair.phenomenon, []).append(each)
    rows = [
        row(phenomenon, group, tokenizer, counts)
        for phenomenon, group in groups.items()
        if share([each.is_correct for each in group]) < WEAK
    ]
    heads = "phenomenon|accuracy|both|one|none|context|bits|form, bits|shorter|frequent|unseen"
    return table(heads.split("|"), rows)


def row(
    phenomenon: str, group: Sequence[ScoredPair], tokenizer: Tokenizer, counts: Counter[str]
) -> list[str]:
    """The cells of a phenomenon."""
    couples = [""] * 6
    if phenomenon not in NO_COUPLES:
        couples = couple_cells([each.margin for each in group])
    errors = [each for each in group if not each.is_correct]
    ids = tokenizer.encode_batch([text for each in errors for text in each.pair[1:3]])
    shorter = [len(wrong) < len(right) for right, wrong in zip(ids[::2], ids[1::2], strict=True)]
    frequent = [
        counts[lower(each.pair.wrong_form)] > counts[lower(each.pair.right_form)] for each in errors
    ]
    unseen = [not counts[lower(each.pair.right_form)] for each in group]
    return [
        named(phenomenon),
        f"{share([each.is_correct for each in group]):.1%}",
        *couples,
        *(f"{share(truths):.0%}" for truths in (shorter, frequent, unseen)),
    ]


def couple_cells(margins: Sequence[float]) -> list[str]:
    """What is said of couples, from the margins of their pairs in turn."""
    couples = list(zip(margins[::2], margins[1::2], strict=True))
    correct = [(first > 0) + (second > 0) for first, second in couples]
    context = [(first + second) / 2 for first, second in couples]
    form = [abs(first - second) / 2 for first, second in couples]
    return [
        *(f"{share([number == n for number in correct]):.0%}" for n in (2, 1, 0)),
        f"{share([bits > 0 for bits in context]):.0%}",
        f"{median(context):.2f}",
        f"{median(form):.1f}",
    ]


def form_counts(folder: Path, tokenizer: Tokenizer, forms: set[str]) -> Counter[str]:
    """How often each form of the pairs is in the training text, in lower case.

    A form of several words counts as often as they follow each other.
    """
    wanted = {tuple(words(lower(form))): lower(form) for form in forms}
    lengths = sorted({len(form) for form in wanted})
    counts: Counter[str] = Counter()
    shards = TokenShards.open(folder, "train", tokenizer)
    for tokens in shards.chunks():
        text = words(lower(tokenizer.decode(tokens.tolist())))
        for length in lengths:
            found = Counter(zip(*(text[i:] for i in range(length)), strict=False))
            counts.update({wanted[form]: found[form] for form in wanted if form in found})
    return counts


def share(truths: Sequence[bool]) -> float:
    """The part of them that is true."""
    return sum(truths) / max(1, len(truths))


if __name__ == "__main__":
    main()
