"""Sources in chosen proportions."""

from __future__ import annotations

import math
from collections import Counter
from fnmatch import fnmatch

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


def mixed(mix: str, seed: int = 3) -> Mix:
    return mix_of(DataConfig(mix=mix).weights, SPANS, BLOCK, seed)


def spans_of(mix: str, component: str) -> list[Span]:
    """The spans of a component of `mix`; the name of the rest is empty."""
    names = DataConfig(mix=mix).weights
    if component:
        return [s for s in SPANS if fnmatch(s.source, component)]
    return [s for s in SPANS if not any(fnmatch(s.source, name) for name in names)]


def drawn(mix: str, starts: np.ndarray) -> Counter[str]:
    """How many of the windows are of each component of `mix`."""
    found: Counter[str] = Counter()
    for start in starts.tolist():
        for name in [*DataConfig(mix=mix).weights, ""]:
            found[name] += any(s.start <= start < s.end for s in spans_of(mix, name))
    return +found


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("kitab.txt: 4", {"kitab.txt": 80, "": 144}),
        ("kitab.txt:4,turk*:0", {"kitab.txt": 80, "": 100}),
        ("viki.txt: 0.5", {"viki.txt": 50, "": 64}),
        ("*: 2", {"*": 328}),
        ("turk2.txt: 0, turk1.txt: 0, kitab.txt: 25%", {"kitab.txt": 33, "": 100}),
        ("kitab.txt: 50%, viki.txt: 50%, turk*: 0", {"kitab.txt": 60, "viki.txt": 60}),
    ],
)
def test_a_pass_has_what_is_asked_for(mix: str, expected: dict[str, int]) -> None:
    found = mixed(mix)
    assert found.num_windows == sum(expected.values())
    for number in range(3):
        first = number * found.num_windows
        positions = range(first, first + found.num_windows)
        assert drawn(mix, found.starts(positions)) == expected


def test_no_source_is_too_short_to_be_read() -> None:
    """So are poems with a file each; their tokens make windows together."""
    lines = [Span(f"{i:03}.txt", "train", 4 * i, 4 * i + 4) for i in range(50)]
    long = Span("kitab.txt", "train", 200, 400)
    others = [Span(f"{i:03}.txt", "train", 4 * i, 4 * i + 4) for i in range(100, 150)]
    spans = [*lines, long, *others]
    for mix in ("kitab.txt: 2", "kitab.txt: 2, 0*: 1", "kitab.txt: 2, ???.txt: 50%"):
        found = mix_of(DataConfig(mix=mix).weights, spans, BLOCK, 3)
        starts = found.starts(range(20 * found.num_windows)).tolist()
        read = {
            first + i for s in starts for first, n in found.rings.pieces(s, 11) for i in range(n)
        }
        assert read == set(range(600))


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
    most = max(each.draws / len(each.starts) for each in found.components)
    assert found.num_windows / found.windows_per_reading == pytest.approx(most)


def test_a_share_is_a_share_of_all() -> None:
    found = mixed("turk*: 10%, kitab.txt: 4")
    counts = drawn("turk*: 10%, kitab.txt: 4", found.starts(range(found.num_windows)))
    assert counts == {"kitab.txt": 80, "": 100, "turk*": 20}
    assert counts["turk*"] / counts.total() == pytest.approx(0.1)


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
        spans = spans_of(mix, component.name)
        uses = Counter(token for start in starts for token in tokens_of(found, start, spans)[1:])
        assert uses.total() == own_passes * size * BLOCK
        assert max(uses.values()) <= own_passes
        # the windows at the end of a ring may begin where those of another pass do
        different = min(own_passes, BLOCK) * (size - 1)
        assert len(set(starts)) >= different


def tokens_of(found: Mix, start: int, spans: list[Span]) -> list[int]:
    """The tokens of the window that begins at `start`, all of them from `spans`."""
    pieces = found.rings.pieces(start, BLOCK + 1)
    numbers = [first + i for first, length in pieces for i in range(length)]
    assert all(any(s.start <= n < s.end for s in spans) for n in numbers)
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
    assert len(drawn("kitab.txt: 4, turk*: 10%", np.array(one_pass[:40]))) == 3


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("s\u0327eir.txt", "\u015feir.txt"),  # as macOS and a terminal write ş
        ("\u015feir.txt", "s\u0327e*"),
        ("kitab[1].txt", "kitab[1].txt"),
        ("Elm, texnika", "Elm, texnika"),
        ("Səhər: xəbərlər", "Səhər: xəbərlər"),
        ("Şeir ", "Şeir"),
    ],
)
def test_every_source_has_a_name(source: str, name: str) -> None:
    spans = [Span(source, "train", 0, 105), Span("viki.txt", "train", 105, 210)]
    found = mix_of(DataConfig(mix=f"{name}: 3, viki*: 2").weights, spans, BLOCK, 1)
    assert [each.draws for each in found.components] == [30, 20]


def test_a_run_begun_with_windows_within_each_source_keeps_them() -> None:
    weights = DataConfig(mix="kitab.txt: 4").weights
    found = mix_of(weights, SPANS, BLOCK, 3, joined=False)
    for start in found.starts(range(4 * found.num_windows)).tolist():
        (span,) = [s for s in SPANS if s.start <= start < s.end]
        tokens_of(found, start, [span])


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


@pytest.mark.parametrize("sources", [["text"], ["kitab.txt", "viki.txt"]])
def test_where_all_text_is_one_source_the_error_says_why(sources: list[str]) -> None:
    spans = [Span(name, "train", 100 * i, 100 * i + 100) for i, name in enumerate(sources)]
    with pytest.raises(ValueError, match=r"no source is called k1\.txt") as refusal:
        mix_of(DataConfig(mix="k1.txt: 4").weights, spans, BLOCK, 1)
    assert ("at most 256 of them; else name" in str(refusal.value)) == (len(sources) == 1)
