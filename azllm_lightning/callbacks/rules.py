"""What can go wrong in a run, judged from its history alone, by pure functions.

Most return a severity: from 1 on the problem is present, below 0.5 it is over, and in between it
stays as it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise

from azllm_lightning.callbacks.history import KEPT, LONG, Mean, Validation, best_of
from azllm_lightning.config.optimizer import MuonConfig, OptimizerConfig

RECENT = 9
"""Validations up to the best that show how noisy val_loss is."""

IN_A_ROW = 2
"""Validations above the best before a rise counts: a single one may be an outlier."""

NOISE = 3.0
"""How many times the noise of val_loss a rise must be."""

EVIDENCE = 4.0
"""Tolerances that the last three rises must add up to: two steep ones, or three moderate ones."""

FALL = 0.02
"""Fall of train_loss since the best, as a share of val_loss, above which it is not noise."""

UNHELPED = frozenset({"too_small", "dead"})
"""Problems that more steps do not solve; overfitting shows in the validations."""

DECAY = 3.0
"""Weight decay that keeps a model larger than its text from memorizing it."""

LEARNED_LATE = 0.25
"""Share of the total fall of val_loss that happens in the second half of a run cut off too early;
healthy runs, whose learning rate decays to a tenth, have 0.05 to 0.15."""

STEEP = 0.10
"""Fall of val_loss over the second half, as a share of it, above which it is steep."""

FLAT = 0.02
"""The same fall, below which the curve is flat."""

CLOSE = 0.10
"""Gap, as a share of val_loss, below which train_loss is as high: that is not overfitting."""

HIGH = 0.6
"""Share of the chance loss, ln V, above which a flat val_loss is high; models that learned well end
below 0.45."""

SHORT = 10
"""Optimizer steps of a mean that shows a jump."""

RISE = 0.5
"""Nats above its lowest mean from which the loss counts as risen, unless it is very noisy."""

SCATTER = 3.0
"""Standard deviations of a single step's loss that the mean of SHORT steps must rise by; ten times
its own error."""

NORM_GROWTH = 4.0
"""Growth of the median gradient norm that is more than drift: healthy runs double it over thousands
of steps."""

DEAD = 0.02
"""Share of ln V by which the loss must be below ln V after warm-up; healthy runs are 20 times as
far below it."""

HALVINGS = 5
"""Halvings of the fp16 scale, without growth in between, that are too many; it starts at 2**13, and
a healthy run needs at most four."""

WAITING = 0.20
"""Share of the steps' time that is too much to wait for data."""

WATCHED_STEPS = 50
"""Minimum number of steps for a verdict on waiting for data."""

WATCHED_AT_MOST = 50_000
"""Steps that are looked at, from the last one back."""

WATCHED_SECONDS = 20.0
"""Minimum duration of these steps, in seconds."""

SLOWER = 4.0
"""How many times as long as before a step takes if the GPU's memory has spilled to the host."""

SLOW_STEPS = 5
"""Steps in a row that must be as slow."""


def overfitting(history: Sequence[Validation], share: float) -> float:
    """How clearly val_loss has risen from its best while train_loss kept falling.

    Rises above the best are counted in tolerances. A tolerance is `share` of the best, or NOISE
    times the noise where that is more. Only validations up to the best measure the noise (`jitter`
    and `setback`), so that the rise itself is not mistaken for it. The last IN_A_ROW rises must
    each reach one tolerance, and the last three together EVIDENCE.

    The result stays below 1 where val_loss is recovering, where train_loss has fallen by less than
    FALL of val_loss since the best, and where the two are closer than CLOSE of val_loss.
    """
    best = best_of(history)
    if best is None:
        return 0.0
    rows = [row for row in history if row.step and math.isfinite(row.val_loss)]
    since = [row for row in rows if row.step > best.step]
    if len(since) < IN_A_ROW:
        return 0.0
    before = [row.val_loss for row in rows if row.step <= best.step]
    noise = max(jitter(before), setback(before))
    tolerance = max(share * max(1.0, best.val_loss), NOISE * noise)
    rises = [(row.val_loss - best.val_loss) / tolerance for row in since]
    severity = min(*rises[-IN_A_ROW:], sum(rises[-3:]) / EVIDENCE)
    recovers = rises[-1] < max(rises) - 1
    train_loss = _train_loss(since[-1])
    train_falls = _train_loss(best) - train_loss > FALL * best.val_loss
    apart = since[-1].val_loss - train_loss > CLOSE * best.val_loss
    return severity if train_falls and apart and not recovers else min(severity, 0.9)


def more_steps_help(history: Sequence[Validation], present: Collection[str]) -> bool:
    """Whether a run at its last step, with the problems `present`, can get better by more steps.

    It cannot after a divergence, once IN_A_ROW validations or more are worse than the best, nor
    with one of the problems UNHELPED.
    """
    best = best_of(history)
    if best is None or not math.isfinite(history[-1].val_loss):
        return False
    since = sum(row.step > best.step for row in history)
    return since < IN_A_ROW and UNHELPED.isdisjoint(present)


def against_overfitting(
    optimizer: OptimizerConfig, dropout: float, is_student: bool = False
) -> str:
    """Settings to try against overfitting: weight decay, then dropout; for a student dropout alone,
    since with much decay it cannot keep what its teachers know (benchmarks/LOG.md).
    """
    if (
        not is_student
        and isinstance(optimizer, MuonConfig)
        and min(optimizer.weight_decay, optimizer.adam_weight_decay) < DECAY
    ):
        return f"optimizer.weight_decay={DECAY:g} optimizer.adam_weight_decay={DECAY:g}"
    return f"model.dropout={min(dropout + 0.2, 0.5):g}"


def jitter(values: Sequence[float]) -> float:
    """Standard deviation of the noise on a smooth curve, from its third differences.

    A quadratic has none, and the median is not moved by a single turn. The factor 1.4826 makes it a
    standard deviation for normal noise, whose third difference has a variance of 1 + 9 + 9 + 1.
    0 below 6 points, since one difference would move the median of two.
    """
    recent = [value for value in values if math.isfinite(value)][-RECENT:]
    if len(recent) < 6:
        return 0.0
    third = [
        abs(d - 3 * c + 3 * b - a)
        for a, b, c, d in zip(recent, recent[1:], recent[2:], recent[3:], strict=False)
    ]
    return 1.4826 * statistics.median(third) / math.sqrt(20)


def setback(values: Sequence[float]) -> float:
    """Highest rise of two values in a row above the lowest before, among the RECENT last values.

    Up to a new best, these are the rises that a run has recovered from: slower than `jitter`.
    """
    lowest = list(accumulate(values, min))
    rises = [min(pair) - low for pair, low in zip(pairwise(values), lowest[1:], strict=True)]
    return max(rises[-RECENT:], default=0.0)


def underfitting(
    history: Sequence[Validation], chance_loss: float, warmup_steps: int
) -> tuple[str, Validation] | None:
    """The verdict at the end of a run: ("undertrained" or "too_small", its middle validation).

    Undertrained: both losses still fall steeply. Too small: both are flat, and high compared with
    `chance_loss`, ln V. None if neither, or for a run too short or too seldom validated to judge.
    """
    end = history[-1]
    steps = end.step
    middle = min(history, key=lambda row: abs(row.step - steps / 2))
    if steps < max(3 * warmup_steps, 2 * LONG) or not steps / 3 <= middle.step <= 2 * steps / 3:
        return None
    val_loss = end.val_loss
    fall = middle.val_loss - val_loss
    if not val_loss - _train_loss(end) < CLOSE * val_loss:
        return None
    falls = val_loss < history[-2].val_loss and _train_loss(end) < _train_loss(middle)
    if falls and fall > STEEP * val_loss and fall > LEARNED_LATE * (history[0].val_loss - val_loss):
        return "undertrained", middle
    if abs(fall) < FLAT * val_loss and HIGH * chance_loss < val_loss < (1 - DEAD) * chance_loss:
        return "too_small", middle
    return None


def loss_rise(losses: Sequence[float], lowest: Mean | None, chance_loss: float) -> float:
    """How far the mean of the last SHORT training losses is above the `lowest` mean of LONG steps.

    Until that is below `chance_loss`, ln V, it is compared with `chance_loss`.
    """
    if len(losses) < SHORT:
        return 0.0
    if lowest is None or lowest.value > chance_loss:
        lowest = Mean(chance_loss, 0.0)
    return (statistics.fmean(losses[-SHORT:]) - lowest.value) / max(
        RISE, SCATTER * lowest.deviation
    )


def norm_growth(losses: Sequence[float], norms: Sequence[float]) -> float:
    """Growth of the gradient norm in the last LONG steps, unless the loss falls."""
    if len(norms) < KEPT:
        return 0.0
    if statistics.fmean(losses[-LONG:]) < statistics.fmean(losses[:-LONG]):
        return 0.0
    before = statistics.median(norms[:-LONG])
    return statistics.median(norms[-LONG:]) / (NORM_GROWTH * before) if before > 0 else 0.0


def deadness(losses: Sequence[float], chance_loss: float) -> float:
    """Whether the mean of the last LONG losses is still `chance_loss`, ln V."""
    below = 1 - statistics.fmean(losses[-LONG:]) / chance_loss
    return 0.75 if below < -DEAD else min(1.0, DEAD / max(below, DEAD))


def scale_fall(scales: Sequence[float]) -> float:
    """Halvings of the fp16 scale, in units of HALVINGS; `scales` are its values since it grew."""
    return math.log2(scales[0] / max(scales[-1], 2.0**-126)) / HALVINGS


def waiting_share(waits: Sequence[float], step_seconds: Sequence[float]) -> float | None:
    """Share of the steps' time that went into waiting for data, leaving out steps whose wait is
    unknown (NaN).

    None for fewer than WATCHED_STEPS steps or WATCHED_SECONDS.
    """
    known = [
        (wait, seconds)
        for wait, seconds in zip(waits, step_seconds, strict=True)
        if not math.isnan(wait)
    ]
    total = sum(seconds for _, seconds in known)
    if len(known) < WATCHED_STEPS or total < WATCHED_SECONDS:
        return None
    return sum(wait for wait, _ in known) / total


def slowdown(waits: Sequence[float], step_seconds: Sequence[float]) -> float:
    """How many times as long as the first steps of the session the last SLOW_STEPS all took.

    Waits for data do not count, and neither does the very first step, which compiles. 0 before
    there are twice as many steps to compare with.
    """
    last = len(step_seconds) - SLOW_STEPS
    if last - 1 < 2 * SLOW_STEPS:
        return 0.0

    def own(steps: slice) -> list[float]:
        return [
            seconds - (0.0 if math.isnan(wait) else wait)
            for wait, seconds in zip(waits[steps], step_seconds[steps], strict=True)
        ]

    first = own(slice(1, min(last, 1 + KEPT)))
    return min(own(slice(last, None))) / statistics.median(first)


def _train_loss(row: Validation) -> float:
    return math.nan if row.train_loss is None else row.train_loss
