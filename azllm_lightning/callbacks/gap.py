"""The gap between the two losses at the end of a run: memorized text, or harder validation text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from azllm_lightning.cli.messages import tr

LARGE = 0.1
"""Share of val_loss from which on the gap is worth a sentence."""

MOST = 0.6
"""Share of the gap that was there before any text was read twice, from which on that explains it.
"""


RISEN = 0.5
"""Share of the gap by which val_loss has risen at the end, from which on that explains it."""


class Point(NamedTuple):
    """A validation, losses in nats per token; `gap` is val_loss - train_loss."""

    step: int
    val_loss: float
    gap: float


def gap_text(
    points: Sequence[Point],
    steps_per_reading: float,
    is_student: bool = False,
    is_mixed: bool = False,
) -> str:
    """What the last gap means, in a sentence; "" if it is small or unknown.

    In the first `steps_per_reading` steps nothing is read twice, so that a gap there is not
    memorized text: the validation documents are harder to predict than the training text. If
    `is_mixed`, those are the steps in which what data.mix repeats most is read once on average. The
    train_loss of a student is low because it learns the training text from its teachers too; that
    is no fault. A val_loss that has risen, as with too high a learning rate, says nothing of the
    texts: train_loss is a mean of the steps before the rise too.
    """
    known = [point for point in points if point.step and math.isfinite(point.gap)]
    if is_student or not known or not known[-1].gap > LARGE * known[-1].val_loss:
        return ""
    last = known[-1]
    if last.val_loss - min(point.val_loss for point in known) > RISEN * last.gap:
        return ""
    first_pass = [point for point in known if point.step <= steps_per_reading]
    before = max(0.0, first_pass[-1].gap) if first_pass else 0.0
    if is_mixed:
        return _of_mix(last, before, last.step / steps_per_reading if not first_pass else None)
    if before >= MOST * last.gap:
        return tr(
            "val_loss is {gap:.2f} above train_loss, of which {before:.2f} were there before any "
            "text was read twice: the validation documents are harder than the training text.",
            gap=last.gap,
            before=before,
        )
    if not first_pass:
        return tr(
            "val_loss is {gap:.2f} above train_loss after {passes:.1f} passes over the text: part "
            "of it is memorized. More text or a stronger weight decay narrows the gap.",
            gap=last.gap,
            passes=last.step / steps_per_reading,
        )
    return tr(
        "val_loss is {gap:.2f} above train_loss, {grown:.2f} more than in the first pass over the "
        "text: part of it is memorized. More text or a stronger weight decay narrows the gap.",
        gap=last.gap,
        grown=last.gap - before,
    )


def _of_mix(last: Point, before: float, readings: float | None) -> str:
    """The same for data.mix; `readings` is how often the most repeated text was read on average,
    None if `before` is the gap when that was at most once.
    """
    if before >= MOST * last.gap:
        return tr(
            "val_loss is {gap:.2f} above train_loss, of which {before:.2f} were there when no text "
            "had been read more than once on average: the validation documents are harder than the "
            "training text.",
            gap=last.gap,
            before=before,
        )
    if readings is None:
        return tr(
            "val_loss is {gap:.2f} above train_loss, {grown:.2f} more than when no text had been "
            "read more than once on average: part of it is memorized. More text or a stronger "
            "weight decay narrows the gap.",
            gap=last.gap,
            grown=last.gap - before,
        )
    return tr(
        "val_loss is {gap:.2f} above train_loss, and what data.mix repeats most has been read "
        "{passes:.1f} times: part of it is memorized. More text or a stronger weight decay narrows "
        "the gap.",
        gap=last.gap,
        passes=readings,
    )
