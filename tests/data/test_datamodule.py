"""Batches: which windows, in which order, whoever loads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from sample_texts import make_texts
from torch import Tensor

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.cuts import cut_offset
from azllm_lightning.data.datamodule import (
    TokenDataModule,
    TrainingWindows,
    Windows,
    datamodule_of,
)
from azllm_lightning.data.sampler import window_order


@pytest.fixture(scope="module")
def config(prepared: Path) -> DataConfig:
    """The prepared text, with ten validation windows."""
    return DataConfig(dir=str(prepared), block_size=32, val_windows=10)


def opened(
    config: DataConfig, micro_batch_size: int = 6, seed: int = 1, **trainer: int
) -> TokenDataModule:
    """A datamodule as a trainer at some step, with some number of processes, holds it."""
    module = TokenDataModule(config, micro_batch_size, seed)
    module.prepare_data()
    module.setup()
    defaults = {"global_step": 0, "accumulate_grad_batches": 1, "global_rank": 0, "world_size": 1}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=strategy,
        datamodule=module,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        **{**defaults, **trainer},
    )
    return module


def first(module: TokenDataModule, count: int) -> Tensor:
    """The windows of the first `count` training micro-batches."""
    return torch.cat(list(islice(module.train_dataloader(), count)))


def test_the_digest_of_the_validation_text_is_that_of_the_text(tmp_path: Path) -> None:
    """The same with any tokenizer and context; another text, or another part of it, has another."""
    texts = make_texts(120)
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n\n".join(texts[:-1]), encoding="utf-8")

    def digest(name: str, val_fraction: float = 0.2, **settings: int) -> str:
        config = DataConfig(
            path=str(tmp_path / name), val_fraction=val_fraction, val_windows=5, **settings
        )
        return opened(config).val_text_digest

    first = digest("a.txt", vocab_size=300, block_size=16)
    assert digest("a.txt", vocab_size=400, block_size=8) == first
    assert digest("b.txt", val_fraction=0.9, vocab_size=300, block_size=16) != first
    assert digest("a.txt", val_fraction=0.3, vocab_size=300, block_size=16) != first


def test_windows_are_consecutive_pieces_of_the_text(config: DataConfig) -> None:
    module = opened(config)
    shards = module.train_windows.shards
    block = config.block_size
    assert module.train_windows.num_windows == (len(shards) - 1) // block
    windows = Windows(shards, block)
    for number in (0, 1, windows.num_windows - 1):
        window = windows[number]
        assert window.dtype == torch.int64
        assert window.tolist() == shards.read(number * block, block + 1).tolist()
    assert windows[0][-1] == windows[1][0]


def test_an_epoch_trains_on_every_window_once(config: DataConfig) -> None:
    module = opened(config, micro_batch_size=1)
    total = module.train_windows.num_windows
    seen = {tuple(window) for window in first(module, total).tolist()}
    windows = Windows(module.train_windows.shards, config.block_size)
    assert seen == {tuple(windows[number].tolist()) for number in range(total)}


def test_the_order_does_not_depend_on_which_window_is_read_first(config: DataConfig) -> None:
    """The order is computed in blocks of 1024; jumps and the borders of blocks change nothing."""
    windows = opened(config, seed=7).train_windows
    positions = [0, 1023, 1024, 5, 4096, 4095, 1025, 10**12]
    block = windows.block_size
    text = windows.shards.read(0, len(windows.shards))
    order = window_order(positions, windows.num_windows, 7)
    offsets = cut_offset(np.array(positions) // windows.num_windows, block)
    for k, window, offset in zip(positions, order, offsets, strict=True):
        start = int(window) * block + offset
        expected = text.take(np.arange(start, start + block + 1), mode="wrap")
        assert windows[k].tolist() == expected.tolist()


def passes_of(windows: TrainingWindows, count: int) -> list[list[tuple[int, ...]]]:
    """The windows of the first passes, each in the order in which they come."""
    size = windows.num_windows
    return [
        [tuple(w) for w in windows.__getitems__(list(range(first, first + size))).tolist()]
        for first in range(0, count * size, size)
    ]


def test_each_pass_cuts_the_text_elsewhere(config: DataConfig) -> None:
    windows = opened(config).train_windows
    one, two, three = (set(windows) for windows in passes_of(windows, 3))
    assert not one & two
    assert not two & three
    assert not one & three


def test_a_run_begun_with_one_cut_of_the_text_keeps_it(config: DataConfig) -> None:
    """Checkpoints of version 1 of the order do not hold it."""
    state = opened(config).state_dict()
    del state["order"]
    module = opened(config)
    steps = module.train_windows.num_windows // 6 + 2
    recut = first(module, steps)
    module.load_state_dict(state)
    assert module.state_dict()["order"] == 1
    one, two = (set(windows) for windows in passes_of(module.train_windows, 2))
    assert one == two
    kept = first(module, steps)
    assert torch.equal(kept[: len(one)], recut[: len(one)])
    assert not torch.equal(kept, recut)
    module.load_state_dict({**state, "order": 2})
    assert torch.equal(first(module, steps), recut)


def test_workers_change_nothing(config: DataConfig) -> None:
    alone = opened(config)
    with_workers = opened(replace(config, num_workers=2))
    assert torch.equal(first(alone, 7), first(with_workers, 7))
    batches = zip(alone.val_dataloader(), with_workers.val_dataloader(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in batches)


@pytest.mark.parametrize(
    ("micro_batch_size", "accumulate", "world_size"),
    [(3, 2, 1), (1, 6, 1), (3, 1, 2), (1, 3, 2), (2, 1, 3)],
)
def test_micro_batches_and_processes_change_nothing(
    config: DataConfig, micro_batch_size: int, accumulate: int, world_size: int
) -> None:
    second_pass = opened(config).train_windows.num_windows // 6
    for step in (0, 11, second_pass, second_pass + 3):
        ranks = [
            opened(
                config,
                micro_batch_size,
                global_step=step,
                accumulate_grad_batches=accumulate,
                global_rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        assert {rank.global_batch_size for rank in ranks} == {6}
        windows = [window for rank in ranks for window in first(rank, accumulate).tolist()]
        assert sorted(windows) == sorted(first(opened(config, global_step=step), 1).tolist())


def test_the_micro_batch_size_may_change_between_two_fits(config: DataConfig) -> None:
    module = opened(config, accumulate_grad_batches=2)
    before = first(module, 4)
    state = module.state_dict()
    module.micro_batch_size = 3
    module.trainer.accumulate_grad_batches = 4  # type: ignore[union-attr]
    module.load_state_dict(state)
    assert torch.equal(first(module, 8), before)
    assert {len(batch) for batch in islice(module.val_dataloader(), 3)} == {3}


def test_training_starts_at_the_trainers_step(config: DataConfig) -> None:
    passes = 2 * opened(config).train_windows.num_windows // 6
    all_windows = first(opened(config), passes + 3)
    for step in (5, passes // 2, passes - 3):
        resumed = first(opened(config, global_step=step), 6)
        assert torch.equal(resumed, all_windows[6 * step : 6 * step + 36])


def test_the_seed_decides_the_order_but_not_the_validation(config: DataConfig) -> None:
    one = opened(config, seed=1)
    other = opened(config, seed=2)
    assert not torch.equal(first(one, 3), first(other, 3))
    assert one.chosen_val_windows() == other.chosen_val_windows()


def test_loading_draws_nothing_from_the_global_random_stream(config: DataConfig) -> None:
    module = opened(config)
    before = torch.get_rng_state()
    first(module, 2)
    list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("val_windows", [10, 7, None, 100_000])
def test_every_validation_window_is_counted_once(
    config: DataConfig, val_windows: int | None, world_size: int
) -> None:
    settings = replace(config, val_windows=val_windows)
    ranks = [
        opened(settings, 4, global_rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    chosen = ranks[0].chosen_val_windows()
    total = ranks[0].val_windows.num_windows
    assert len(chosen) == len(set(chosen)) == min(total, val_windows or total)
    loaded = [window for rank in ranks for batch in rank.val_dataloader() for window in batch]
    expected = [ranks[0].val_windows[number] for number in chosen]
    assert sorted(w.tolist() for w in loaded) == sorted(w.tolist() for w in expected)


def test_a_state_is_restored_and_one_of_another_run_refused(config: DataConfig) -> None:
    module = opened(config)
    state = module.state_dict()
    assert state == {
        "fingerprint": module.fingerprint,
        "validation": module.validation,
        "seed": 1,
        "global_batch_size": 6,
        "skipped": [],
        "mix": None,
        "order": 3,
    }
    module.load_state_dict({**state, "skipped": [[3, 5]]})
    assert module.skipped == [[3, 5]]
    refusals = {
        "fingerprint": ("abc", "different data .*data.path="),
        "validation": ("abc", "validated on other text.*data.val_path="),
        "seed": (2, "seed=2.*seed=1"),
        "global_batch_size": (12, "=12.*has 6; omit trainer.global_batch_size="),
        "order": (4, "version 4.*up to 3.*update it"),
    }
    for key, (value, message) in refusals.items():
        with pytest.raises(ValueError, match=message):
            module.load_state_dict({**state, key: value})


def test_the_fingerprint_follows_the_text(
    config: DataConfig, prepare_small: Callable[..., Path]
) -> None:
    fingerprint = opened(config).fingerprint
    assert opened(replace(config, block_size=16), micro_batch_size=1).fingerprint == fingerprint
    other = prepare_small(vocab_size=400)
    assert opened(replace(config, dir=str(other))).fingerprint != fingerprint


def test_skipped_steps_are_left_out(config: DataConfig) -> None:
    all_windows = first(opened(config), 10)
    module = opened(config)
    module.skip_steps(3, 4)
    assert module.skipped == [[12, 24]]
    assert torch.equal(first(module, 8), torch.cat([all_windows[:12], all_windows[24:]]))
    # the checkpoint that the run goes back to has not skipped them yet
    module.load_state_dict({**module.state_dict(), "skipped": []})
    assert module.skipped == [[12, 24]]
    module.skip_steps(3, 3)  # this step 3 comes after the gap
    assert module.skipped == [[12, 30]]


def test_works_without_a_trainer(config: DataConfig) -> None:
    module = TokenDataModule(config, micro_batch_size=6)
    module.setup()
    assert next(iter(module.train_dataloader())).shape == (6, config.block_size + 1)
    assert module.global_batch_size == 6


def test_the_datamodule_of_a_trainer(config: DataConfig) -> None:
    module = opened(config)
    assert module.trainer is not None
    assert datamodule_of(module.trainer) is module


def test_a_mix_continues_at_any_step(config: DataConfig) -> None:
    (source,) = {span.source for span in opened(config).train_windows.shards.manifest.spans}
    mixed = replace(config, mix=f"{source}: 2.5")
    whole = first(opened(mixed), 8)
    assert torch.equal(first(opened(mixed, global_step=5), 3), whole[5 * 6 :])
    assert not torch.equal(whole, first(opened(config), 8))


@pytest.mark.parametrize(("order", "across"), [(2, 0), (3, 1)])
def test_a_run_begun_with_windows_within_each_source_of_a_mix_keeps_them(
    tmp_path: Path, order: int, across: int
) -> None:
    """`across`: how many windows of the first pass go from one source to the other."""
    for name in ("a.txt", "b.txt"):
        lines = [f"{name} {i} uzaq dağlarda yaşayırdı." for i in range(200)]
        (tmp_path / name).write_text("\n\n".join(lines), encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "*.txt"), mix="*: 1", vocab_size=300, block_size=16)
    module = opened(config)
    module.load_state_dict({**module.state_dict(), "order": order})
    windows = module.train_windows
    border = windows.shards.manifest.spans[0].end
    assert border % 16
    starts = [windows.start(index) for index in range(windows.num_windows)]
    assert sum(start < border < start + 16 for start in starts) == across


def test_another_mix_does_not_continue_a_run(config: DataConfig) -> None:
    state = opened(config).state_dict()
    (source,) = {span.source for span in opened(config).train_windows.shards.manifest.spans}
    with pytest.raises(ValueError, match=r"data\.mix=None, this run has .*: 2"):
        opened(replace(config, mix=f"{source}: 2")).load_state_dict(state)
