"""Sources in chosen proportions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.mix import Mix, mix_of
from azllm_lightning.data.shards import Span

BLOCK = 10
SPANS = [
    Span("kitab.txt", "train", 0, 205),  # 20 windows
    Span("viki.txt", "train", 205, 1206),  # 100
    Span("turk1.txt", "train", 1206, 1607),  # 40
    Span("turk2.txt", "train", 1607, 1650),  # 4
]
COUNTS = {"kitab.txt": 20, "viki.txt": 100, "turk1.txt": 40, "turk2.txt": 4}


def mixed(mix: str, seed: int = 3) -> Mix:
    return mix_of(DataConfig(mix=mix).weights, SPANS, BLOCK, seed)


def sources(starts: np.ndarray) -> Counter[str]:
    found: Counter[str] = Counter()
    for start in starts.tolist():
        (span,) = [s for s in SPANS if s.start <= start < s.end]
        found[span.source] += 1
    return found


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("kitab.txt: 4", {**COUNTS, "kitab.txt": 80}),
        ("kitab.txt:4,turk*:0", {"kitab.txt": 80, "viki.txt": 100}),
        ("viki.txt: 0.5", {**COUNTS, "viki.txt": 50}),
        ("*: 2", {name: 2 * count for name, count in COUNTS.items()}),
        ("turk2.txt: 0, turk1.txt: 0, kitab.txt: 25%", {"viki.txt": 100, "kitab.txt": 33}),
        ("kitab.txt: 50%, viki.txt: 50%, turk*: 0", {"kitab.txt": 60, "viki.txt": 60}),
    ],
)
def test_a_pass_has_what_is_asked_for(mix: str, expected: dict[str, int]) -> None:
    found = mixed(mix)
    assert found.num_windows == sum(expected.values())
    for number in range(3):
        first = number * found.num_windows
        positions = range(first, first + found.num_windows)
        assert sources(found.starts(positions)) == expected


@pytest.mark.parametrize(
    ("mix", "unique"),
    [
        ("kitab.txt: 4", 164),
        ("kitab.txt:4,turk*:0", 120),
        ("viki.txt: 0.5", 164),  # the other half is read in the next pass
        ("kitab.txt: 50%, viki.txt: 50%, turk*: 0", 120),
    ],
)
def test_windows_are_counted_once_and_readings_by_what_is_repeated_most(
    mix: str, unique: int
) -> None:
    found = mixed(mix)
    assert found.unique_windows == unique
    starts = found.starts(range(5 * found.num_windows), recut=False)
    assert len(set(starts.tolist())) == unique
    drawn = sources(found.starts(range(found.num_windows)))
    most = max(count / COUNTS[name] for name, count in drawn.items())
    assert found.num_windows / found.windows_per_reading == pytest.approx(most)


def test_a_share_is_a_share_of_all() -> None:
    found = mixed("turk*: 10%, kitab.txt: 4")
    counts = sources(found.starts(range(found.num_windows)))
    turkish = counts["turk1.txt"] + counts["turk2.txt"]
    assert counts["kitab.txt"] == 80
    assert counts["viki.txt"] == 100
    assert turkish == 20
    assert turkish / counts.total() == pytest.approx(0.1)


@pytest.mark.parametrize("mix", ["kitab.txt: 3.7", "turk*: 30%", "viki.txt: 0.3"])
def test_windows_of_a_source_are_used_equally_often(mix: str) -> None:
    found = mixed(mix)
    for passes in (1, 2, 7):
        starts = found.starts(range(passes * found.num_windows), recut=False).tolist()
        uses = Counter(starts)
        for component in found.components:
            often = [uses[start] for start in component.starts.tolist()]
            assert max(often) - min(often) <= 1


@pytest.mark.parametrize("mix", ["kitab.txt: 3.7", "turk*: 30%", "viki.txt: 0.3"])
def test_each_pass_over_a_component_cuts_its_sources_elsewhere(mix: str) -> None:
    """Over so many passes of the mix that those of the component are complete as well."""
    found = mixed(mix)
    for component in found.components:
        size = len(component.starts)
        passes = size // math.gcd(size, component.draws)
        own_passes = passes * component.draws // size
        positions = np.arange(passes * found.num_windows)
        here = np.isin(found.starts(positions, recut=False), component.starts)
        starts = found.starts(positions)[here].tolist()
        uses = Counter(token for start in starts for token in tokens_of(found, start)[1:])
        assert uses.total() == own_passes * size * BLOCK
        assert max(uses.values()) <= own_passes
        # the windows at the end of a span may begin where those of another pass do
        different = min(own_passes, BLOCK) * (size - len(SPANS))
        assert len(set(starts)) >= different


def tokens_of(found: Mix, start: int) -> list[int]:
    """The tokens of the window that begins at `start`, all of them from one source."""
    pieces = found.rings.pieces(start, BLOCK + 1)
    numbers = [first + i for first, length in pieces for i in range(length)]
    assert len({next(s for s in SPANS if s.start <= n < s.end) for n in numbers}) == 1
    return numbers


def test_the_order_depends_on_the_seed_and_the_position_alone() -> None:
    found = mixed("kitab.txt: 4, turk*: 10%")
    forwards = found.starts(range(1000))
    backwards = mixed("kitab.txt: 4, turk*: 10%").starts(range(999, -1, -1))
    assert forwards.tolist() == backwards.tolist()[::-1]
    assert (
        forwards.tolist() != mixed("kitab.txt: 4, turk*: 10%", seed=4).starts(range(1000)).tolist()
    )
    one_pass = forwards[: found.num_windows].tolist()
    assert one_pass != forwards[found.num_windows : 2 * found.num_windows].tolist()
    # interleaved, not one source after the other
    assert len(sources(np.array(one_pass[:40]))) == 4


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("kitab: 4", "no source is called kitab; there are kitab.txt, viki.txt"),
        ("kitab*: 4, *.txt: 2", r"kitab\.txt matches kitab\* and \*\.txt"),
        ("kitab.txt: 100%", "add up to 100 %"),
        ("kitab.txt: 60%, viki.txt: 50%", "add up to 110 %"),
        ("kitab.txt: 60%, viki.txt: 30%, turk*: 0", "add up to 90 %"),
        ("*: 0", "add up to 0 %"),
    ],
)
def test_impossible_mixes_are_refused(mix: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"data.mix: .*{message}"):
        mixed(mix)


@pytest.mark.parametrize(
    "mix", ["kitab.txt", "kitab.txt: x", ": 4", "a: -1", "a: nan", "a: inf", "a: 1, a: 2"]
)
def test_unreadable_mixes_are_refused(mix: str) -> None:
    with pytest.raises(ValueError, match=r"data\.mix=.*write it as SOURCE: TIMES"):
        DataConfig(mix=mix)


def test_a_source_shorter_than_a_window_is_refused() -> None:
    spans = [*SPANS, Span("az.txt", "train", 1650, 1655)]
    with pytest.raises(ValueError, match=r"az\.txt is shorter than one window"):
        mix_of(DataConfig(mix="az.txt: 9").weights, spans, BLOCK, 0)
    assert mix_of(DataConfig(mix="az.txt: 0").weights, spans, BLOCK, 0).num_windows == 164
