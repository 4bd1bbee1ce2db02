from __future__ import annotations

from pathlib import Path

from runs import raw_points
from torch.utils.tensorboard import SummaryWriter

from azllm_lightning.training.curve import EVENTS, carry_curve, read_scalars


def write(folder: Path, steps: range, offset: float = 0.0) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("loss", step + offset, step)


def test_what_a_kill_left_behind_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(7))
    carry_curve(tmp_path, tmp_path, 4)
    assert read_scalars(tmp_path) == {"loss": {step: float(step) for step in range(5)}}


def test_carried_twice_and_logged_on_the_steps_stay_in_order(tmp_path: Path) -> None:
    """Also within one second, when the names of the files do not tell their age."""
    for start in (0, 3, 6):
        write(tmp_path, range(start, start + 5))
        carry_curve(tmp_path, tmp_path, start + 2)
    write(tmp_path, range(9, 12))
    assert raw_points(tmp_path) == [("loss", step) for step in range(12)]
    assert len(list(tmp_path.glob(EVENTS))) == 2


def test_a_kill_between_the_new_file_and_the_removal_of_the_old_doubles_nothing(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    write(tmp_path, range(3, 6))
    newest = sorted(tmp_path.glob(EVENTS))[-1]
    content = newest.read_bytes()
    carry_curve(tmp_path, tmp_path, 5)
    newest.write_bytes(content)  # as if the removal had not happened
    carry_curve(tmp_path, tmp_path, 5)
    assert raw_points(tmp_path) == [("loss", step) for step in range(6)]


def test_a_record_that_a_kill_cut_off_ends_its_file(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    (path,) = tmp_path.glob(EVENTS)
    path.write_bytes(path.read_bytes()[:-7])
    carry_curve(tmp_path, tmp_path, 10)
    write(tmp_path, range(4, 6))
    assert raw_points(tmp_path) == [("loss", step) for step in range(6)]


def test_a_fork_takes_the_curve_along_and_leaves_the_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    write(source, range(5))
    carry_curve(source, target, 2)
    assert list(read_scalars(target)["loss"]) == [0, 1, 2]
    assert list(read_scalars(source)["loss"]) == [0, 1, 2, 3, 4]
