"""Start one process per device of this machine, and see that none is left behind.

The supervisor itself does not train. It passes signals on, starts all processes again with a
smaller micro-batch when one runs out of memory, and ends all when one dies.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported by a wildcard

from azllm_lightning.cli.entrance import EXIT_INTERRUPTED, Resumable
from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.overrides import command
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.folder import Run
from azllm_lightning.session.outcome import Outcome, resume_command, resume_settings
from azllm_lightning.session.resolve import Located
from azllm_lightning.training.batch import check_devices
from azllm_lightning.training.stopping import (
    OF_NOTEBOOK,
    SIGNALS,
    Stopped,
    in_notebook,
    signal_name,
)

WORKER = "azllm_lightning.session.process"
"""The module that each process runs."""

GRACE_SECONDS = 8.0
"""How long the others may run after one process died, before they are killed. gloo reports a dead
peer at once; NCCL waits for it."""

SAVING_SECONDS = 120.0
"""How long they may run after one process stopped in good order, as all do then."""

POLL_SECONDS = 0.1

KEPT_NOTES = ("run", "micro_batch_size", "started")
"""Notes of the processes that those started next read."""


@dataclass
class Worker:
    """One of the processes."""

    rank: int
    process: subprocess.Popen[bytes]
    was_killed: bool = False
    """By the supervisor."""


@dataclass
class Group:
    """The processes of one attempt, and the store through which they find each other."""

    store: TCPStore
    workers: list[Worker] = field(default_factory=list)
    signal: str | None = None
    """The first signal that they were sent."""

    def outcomes(self) -> list[Outcome]:
        """How each process that has ended did, by rank."""
        ended = [worker for worker in self.workers if worker.process.returncode is not None]
        return [self._outcome(worker) for worker in ended]

    def _outcome(self, worker: Worker) -> Outcome:
        key = f"azllm/outcome/{worker.rank}"
        code = worker.process.returncode
        if self.store.check([key]):
            return Outcome(**json.loads(self.store.get(key)))
        if worker.was_killed:
            return Outcome("lost")
        if code < 0:
            return Outcome("killed", signal_name(-code))
        return Outcome("killed", tr("exit code {code}", code=code))

    def note(self, name: str) -> str | None:
        """A note that a process left."""
        key = f"azllm/{name}"
        return self.store.get(key).decode() if self.store.check([key]) else None

    def wait(self) -> None:
        """Return when all have ended, and end those that wait for a dead one."""
        deadline = None
        while running := [w for w in self.workers if w.process.poll() is None]:
            codes = {w.process.returncode for w in self.workers} - {None, 0}
            if codes and deadline is None:
                in_order = {outcome.kind for outcome in self.outcomes()} <= {"done", "stopped"}
                deadline = time.monotonic() + (SAVING_SECONDS if in_order else GRACE_SECONDS)
            if deadline is not None and time.monotonic() > deadline:
                for worker in running:
                    worker.was_killed = True
                    worker.process.kill()
            time.sleep(POLL_SECONDS)

    def send(self, number: int) -> None:
        """Send a signal to all."""
        self.signal = self.signal or signal_name(number)
        for worker in self.workers:
            if worker.process.poll() is None:
                with contextlib.suppress(OSError, ValueError):  # Windows has few signals
                    worker.process.send_signal(number)

    def close(self) -> None:
        """Kill what still runs, and close the pipes."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
            assert worker.process.stdin is not None
            with contextlib.suppress(OSError):
                worker.process.stdin.close()


def supervise(config: RunConfig, located: Located, count: int) -> Path:
    """Train `config`, which is `located`, in `count` processes of this machine.

    Returns the run folder.

    Raises what `train` raises in a single process; Stopped for a signal before anything was saved.
    If a process was killed, that is Resumable.
    """
    check_devices(located.config, count)  # before the processes start
    notes = {"started": str(time.time())}
    attempt = 0
    while True:
        # Another attempt continues from the newest checkpoint, not from this one.
        settings = settings_line(config, located if attempt == 0 else None)
        with _started(settings, count, attempt, notes) as group:
            group.wait()
            if any(worker.process.returncode == EXIT_INTERRUPTED for worker in group.workers):
                # After Ctrl+C once more; in a notebook, the other cells are still there.
                raise KeyboardInterrupt if in_notebook() else SystemExit(EXIT_INTERRUPTED)
            outcomes = group.outcomes()
            notes = {name: text for name in KEPT_NOTES if (text := group.note(name)) is not None}
        start = located.source.step if located.source is not None else None
        if not any(outcome.kind == "memory" for outcome in outcomes):
            return _result(outcomes, notes.get("run"), config.overrides, start, group.signal)
        if group.signal is not None:
            raise _stopped(notes, config.overrides, start, group.signal)
        attempt += 1


def _stopped(
    notes: dict[str, str], typed: Sequence[str], start: int | None, sent: str
) -> Stopped | Resumable:
    """The end of a run that got the signal `sent` while it ran out of memory."""
    folder = notes.get("run")
    settings = None if folder is None else resume_settings(Run(Path(folder)), typed, start)
    if settings is None:
        return Stopped(sent)
    smaller = [f"trainer.micro_batch_size={notes['micro_batch_size']}"]
    return Resumable(command("train", [*settings, *smaller]))


def settings_line(config: RunConfig, located: Located | None) -> bytes:
    """What a process gets on standard input; `read_settings` is the inverse."""
    values = {"typed": config.to_mapping(), "located": None, "source": None}
    if located is not None:
        values["located"] = located.config.to_mapping()
    if located is not None and located.source is not None:
        values["source"] = {**asdict(located.source), "path": str(located.source.path)}
    return json.dumps(values).encode() + b"\n"


def _result(
    outcomes: list[Outcome],
    folder: str | None,
    typed: Sequence[str],
    start: int | None,
    sent: str | None,
) -> Path:
    """The run folder if all is done; else raises for the gravest end. `sent` is the signal that the
    processes were sent.
    """
    resume = None if folder is None else resume_command(Run(Path(folder)), typed, start)
    if sent is not None and Outcome("killed", sent) in outcomes:  # it did not listen yet
        raise Stopped(sent) if resume is None else Resumable(resume)
    by_reason = sorted(enumerate(outcomes), key=lambda found: not found[1].text)  # some have none
    for kind in ("error", "crash", "killed", "stopped", "lost"):
        for rank, outcome in by_reason:
            if outcome.kind == kind:
                process = tr("process {rank} of {count}", rank=rank, count=len(outcomes))
                _raise(outcome, process, resume)
    return Path(outcomes[0].text)


def _raise(outcome: Outcome, process: str, resume: str | None) -> None:
    if outcome.kind == "error":
        raise ValueError(outcome.text)
    if outcome.kind == "crash":
        lines = [
            outcome.text,
            tr("{process} failed, and the others were ended", process=process),
        ]
    elif outcome.kind == "killed":
        lines = [
            tr(
                "{process} was ended by {cause}, and the others with it",
                process=process,
                cause=outcome.text,
            )
        ]
    else:
        lines = [outcome.text]
    if resume is not None:
        lines.append(tr("resume: {command}", command=resume))
    if outcome.kind == "stopped":
        raise Resumable(resume or "", outcome.text)
    if outcome.kind in ("crash", "lost") or resume is None:
        print("\n".join(lines), file=sys.stderr, flush=True)
        raise SystemExit(1)
    raise Resumable(resume, "\n".join(lines))


@contextlib.contextmanager
def _started(settings: bytes, count: int, attempt: int, notes: dict[str, str]) -> Iterator[Group]:
    """The processes, which get every signal that this process gets."""
    has_libuv = os.name != "nt"  # PyTorch for Windows is built without
    timeout = timedelta(seconds=30)
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timeout, use_libuv=has_libuv)
    for name, text in notes.items():
        store.set(f"azllm/{name}", text)
    group = Group(store)
    try:
        with _passing_on(group):
            for rank in range(count):
                group.workers.append(
                    Worker(rank, _start(settings, rank, count, attempt, store.port))
                )
            yield group
    finally:
        group.close()


@contextlib.contextmanager
def _passing_on(group: Group) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        group.send(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(
    settings: bytes, rank: int, count: int, attempt: int, port: int
) -> subprocess.Popen[bytes]:
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        **_loopback(),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }
    is_notebook = in_notebook()  # its output is not the process's
    if is_notebook:
        environment[OF_NOTEBOOK] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", WORKER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if is_notebook else None,
        stderr=subprocess.STDOUT if is_notebook else None,
        # Ctrl+C reaches the whole process group: each process is to get it once, from here.
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it died at once, which `wait` notices
        process.stdin.write(settings)
        process.stdin.flush()
    if is_notebook:
        threading.Thread(target=_copy_output, args=(process,), daemon=True).start()
    return process


def _copy_output(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a block may end within a letter
    while block := process.stdout.read1():  # type: ignore[attr-defined]
        sys.stdout.write(decoder.decode(block))


def _loopback() -> dict[str, str]:
    """Names gloo's interface, which it would else look up by a host name that may not resolve."""
    names = {"linux": "lo", "darwin": "lo0"}
    return {"GLOO_SOCKET_IFNAME": names[sys.platform]} if sys.platform in names else {}
