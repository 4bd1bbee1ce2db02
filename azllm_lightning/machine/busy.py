"""Whether other programs slowed a machine down while it was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from azllm_lightning.cli.messages import tr

PROC = Path("/proc")

MUCH = 0.25
"""Share of the time of its threads from which on a training was slowed down."""


class ProcessorTimes(NamedTuple):
    """Seconds on the clock, and processor seconds on the cores of this process, of all programs
    and of those of this session alone. Only differences mean anything.
    """

    clock: float
    cores: int
    everything: float
    own: float


def processor_times() -> ProcessorTimes | None:
    """The times until now; None where the system does not say (it is Linux that does).

    `own` is of the processes that share the session of this one, such as the workers that load
    data. Nothing else does what this training waits for.
    """
    try:
        allowed = os.sched_getaffinity(0)
        session = os.getsid(0)
        tick = 1 / os.sysconf("SC_CLK_TCK")
        cores = [
            sum(map(int, fields[1:4]))  # user, nice, system; not the time of other machines
            for fields in map(str.split, _lines(PROC / "stat"))
            if fields[0].startswith("cpu") and fields[0][3:] in map(str, allowed)
        ]
        own = sum(_ticks(path, session) for path in PROC.glob("[0-9]*/stat"))
    except (AttributeError, OSError, ValueError, IndexError):
        return None
    if len(cores) < len(allowed) or not own:  # a container counts cores or processes otherwise
        return None
    return ProcessorTimes(time.perf_counter(), len(cores), tick * sum(cores), tick * own)


def others_share(start: ProcessorTimes, end: ProcessorTimes, threads: int) -> float:
    """What other programs took of the cores that `threads` threads had between two times, as a
    share of it. What they do on further cores takes nothing away.
    """
    seconds = end.clock - start.clock
    others = (end.everything - start.everything) - (end.own - start.own)
    taken = others - max(0, start.cores - threads) * seconds
    return min(1.0, max(0.0, taken / (threads * seconds)))


def how_busy(cpu_share: float | None, others: float | None) -> str:
    """What shows that other programs slowed the measured steps down, for people; "" if nothing
    does, or nothing is known.

    `cpu_share` is the processor time of the steps, as a share of what their threads could have
    had, and `others` what other programs took of that. Threads may also wait for one another: that
    alone is no sign of other programs.
    """
    if cpu_share is None or others is None or min(1 - cpu_share, others) < MUCH:
        return ""
    return tr("the measured steps got {share:.0%} of its cores", share=cpu_share)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _ticks(path: Path, session: int) -> int:
    """Processor time of a process and of its children that have ended; 0 if it has ended itself,
    or is of another session.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces; state is next
    return sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
