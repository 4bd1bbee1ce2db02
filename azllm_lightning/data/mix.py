"""Training on several sources in chosen proportions: which window comes k-th."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b

import numpy as np

from azllm_lightning.cli.messages import and_then, tr
from azllm_lightning.config.data import Weight
from azllm_lightning.data.cuts import Rings, cut_offset
from azllm_lightning.data.files import MAX_SOURCES
from azllm_lightning.data.sampler import Indices, window_order
from azllm_lightning.data.shards import Span


@dataclass(frozen=True)
class Component:
    """Text that is mixed in as one: in its own first pass, windows start at the tokens `starts`.

    A pass over the mix takes `draws` of them, in the order of `seed`; if that is more than there
    are, some or all are taken several times, and if it is less, the next pass goes on.
    """

    name: str
    starts: Indices
    draws: int
    seed: int


class Mix:
    """The training windows of several components: the k-th is a pure function of the seed and k.

    Position k is in pass k // num_windows. Within a pass, the components are interleaved by a
    permutation, and each goes through its own windows in an order of its own (`window_order`), so
    that every window is used equally often, give or take one.
    There are `unique_windows` different ones. After `windows_per_reading`, those of the component
    that is repeated most have been read once on average. `rings` are those of the components.
    """

    def __init__(
        self, components: Sequence[Component], seed: int, block_size: int, rings: Rings
    ) -> None:
        self.components = components
        self.seed = seed
        self.block_size = block_size
        self.rings = rings
        self._ends = np.cumsum([component.draws for component in components])
        self.num_windows = int(self._ends[-1])
        self.unique_windows = sum(len(component.starts) for component in components)
        self.windows_per_reading = self.num_windows * min(
            len(component.starts) / component.draws for component in components
        )

    def starts(self, positions: Sequence[int] | Indices, recut: bool = True) -> Indices:
        """The first token of the window at each of `positions`.

        With `recut`, each of a component's own passes over its spans cuts other windows.
        """
        positions = np.asarray(positions, dtype=np.int64)
        passes = positions // self.num_windows
        places = window_order(positions, self.num_windows, self.seed)
        chosen = np.searchsorted(self._ends, places, side="right")
        found = np.empty_like(positions)
        for number, component in enumerate(self.components):
            here = chosen == number
            first = self._ends[number] - component.draws
            own = passes[here] * component.draws + places[here] - first
            size = len(component.starts)
            starts = component.starts[window_order(own, size, component.seed)]
            if recut:
                starts = self.rings.shifted(starts, cut_offset(own // size, self.block_size))
            found[here] = starts
        return found


def mix_of(
    weights: Mapping[str, Weight],
    spans: Sequence[Span],
    block_size: int,
    seed: int,
    joined: bool = True,
) -> Mix:
    """The mix that `weights` (data.mix) ask for, of the sources in `spans` of the training split.

    Sources that no name matches are in it once. Those of a component are `joined`: windows go from
    one to the next, so that none is too short for one. Raises ValueError if a name matches no
    source, if two match the same one, or if the shares leave no room for the rest.
    """
    component_of = _component_of(weights, dict.fromkeys(span.source for span in spans))
    spans_of = {
        name: [(span.start, span.end) for span in spans if component_of[span.source] == name]
        for name in [*weights, ""]
    }
    rings = [
        (name, ring)
        for name, ranges in spans_of.items()
        for ring in ([ranges] if joined else [[each] for each in ranges])
        if ring
    ]
    cut = Rings([ring for _, ring in rings])
    starts = dict.fromkeys(spans_of, np.empty(0, np.int64))
    for number, (name, _) in enumerate(rings):
        starts[name] = np.concatenate([starts[name], cut.windows(number, block_size)])
    draws = _draws({name: len(found) for name, found in starts.items()}, {**weights, "": Weight(1)})
    components = [
        Component(name, starts[name], draws[name], _derived_seed(seed, name))
        for name in starts
        if draws[name]
    ]
    return Mix(components, seed, block_size, cut)


def _component_of(weights: Mapping[str, Weight], sources: Collection[str]) -> dict[str, str]:
    """The one of `weights` that matches each source; "" for what none matches."""
    component_of = dict.fromkeys(sources, "")
    for name in weights:
        matching = [source for source in sources if _matches(source, name)]
        if not matching:
            shown = ", ".join(list(sources)[:20])
            message = tr(
                "data.mix: no source is called {name}; there are {sources}",
                name=name,
                sources=shown,
            )
            if len(sources) == 1:
                advice = tr(
                    "Files are sources if there are at most {maximum} of them; else name a field "
                    "of the rows with data.source_field",
                    maximum=MAX_SOURCES,
                )
                message = and_then(message, advice)
            raise ValueError(message)
        for source in matching:
            if component_of[source]:
                raise ValueError(
                    tr(
                        "data.mix: {source} matches {first} and {second}; one weight each",
                        source=source,
                        first=component_of[source],
                        second=name,
                    )
                )
            component_of[source] = name
    return component_of


def _matches(source: str, name: str) -> bool:
    """Whether `name`, which may be a pattern, means `source`: macOS writes letters with accents as
    two characters, a terminal as one, and a file may be called kitab[1].txt.
    """
    source, name = (unicodedata.normalize("NFC", text).strip() for text in (source, name))
    return source == name or fnmatchcase(source, name)


def _draws(windows: Mapping[str, int], weights: Mapping[str, Weight]) -> dict[str, int]:
    """How many windows of each component a pass takes."""
    for name, weight in weights.items():
        if name and weight.value and not windows[name]:
            raise ValueError(
                tr("data.mix: {name} is shorter than one window of data.block_size", name=name)
            )
    repeated = {n: w.value * windows[n] for n, w in weights.items() if not w.is_share}
    shares = {n: w.value for n, w in weights.items() if w.is_share}
    rest = sum(repeated.values())
    share = sum(shares.values())
    if share > 1 + 1e-9 or (rest and share > 1 - 1e-9) or (not rest and share < 1 - 1e-9):
        raise ValueError(
            tr(
                "data.mix: the shares add up to {share:.4g} %; it must be less than 100 % if there "
                "is other text, and 100 % if there is none",
                share=100 * share,
            )
        )
    total = rest / (1 - share) if rest else sum(windows[name] for name in shares)
    exact = repeated | {name: share * total for name, share in shares.items()}
    return {name: max(1, round(count)) if count else 0 for name, count in exact.items()}


def _derived_seed(seed: int, name: str) -> int:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
