"""How the processes of a run are started, find each other, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from training_runs import Uninterrupted, add_callback, assert_close, curve

from azllm_lightning.cli.entrance import Resumable
from azllm_lightning.config.compose import compose
from azllm_lightning.config.run import RunConfig
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.session import supervisor
from azllm_lightning.session.resolve import Located, Source, check_launcher, num_processes
from azllm_lightning.session.worker import read_settings
from azllm_lightning.training import processes
from azllm_lightning.training.processes import Processes, first, has_lost_peer, launched, together
from azllm_lightning.training.stopping import Stopped

SLURM = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7654321"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """environment(**values): the variables of a launcher, and of no other, until the test ends."""
    for name in os.environ:
        if name.startswith(("SLURM", "TORCHELASTIC", "MASTER_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ENVIRONMENT"):
        monkeypatch.setenv(name, "")  # so that what `launched` sets is undone
        monkeypatch.delenv(name)

    def update(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return update


def test_torchrun_and_srun_give_each_process_its_place(environment: Callable[..., None]) -> None:
    assert launched() is None
    environment(**SLURM, SLURM_NODELIST="gpu[07-09]")
    assert launched() == Processes(rank=3, local_rank=1, size=4)
    assert os.environ["MASTER_ADDR"] == "gpu07"
    assert 15000 <= int(os.environ["MASTER_PORT"]) < 25000
    environment(RANK="1", LOCAL_RANK="0", WORLD_SIZE="2")  # torchrun within a job of SLURM
    assert launched() == Processes(rank=1, local_rank=0, size=2)


@pytest.mark.parametrize(
    "values",
    [
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "interactive"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["one task", "sbatch", "salloc", "srun of one task in a larger job"],
)
def test_a_job_of_slurm_without_srun_is_one_process(
    values: dict[str, str], environment: Callable[..., None]
) -> None:
    environment(**{**SLURM, **values})
    assert launched() is None


def test_several_machines_need_a_launcher(tiny: list[str]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=0 must be at least 1"):
        compose([*tiny, "trainer.num_nodes=0"])
    with pytest.raises(ValueError, match=r"num_nodes=2: start .* torchrun --nnodes=2 "):
        num_processes(compose([*tiny, "trainer.num_nodes=2"]))
    assert num_processes(compose([*tiny, "trainer.devices=3"])) == 3


def test_what_was_typed_must_agree_with_the_launcher(tiny: list[str]) -> None:
    place = Processes(rank=1, local_rank=1, size=4, num_nodes=2)
    check_launcher(compose(tiny), place)
    check_launcher(compose([*tiny, "trainer.devices=2", "trainer.num_nodes=2"]), place)
    check_launcher(compose([*tiny, "trainer.devices=auto"]), place)
    check_launcher(compose([*tiny, "trainer.devices='0,3'"]), place)
    for typed in ("trainer.devices=4", "trainer.num_nodes=4"):
        with pytest.raises(ValueError, match=f"{typed}, but .* 4 processes on 2 machines"):
            check_launcher(compose([*tiny, typed]), place)


def test_a_notebook_strategy_is_refused_with_the_way_out(tiny: list[str]) -> None:
    with pytest.raises(ValueError, match="strategy=ddp_notebook must be one of auto, ddp"):
        compose([*tiny, "trainer.strategy=ddp_notebook"])


def test_a_dead_peer_is_told_from_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    assert not has_lost_peer(gone), "there are no peers"
    monkeypatch.setattr(processes, "_control", object())
    assert has_lost_peer(gone)
    assert has_lost_peer(torch.distributed.DistNetworkError("recvValue failed"))
    assert not has_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not has_lost_peer(ValueError("Connection closed by peer"))


def test_a_single_process_decides_alone() -> None:
    assert first(lambda: 1) == together(lambda: 1) == 1
    with pytest.raises(ValueError, match="mine"):
        together(lambda: (_ for _ in ()).throw(ValueError("mine")).__next__())


def test_the_settings_reach_the_processes(tiny: list[str]) -> None:
    typed = compose([*tiny, "trainer.devices=2", *add_callback("Recorder", folder="a b")])
    assert read_settings(supervisor.settings_line(typed, None)) == (typed, None)
    located = Located(typed, Source(Path("step_00000004.ckpt"), 4, "abc", "32-true"))
    assert read_settings(supervisor.settings_line(typed, located)) == (typed, located)


# The supervisor, with processes that do no training


@pytest.fixture
def supervised(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """supervised(code): two processes under the supervisor, which run `code` instead of a training.

    `rank` and `attempt` are theirs.
    """
    monkeypatch.setattr(supervisor, "WORKER", "stand_in")
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(supervisor, "SAVING_SECONDS", 1.5)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def run(code: str) -> Path:
        head = (
            "import json, os, signal, sys, time\n"
            "rank = int(os.environ['RANK'])\n"
            "attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
            "open(f'pid{rank}', 'w').write(str(os.getpid()))\n"
        )
        (tmp_path / "stand_in.py").write_text(head + code, encoding="utf-8")
        config = compose([*tiny, "trainer.devices=2"])
        return supervisor.supervise(config, Located(config, None), 2)

    return run


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("dying", [0, 1])
def test_no_process_outlives_a_killed_one(
    dying: int, supervised: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        supervised(f"os.kill(os.getpid(), signal.SIGKILL) if rank == {dying} else time.sleep(60)")
    message = f"process {dying} of 2 was ended by SIGKILL, and the others with it"
    assert capfd.readouterr().err == message + "\n"
    for rank in range(2):
        assert not is_running(int(Path(f"pid{rank}").read_text()))


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("is_notebook", [False, True])
def test_each_process_gets_each_signal_once(
    is_notebook: bool, supervised: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end that a user chose is that of the command; a notebook has other cells."""
    if is_notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    code = (
        "count = [0]\n"
        "signal.signal(signal.SIGINT, lambda *_: count.__setitem__(0, count[0] + 1))\n"
        "open(f'ready{rank}', 'w').close()\n"
        "end = time.time() + 60\n"
        "while not count[0] and time.time() < end: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "open(f'count{rank}', 'w').write(str(count[0]))\n"
        "open(f'notebook{rank}', 'w').write(os.environ.get('AZLLM_OF_NOTEBOOK', ''))\n"
        "sys.exit(130)\n"
    )

    def interrupt() -> None:
        while not (Path("ready0").exists() and Path("ready1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    end, text = (KeyboardInterrupt, None) if is_notebook else (SystemExit, "130")
    with pytest.raises(end, match=text):
        supervised(code)
    assert Path("notebook1").read_text() == ("1" if is_notebook else "")
    assert [Path(f"count{rank}").read_text() for rank in range(2)] == ["1", "1"]


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_processes_that_do_not_listen_yet_is_a_stop(
    number: int, supervised: Callable[[str], Path]
) -> None:
    def interrupt() -> None:
        while not (Path("ready0").exists() and Path("ready1").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped):
        supervised(
            "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
            "open(f'ready{rank}', 'w').close()\n"
            "time.sleep(60)\n"
        )


@pytest.mark.slow
def test_nobody_waits_for_those_that_a_full_memory_left(
    supervised: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a process that is gone, and not for the end of a save."""
    monkeypatch.setattr(supervisor, "SAVING_SECONDS", 60.0)
    code = (
        "if attempt: sys.exit(3)\n"
        "if rank == 0:\n"
        "    from torch.distributed import TCPStore\n"
        "    store = TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), is_master=False)\n"
        "    store.set('azllm/outcome/0', json.dumps({'kind': 'memory', 'text': ''}))\n"
        "    sys.exit(75)\n"
        "time.sleep(30)\n"
        "open('waited', 'w').close()\n"
    )
    with pytest.raises(SystemExit, match="1"):
        supervised(code)
    assert not Path("waited").exists()


@pytest.mark.slow
def test_what_the_processes_report_is_raised_here(
    supervised: Callable[[str], Path], tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Out of memory: all start again, and read the notes of those before. A stop: it is resumable.
    A connection lost by all: the reason is shown, and it is a failure, whatever was saved.

    One of the two writes for both, for importing torch takes a while.
    """
    code = (
        "while rank and not os.path.exists(f'written{attempt}'): time.sleep(0.01)\n"
        "if rank: sys.exit(2)\n"
        "from torch.distributed import TCPStore\n"
        "store = TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), is_master=False)\n"
        "def end(*outcomes):\n"
        "    for number, (kind, text) in enumerate(outcomes):\n"
        "        value = json.dumps({'kind': kind, 'text': text})\n"
        "        store.set(f'azllm/outcome/{number}', value)\n"
        "    open(f'written{attempt}', 'w').close()\n"
        "    sys.exit(2)\n"
        "if attempt == 0:\n"
        f"    store.set('azllm/run', {str(tiny_run)!r})\n"
        "    end(('lost', ''), ('memory', ''))\n"
        "assert store.get('azllm/run')\n"
        "end(('stopped', 'see you'), ('lost', ''))\n"
    )
    with pytest.raises(Resumable, match="run_name=tiny ckpt_path=last") as stop:
        supervised(code)
    assert stop.value.message == "see you"
    Path("written0").unlink()
    with pytest.raises(ValueError, match="no such file"):
        supervised(
            code.replace("('lost', ''), ('memory', '')", "('lost', ''), ('error', 'no such file')")
        )
    Path("written0").unlink()
    with pytest.raises(SystemExit, match="1"):
        supervised(
            code.replace("('lost', ''), ('memory', '')", "('lost', ''), ('lost', 'NCCL error')")
        )
    first_line, resume = capfd.readouterr().err.splitlines()
    assert first_line == "NCCL error"
    assert resume.startswith("resume: ")


@pytest.mark.thorough
@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("has_saved", [False, True])
def test_a_stop_while_the_memory_is_full_is_a_stop(
    has_saved: bool, supervised: Callable[[str], Path], tiny_run: Path
) -> None:
    """It would be lost with the processes that got it, as all start again."""
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if attempt: open('again', 'w').close()\n"
        "while rank and not os.path.exists('written'): time.sleep(0.01)\n"
        "if rank: sys.exit(75)\n"
        "from torch.distributed import TCPStore\n"
        "store = TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), is_master=False)\n"
        f"if {has_saved}: store.set('azllm/run', {str(tiny_run)!r})\n"
        "store.set('azllm/micro_batch_size', '2')\n"
        "for number, kind in enumerate(('memory', 'lost')):\n"
        "    store.set(f'azllm/outcome/{number}', json.dumps({'kind': kind, 'text': ''}))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "open('written', 'w').close()\n"
        "sys.exit(75)\n"
    )
    with pytest.raises(Resumable if has_saved else Stopped) as stop:
        supervised(code)
    assert not Path("again").exists()
    if isinstance(stop.value, Resumable):
        resume = "run_name=tiny ckpt_path=last trainer.micro_batch_size=2"
        assert stop.value.command.endswith(resume)


# Trainings


def launch(
    command: list[str], arguments: list[str], folder: Path, **environment: str
) -> subprocess.Popen[str]:
    """Start a training by `command` in `folder`; its output goes to a file."""
    return subprocess.Popen(
        [sys.executable, *command, "-m", "azllm_lightning.train", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            **environment,
        },
        stdout=(folder / "output").open("a", encoding="utf-8"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(*runs: subprocess.Popen[str], seconds: float = 900) -> list[int]:
    """The exit codes of the process groups of `runs`, of which nothing is left."""
    try:
        return [run.wait(seconds) for run in runs]
    finally:
        for run in runs:
            try:
                os.killpg(run.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            run.wait()


def windows_of(folder: Path, ranks: int) -> dict[int, list[list[int]]]:
    """What `Recorder` saw in each step: the windows of all processes, in their order."""
    steps: dict[int, list[list[int]]] = {}
    for rank in range(ranks):
        for line in (folder / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines():
            step, windows = json.loads(line)
            steps.setdefault(step, []).extend(windows)
    return steps


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
@pytest.mark.numerics
def test_torchrun_trains_one_run_in_one_folder(
    uninterrupted: Callable[..., Uninterrupted], tiny: list[str], tmp_path: Path
) -> None:
    """And under it, no process of ours starts others."""
    straight = uninterrupted("data.val_windows=9")
    settings = ["data.val_windows=9", "trainer.micro_batch_size=2"]
    settings += add_callback("Recorder", folder=tmp_path)
    run = launch(TORCHRUN, [*tiny, *settings], tmp_path)
    assert ended(run) == [0], (tmp_path / "output").read_text(encoding="utf-8")
    assert [path.name for path in Path("lightning_logs/tiny").iterdir()] == ["version_0"]
    folder = Path("lightning_logs/tiny/version_0")
    assert json.loads((folder / "summary.json").read_text())["steps"] == 8
    assert windows_of(tmp_path, 2) == straight.windows
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight.folder)[tag], curve(folder)[tag])
    lines = (tmp_path / "output").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("run ")] == [f"run       {folder}"]


@pytest.mark.slow
@pytest.mark.numerics
def test_two_processes_outlive_a_full_memory_and_a_broken_step(
    uninterrupted: Callable[..., Uninterrupted], tiny: list[str], tmp_path: Path
) -> None:
    """All start again with the smaller micro-batch, and later roll back together."""
    settings = ["trainer.devices=2", "trainer.micro_batch_size=2", "callbacks.health.patience=1"]
    settings += add_callback("FullMemory", step=5, rank=1, most=1)
    settings += add_callback("SpoiledLoss", step=6, rank=1, once=True)
    settings += add_callback("Recorder", folder=tmp_path)
    run = launch([], [*tiny, *settings], tmp_path)
    output = tmp_path / "output"
    assert ended(run) == [0], output.read_text(encoding="utf-8")
    text = output.read_text(encoding="utf-8")
    assert "continuing with trainer.micro_batch_size=1" in text
    assert "non-finite loss or gradient in step 7: rolling back to" in text
    folder = Path("lightning_logs/tiny/version_0")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("done", 8)
    stored = yaml.safe_load((folder / ".hydra/config.yaml").read_text(encoding="utf-8"))
    assert stored["trainer"]["micro_batch_size"] == 1
    straight = uninterrupted()
    seen = windows_of(tmp_path, 2)
    assert all(sorted(seen[step][:4]) == sorted(straight.windows[step]) for step in range(4))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_killed_process_ends_all_with_the_command_that_resumes(
    tiny: list[str], tmp_path: Path
) -> None:
    settings = ["trainer.devices=2", *add_callback("Interrupt", step=5, kill=True)]
    settings = [
        text.replace("training_runs", "azllm_lightning.callbacks.interrupt") for text in settings
    ]
    run = launch([], [*tiny, *settings], tmp_path)
    assert ended(run) == [75]
    *_, reason, resume = (tmp_path / "output").read_text(encoding="utf-8").splitlines()
    assert reason == "process 0 of 2 was ended by SIGKILL, and the others with it"
    assert resume.startswith(
        "resume: python -m azllm_lightning.train run_name=tiny ckpt_path=last "
    )
    folder = Path("lightning_logs/tiny/version_0")
    assert step_files(folder / "checkpoints")[0][0] == 4


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["own", "srun"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_connection_that_fails_everywhere_is_a_failure_with_its_reason(
    step: int, launcher: str, tiny: list[str], tmp_path: Path, port: int
) -> None:
    """Not a stop that a cluster may resume for ever."""
    settings = [*tiny, "trainer.micro_batch_size=2", *add_callback("BrokenConnection", step=step)]
    runs = start_all(launcher, 2, settings, tmp_path, port)
    codes = ended(*runs)
    text = (tmp_path / "output").read_text(encoding="utf-8")
    assert set(codes) == {1}, text
    assert text.count("\nNCCL error: no space in /dev/shm\n") == 1
    assert "lost the connection to each other" in text
    resume = "resume: python -m azllm_lightning.train run_name=tiny ckpt_path=last"
    assert (resume in text) == (step == 5)


# The matrix


def torchrun_on_two_machines(port: int) -> list[str]:
    return [
        *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", f"--rdzv-id={port}"),
    ]


@pytest.fixture
def port() -> Iterator[int]:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number = found.getsockname()[1]
    return number


def start_all(
    launcher: str, count: int, arguments: list[str], folder: Path, port: int
) -> list[subprocess.Popen[str]]:
    """The processes of a run by each kind of launcher."""
    if launcher == "own":
        return [launch([], [*arguments, f"trainer.devices={count}"], folder)]
    if launcher == "torchrun":
        command = [*TORCHRUN[:-1], f"--nproc_per_node={count}"]
        return [launch(command, arguments, folder)]
    if launcher == "two machines":
        command = torchrun_on_two_machines(port)
        command[3] = f"--nproc_per_node={count // 2}"
        caches = [{"AZLLM_DATA_DIR": str(folder / f"disk{node}")} for node in range(2)]
        return [launch(command, arguments, folder, **cache) for cache in caches]
    places = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(count)]
    common = {"SLURM_NTASKS": str(count), "MASTER_PORT": str(port), "SLURM_NODELIST": "127.0.0.1"}
    return [launch([], arguments, folder, **place, **common) for place in places]


LAUNCHES = [
    ("own", 1),
    ("own", 2),
    ("own", 4),
    ("torchrun", 2),
    ("torchrun", 4),
    ("two machines", 2),
    ("two machines", 4),
    ("srun", 2),
    ("srun", 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "count"), LAUNCHES)
def test_every_launcher_trains_the_same_run(
    launcher: str,
    count: int,
    uninterrupted: Callable[..., Uninterrupted],
    tiny: list[str],
    tmp_path: Path,
    port: int,
) -> None:
    """The same windows in each step, losses within 1e-5, one folder, and a resume in one process.

    Two machines have a disk each for the prepared data.
    """
    straight = uninterrupted("data.val_windows=9")
    settings = [*tiny, "data.val_windows=9", "trainer.micro_batch_size=1"]
    settings += add_callback("Recorder", folder=tmp_path)
    shortened = [*settings, "trainer.max_steps=5", "schedule.total_steps=8"]
    runs = start_all(launcher, count, shortened, tmp_path, port)
    output = tmp_path / "output"
    assert set(ended(*runs)) == {0}, output.read_text(encoding="utf-8")
    resume = ["run_name=tiny", "ckpt_path=last", "trainer.max_steps=8", "trainer.devices=1"]
    run = launch([], [*resume, *add_callback("Recorder", folder=tmp_path)], tmp_path)
    assert ended(run) == [0], output.read_text(encoding="utf-8")
    folder = Path("lightning_logs/tiny/version_0")
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    seen = windows_of(tmp_path, count)
    assert {step: sorted(seen[step]) for step in seen} == {
        step: sorted(windows) for step, windows in straight.windows.items()
    }
    for tag in ("train_loss", "val_loss", "val_bpb", "grad_norm", "tokens_seen"):
        ours, theirs = curve(folder)[tag], curve(straight.folder)[tag]
        # The shortened run was also validated at its own end.
        assert_close({step: ours[step] for step in theirs}, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_random_kills_of_random_processes(
    number: int,
    uninterrupted: Callable[..., Uninterrupted],
    tiny: list[str],
    tmp_path: Path,
    port: int,
) -> None:
    """No process stays, nothing hangs, and the resumed run ends as one that was never killed."""
    import random

    chance = random.Random(number)
    launcher = ("own", "torchrun", "two machines", "srun")[number % 4]
    straight = uninterrupted("trainer.checkpoint_every_steps=2")
    settings = [*tiny, "trainer.checkpoint_every_steps=2", "trainer.micro_batch_size=2"]
    victim = chance.randrange(2)
    slowed = add_callback("Killed", rank=victim, step=chance.randrange(3, 6), after=chance.random())
    runs = start_all(launcher, 2, [*settings, *slowed], tmp_path, port)
    codes = ended(*runs)
    text = (tmp_path / "output").read_text(encoding="utf-8")
    assert any(codes), text
    assert "resume: python -m azllm_lightning.train run_name=tiny ckpt_path=last" in text
    pids = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2
    end = time.monotonic() + 120
    while any(map(is_running, pids)):
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.1)
    again = launch([], ["run_name=tiny", "ckpt_path=last", "trainer.devices=2"], tmp_path)
    assert ended(again) == [0], (tmp_path / "output").read_text(encoding="utf-8")
    for tag in ("train_loss", "val_loss"):
        assert_close(curve(straight.folder)[tag], curve(Path("lightning_logs/tiny/version_0"))[tag])


def test_the_settings_of_kaggle_use_every_gpu() -> None:
    config: RunConfig = compose(["experiment=kaggle"])
    assert config.trainer.devices == "auto"
    assert config.trainer.global_batch_size % 2 == 0
