"""Validation by source: exact sums over tokens, for any micro-batch and number of processes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import VALIDATED_SOURCES
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.formats.load import load
from azllm_lightning.runs.checkpoint_files import step_files
from azllm_lightning.runs.curves import read_run, read_scalars
from azllm_lightning.training.metrics import TokenLoss

Train = Callable[..., Path]
WORDS = {
    "qanun": "maddə bənd qanun hüquq",
    "nəsr": "günəş yol qız ev",
    "söz": "salam necəsən yaxşı",
}
TAG = "val_loss_by_source/"


def corpus(path: Path, documents: int = 240, sources: list[str] | None = None) -> Path:
    """Documents of a few words, their sources by turns, each with words of its own."""
    dice = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            source = sources[number % len(sources)] if sources else list(WORDS)[number % 3]
            words = dice.choices(WORDS.get(source, "a b c").split(), k=dice.randint(4, 30))
            record = {"text": f"{number} {' '.join(words)}", "source": source}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def config(path: Path, **settings: Any) -> DataConfig:
    values = {
        "val_fraction": 0.3,
        "vocab_size": 300,
        "block_size": 32,
        "val_windows": None,
    }
    return DataConfig(path=str(path), source_field="source", **{**values, **settings})


def opened(config: DataConfig, rank: int = 0, world_size: int = 1) -> TokenDataModule:
    module = TokenDataModule(config, micro_batch_size=4)
    trainer: Any = SimpleNamespace(global_rank=rank, world_size=world_size)
    module.setup()
    module.trainer = trainer
    return module


def sources_by_hand(module: TokenDataModule) -> np.ndarray:
    """The source of each token of the validation split."""
    spans = [span for span in module.val_windows.shards.manifest.spans if span.split == "val"]
    return np.concatenate([[span.source] * (span.end - span.start) for span in spans])


def train_on(path: Path, train: Train, *overrides: str) -> Path:
    settings = "source_field=source val_windows=null val_fraction=0.3 tales_bytes=1"
    data = [f"data.{pair}" for pair in settings.split()]
    return train("data=text", f"data.path={path}", *data, *overrides)


@pytest.mark.usefixtures("tiny")
def test_each_source_has_its_mean_over_its_tokens(train_short: Train, tmp_path: Path) -> None:
    folder = train_on(corpus(tmp_path / "a.jsonl"), train_short)
    scalars = read_scalars(folder)
    assert {tag for tag in scalars if tag.startswith(TAG)} == {f"{TAG}{name}" for name in WORDS}
    module = opened(config(tmp_path / "a.jsonl", val_windows=None))
    model, _ = load(step_files(folder / "checkpoints")[0][1])
    sums = dict.fromkeys(WORDS, 0.0)
    tokens = dict.fromkeys(WORDS, 0)
    source = sources_by_hand(module)
    mixed = 0
    for window in module.chosen_val_windows():
        labels = module.val_windows[window]
        with torch.no_grad():
            logits = model(labels[None, :-1])[0].double()
        nll = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="none")
        of_label = source[32 * window + 1 : 32 * window + 33]
        mixed += len(set(of_label)) > 1
        for name, value in zip(of_label, nll.tolist(), strict=True):
            sums[name] += value
            tokens[name] += 1
    assert mixed, "windows of several sources are what a mean over windows would get wrong"
    for name in WORDS:
        assert list(scalars[f"{TAG}{name}"]) == [0, 4, 8]
        assert scalars[f"{TAG}{name}"][8] == pytest.approx(sums[name] / tokens[name], rel=1e-5), (
            name
        )
    assert scalars["val_loss"][8] == pytest.approx(
        sum(sums.values()) / sum(tokens.values()), rel=1e-5
    )
    assert {f"{TAG}{name}" for name in WORDS} <= set(read_run(folder).columns)


def test_sums_do_not_depend_on_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    nll = 5 * torch.rand((8, 32), generator=generator)
    sources = torch.randint(4, (8, 32), generator=generator)  # 3: of none of the named ones
    metrics = []
    for size in (1, 3, 8):
        metric = TokenLoss(["a", "b", "c"])
        for start in range(0, 8, size):
            rows = slice(start, start + size)
            metric.update(nll[rows], torch.ones_like(sources[rows]), sources[rows])
        metrics.append(metric.compute())
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-12)
    assert metrics[0] == pytest.approx(metrics[2], rel=1e-12)
    assert metrics[0]["loss_by_source/b"] == pytest.approx(float(nll[sources == 1].double().mean()))


@pytest.mark.usefixtures("tiny")
def test_processes_share_the_windows_and_their_sources(tmp_path: Path) -> None:
    data = config(corpus(tmp_path / "a.jsonl"), val_windows=9)
    names, whole = opened(data).val_sources()
    assert whole is not None
    assert len(whole) == 9
    parts = [opened(data, rank, 2).val_sources() for rank in range(2)]
    assert [part[0] for part in parts] == [names, names]
    for rank, (_, part) in enumerate(parts):
        assert part is not None
        assert torch.equal(part, whole[rank::2])
    nll = torch.rand(whole.shape, generator=torch.Generator().manual_seed(0))
    metrics = []
    for rows in (slice(None), slice(0, None, 2), slice(1, None, 2)):
        metrics.append(TokenLoss(names))
        metrics[-1].update(nll[rows], torch.ones_like(whole[rows]), whole[rows])
    one, mine, theirs = metrics
    others = iter([getattr(theirs, name) for name in mine._reductions])
    mine.dist_sync_fn = lambda value, group: [value, next(others)]
    mine.distributed_available_fn = lambda: True
    assert mine.compute() == pytest.approx(one.compute(), rel=1e-12)


@pytest.mark.usefixtures("tiny")
def test_of_many_sources_the_largest_are_named(tmp_path: Path) -> None:
    names = [f"s{number:02d}" for number in range(20)]
    # The second half of the names has twice as many documents.
    module = opened(config(corpus(tmp_path / "a.jsonl", 900, [*names, *names[10:]])))
    found, places = module.val_sources()
    assert places is not None
    source = sources_by_hand(module)
    labels = np.concatenate([source[32 * w + 1 : 32 * w + 33] for w in module.chosen_val_windows()])
    counts = {name: int((labels == name).sum()) for name in names}
    assert found == sorted(names, key=lambda name: (-counts[name], name))[:VALIDATED_SOURCES]
    expected = [found.index(name) if name in found else VALIDATED_SOURCES for name in labels]
    assert places.flatten().tolist() == expected


@pytest.mark.usefixtures("tiny")
def test_sources_without_a_token_in_the_windows_are_left_out(tmp_path: Path) -> None:
    names = [f"s{number:02d}" for number in range(8)]
    data = config(corpus(tmp_path / "a.jsonl", 300, names))
    source = sources_by_hand(opened(data))
    numbers = set()
    for count in range(1, 9):
        few = opened(config(tmp_path / "a.jsonl", val_windows=count))
        there = {
            name for w in few.chosen_val_windows() for name in source[32 * w + 1 : 32 * w + 33]
        }
        assert set(few.val_sources()[0]) == (there if len(there) > 1 else set())
        numbers.add(len(there))
    assert {1, 3} <= numbers, "choose another number of documents"


@pytest.mark.usefixtures("tiny")
def test_a_single_source_is_not_listed(tmp_path: Path) -> None:
    data = config(corpus(tmp_path / "a.jsonl", sources=["yalnız"]))
    assert opened(data).val_sources() == ([], None)
    metric = TokenLoss()
    metric.update(torch.ones((1, 4)), torch.ones((1, 4), dtype=torch.long))
    assert not [name for name in metric.compute() if name.startswith("loss_by_source/")]
