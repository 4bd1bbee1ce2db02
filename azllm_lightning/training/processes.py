"""The processes of a run on several devices: which one this is, and how they decide together.

A launcher started them: torchrun, srun, or `session.supervisor`. With one process, each function
here does what it says without any communication.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from azllm_lightning.cli.messages import tr
from azllm_lightning.training.stopping import Stopped

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For tensors: longer than a step, a validation or a save may take."""

CONTROL_TIMEOUT = timedelta(days=7)
"""For decisions: the first process may prepare data for hours. A dead one is noticed at once."""

LOST_PEER = re.compile(
    "Connection (closed|reset|refused)|(Read|Write) error|Broken pipe|Socket (Timeout|closed)"
    "|socket error|remote process exited|NCCL (communicator|error)|(recvValue|sendBytes) failed"
)
"""What gloo, NCCL and the store say where another process is gone."""


@dataclass(frozen=True)
class Processes:
    """This process among those of its run."""

    rank: int = 0
    local_rank: int = 0
    """Its number on its machine."""
    size: int = 1
    num_nodes: int = 1
    """Machines, each with the same number of processes."""

    @property
    def local_size(self) -> int:
        """Processes per machine."""
        return self.size // self.num_nodes

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all, and writes the run folder."""
        return self.rank == 0


class Elsewhere(SystemExit):
    """Ends this process quietly, because another one of its run reports why."""


# Set by `joined`.
_control: dist.ProcessGroup | None = None
_store: Store | None = None


def launched() -> Processes | None:
    """The place that a launcher gave to this process; None if it was started by hand.

    The environment of srun is completed to that of torchrun, which the rest relies on. A script of
    sbatch and an interactive session of salloc are no launchers: they have the environment of one
    task of many, but only one process runs.
    """
    environment = os.environ
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= environment.keys():
        if _slurm_tasks() < 2:
            return None
        environment.update(_torchrun_names())
    rank, local_rank, size = (int(environment[k]) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return Processes(rank, local_rank, size)


def connect() -> Store:
    """Connect to the launcher's store, in which `Notes` are."""
    global _store
    _store, _, _ = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    return _store


@contextlib.contextmanager
def joined(place: Processes, use_gpus: bool) -> Iterator[Processes]:
    """Connect the processes of a run until the end of the block; gives this one's place.

    Raises ValueError if the machines have different numbers of processes.
    """
    global _control
    has_gpu = use_gpus and torch.cuda.is_available()
    store = connect()
    by_gpu = "nccl" if dist.is_nccl_available() else "gloo"  # Windows has no NCCL
    dist.init_process_group(
        f"cpu:gloo,cuda:{by_gpu}" if has_gpu else "gloo",
        # torchrun (torch 2.13) keeps its store over a restart, with the addresses of the dead.
        store=PrefixStore(f"attempt_{attempt_number()}", store),
        rank=place.rank,
        world_size=place.size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)  # it is a number where a process is left out
    _control = control
    num_nodes = everywhere(place.local_rank).count(0)
    if not num_nodes or place.size % num_nodes:
        raise ValueError(tr("start the same number of processes on each machine"))
    place = Processes(place.rank, place.local_rank, place.size, num_nodes)
    os.environ["GROUP_RANK"] = str(place.rank // place.local_size)
    yield place
    # Not after an error: the others may be in the middle of an operation, and NCCL would wait.
    _control = None
    dist.destroy_process_group()


def first(decide: Callable[[], T]) -> T:
    """What `decide` returns in the first process, in all of them.

    If it raises, the others raise `Stopped` too, or end quietly.
    """
    if _control is None:
        return decide()
    if dist.get_rank() != 0:
        outcome = _broadcast(None)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome[0]  # type: ignore[no-any-return]
    try:
        value = decide()
    except Stopped as stopped:
        _broadcast(Stopped(*stopped.args))
        raise
    except BaseException as error:
        _broadcast(Elsewhere(2 if isinstance(error, (ValueError, OSError)) else 1))
        raise
    _broadcast((value,))
    return value


def together(act: Callable[[], T]) -> T:
    """`act` in each process.

    If it raises ValueError or OSError in some, all end: one of these with its error, the others
    quietly.
    """
    if _control is None:
        return act()
    failure: Exception | None = None
    try:
        value = act()
    except (ValueError, OSError) as error:
        failure = error
    failed = [rank for rank, fails in enumerate(everywhere(failure is not None)) if fails]
    if failure is not None and failed[0] == dist.get_rank():
        raise failure
    if failed:
        raise Elsewhere(2)
    return value


def everywhere(mine: T) -> list[T]:
    """The value `mine` of each process, by rank."""
    if _control is None:
        return [mine]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, mine, group=_control)
    return values


def wait_for_first(seconds: float) -> None:
    """Return when the first process has ended, so that a launcher does not cut off its last words.

    A process that ends in an error makes torchrun stop the others at once.
    """
    import threading

    def wait() -> None:
        with contextlib.suppress(RuntimeError):
            dist.recv(torch.zeros(1), src=0, group=_control)

    if _control is not None:
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(seconds)


def has_lost_peer(error: BaseException) -> bool:
    """Whether `error` is the end of another process, seen from this one."""
    if _control is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or bool(LOST_PEER.search(str(error)))


class Notes:
    """What the processes leave behind for their launcher, and for those that it starts next.

    They are in the key-value store of torchrun or of `session.supervisor`, which outlives them;
    under srun, in that of the first process.
    """

    def __init__(self) -> None:
        self.store = PrefixStore("azllm", _store) if _store is not None else None

    def read(self, name: str) -> str | None:
        """The note `name`, if there is one."""
        try:
            if self.store is not None and self.store.check([name]):
                return str(self.store.get(name).decode())
        except RuntimeError:  # the store is gone
            pass
        return None

    def write(self, name: str, text: str) -> None:
        """Leave a note, if the store is still there."""
        with contextlib.suppress(RuntimeError):
            if self.store is not None:
                self.store.set(name, text)

    def is_first_to(self, name: str) -> bool:
        """Whether no other process has asked this; true too if the store is gone."""
        try:
            return self.store is None or self.store.add(name, 1) == 1
        except RuntimeError:
            return True


def attempt_number() -> int:
    """How many times the launcher has started this run's processes before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _broadcast(value: Any) -> Any:
    box = [value]
    try:
        dist.broadcast_object_list(box, src=0, group=_control)
    except (pickle.PicklingError, TypeError):
        raise AssertionError(f"not a plain value: {value!r}") from None
    return box[0]


def _slurm_tasks() -> int:
    environment = os.environ
    if "SLURM_PROCID" not in environment or "SLURM_LOCALID" not in environment:
        return 0
    if "SLURM_STEP_NUM_TASKS" in environment:  # set by srun alone
        return int(environment["SLURM_STEP_NUM_TASKS"])
    is_script = environment.get("ENVIRONMENT") == "BATCH"
    is_interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return 0 if is_script or is_interactive else int(environment.get("SLURM_NTASKS", 0))


def _torchrun_names() -> dict[str, str]:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = os.environ
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
    job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(_slurm_tasks()),
        "MASTER_ADDR": environment.get("MASTER_ADDR")
        or SLURMEnvironment.resolve_root_node_address(nodes),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(15000 + job % 10000),
    }
