"""What can ail a run, told from its numbers alone: pure functions of curves, each giving how bad it is.

1 and above is ill, below 0.5 is well, between the two nothing is known that was not known before.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from azllm_lightning.callbacks.panels import Validation, best_of
from azllm_lightning.config.optimizer import MuonConfig, OptimizerConfig

IN_A_ROW = 2
"""Validations above the best before a rise counts: one may be an unlucky set of weights."""

NOISE = 2.0
"""Standard deviations of val_loss's own jitter that a rise must exceed."""

DECAY = 3.0
"""Weight decay that keeps a model with more parameters than its text has tokens from learning it by heart."""

LEARNED_LATE = 0.25
"""Share of all that was learned that falls into the second half of a run cut off too early; healthy runs, whose rate
falls to a tenth, have 0.05 to 0.15."""

STEEP, FLAT = 0.10, 0.02
"""Fall of val_loss over the second half, as a share of it, above which it is steep and below which it is flat."""

CLOSE = 0.10
"""Gap, as a share of val_loss, below which the training loss is as high: it is not overfitting that holds it up."""

HIGH = 0.6
"""Share of the loss of guessing, ln V, above which a flat val_loss is high; models that read well end below 0.45."""

SHORT, LONG = 10, 50
"""Optimizer steps of a mean that shows a jump, and of one that shows where the loss stands."""

RISE = 0.5
"""Nats above its lowest mean from which the loss has gone up, unless it scatters widely."""

SCATTER = 3.0
"""Standard deviations of a single step's loss that the mean of SHORT steps must rise by; ten times its own error."""

NORM_GROWTH = 4.0
"""Growth of the gradient's median norm that is no drift: healthy runs double it over thousands of steps."""

USUAL = 200
"""Optimizer steps whose median is the gradient norm that was usual before."""

DEAD = 0.02
"""Share of ln V that a run must have got below it after its warm-up; healthy ones have got 20 times as far."""

HALVINGS = 5
"""Times the fp16 scale may fall without growing in between; it starts at 2**13, and finds its level within four."""

WAITING = 0.20
"""Share of a step that is too long to wait for data."""


def overfitting(history: Sequence[Validation], share: float) -> float:
    """How far val_loss has come up from its best while the training loss went on falling.

    In units of what is no noise: the larger of `share` of the best and NOISE times the jitter from one validation to
    the next. The validation windows are always the same, so that only the weights make it jitter.
    """
    best = best_of(history)
    since = [] if best is None else [row for row in history if row.step > best.step]
    if best is None or len(since) < IN_A_ROW:
        return 0.0
    last, before = _train_loss(since[-1]), _train_loss(best)
    tolerance = max(
        share * max(1.0, best.val_loss), NOISE * jitter([row.val_loss for row in history])
    )
    rise = min(row.val_loss - best.val_loss for row in since[-IN_A_ROW:]) / tolerance
    recovers = since[-1].val_loss < max(row.val_loss for row in since) - tolerance
    # The mean at the best lags behind by half an interval, so that the gap must be there too.
    train_falls = last < before and since[-1].val_loss - last > tolerance
    return rise if train_falls and not recovers else min(rise, 0.9)


def against_overfitting(optimizer: OptimizerConfig, dropout: float) -> str:
    """What to type against it: decay, which did most where it was measured (benchmarks/LOG.md), then dropout."""
    if (
        isinstance(optimizer, MuonConfig)
        and min(optimizer.weight_decay, optimizer.adam_weight_decay) < DECAY
    ):
        return f"optimizer.weight_decay={DECAY:g} optimizer.adam_weight_decay={DECAY:g}"
    return f"model.dropout={min(dropout + 0.2, 0.5):g}"


def jitter(values: Sequence[float]) -> float:
    """Standard deviation of the noise on a smooth curve, from the third differences of its last 9 points.

    A quadratic has none, and the median is not moved by a single turn; 1.4826 makes it a standard deviation for normal
    noise, whose third difference has a variance of 1 + 9 + 9 + 1 = 20. 0 below 5 points.
    """
    recent = [value for value in values if math.isfinite(value)][-9:]
    if len(recent) < 5:
        return 0.0
    third = [
        abs(d - 3 * c + 3 * b - a)
        for a, b, c, d in zip(recent, recent[1:], recent[2:], recent[3:], strict=False)
    ]
    return 1.4826 * statistics.median(third) / math.sqrt(20)


def underfitting(
    history: Sequence[Validation], guess: float, warmup_steps: int
) -> tuple[str, Validation] | None:
    """What the end of a run that is long past its warm-up tells: ("undertrained" or "too_small", its middle).

    Undertrained: both losses still fall steeply. Too small: both are flat and high, measured by `guess`, the loss of
    guessing. None for a run that is neither, or that was validated too seldom to tell.
    """
    end, steps = history[-1], history[-1].step
    middle = min(history, key=lambda row: abs(row.step - steps / 2))
    if steps < max(3 * warmup_steps, 2 * LONG) or not steps / 3 <= middle.step <= 2 * steps / 3:
        return None
    val_loss, fall = end.val_loss, middle.val_loss - end.val_loss
    if not val_loss - _train_loss(end) < CLOSE * val_loss:
        return None
    falls = val_loss < history[-2].val_loss and _train_loss(end) < _train_loss(middle)
    if falls and fall > STEEP * val_loss and fall > LEARNED_LATE * (history[0].val_loss - val_loss):
        return "undertrained", middle
    if abs(fall) < FLAT * val_loss and HIGH * guess < val_loss < (1 - DEAD) * guess:
        return "too_small", middle
    return None


def loss_rise(losses: Sequence[float], lowest: float, scatter: float) -> float:
    """How far the mean of the last SHORT training losses is above `lowest`, whose steps scattered by `scatter`."""
    if len(losses) < SHORT:
        return 0.0
    return (statistics.fmean(losses[-SHORT:]) - lowest) / max(RISE, SCATTER * scatter)


def norm_growth(losses: Sequence[float], norms: Sequence[float]) -> float:
    """How far the gradient norm of the last LONG steps is above that of the USUAL before; 0 if the loss falls."""
    if len(norms) < LONG + USUAL or statistics.fmean(losses[-LONG:]) < statistics.fmean(
        losses[:-LONG]
    ):
        return 0.0
    before = statistics.median(norms[:-LONG])
    return statistics.median(norms[-LONG:]) / (NORM_GROWTH * before) if before > 0 else 0.0


def deadness(losses: Sequence[float], guess: float) -> float:
    """Whether the mean of the last LONG losses, all of after the warm-up, is still `guess`, the loss of guessing."""
    below = 1 - statistics.fmean(losses[-LONG:]) / guess
    return 0.75 if below < -DEAD else min(1.0, DEAD / max(below, DEAD))


def scale_fall(scales: Sequence[float]) -> float:
    """Halvings of the fp16 scale since it last grew, `scales` being its values since then, in units of HALVINGS."""
    return math.log2(scales[0] / max(scales[-1], 2.0**-126)) / HALVINGS


def _train_loss(row: Validation) -> float:
    return math.nan if row.train_loss is None else row.train_loss
