"""Whether other programs slowed a machine down while it was measured."""

from __future__ import annotations

from azllm_lightning.cli.messages import tr

BUSY_LOAD = 0.5
"""Load per core, before the check, from which on the machine is called busy."""

FREE_SHARE = 0.75
"""Share of the time of its threads that a training gets on a machine that does nothing else."""


def how_busy(load: float | None, cores: int, cpu_share: float | None) -> str:
    """What shows that other programs used the machine, for people; "" if nothing does.

    `load` is its load average before the check. `cpu_share` is the processor time of the measured
    steps, as a share of what their threads could have had; None where it says nothing, as on a GPU.
    """
    if cpu_share is not None and cpu_share < FREE_SHARE:
        return tr("the measured steps got {share:.0%} of its cores", share=cpu_share)
    if load is None or load < BUSY_LOAD * cores:
        return ""
    return tr("load {load:.1f} on {cores} cores", load=load, cores=cores)
