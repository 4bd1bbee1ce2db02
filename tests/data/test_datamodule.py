"""Batches: which windows, in which order, whoever loads them."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.sampler import window_order


def opened(config: DataConfig, seed: int = 1, **trainer: int) -> TokenDataModule:
    """A datamodule as a trainer at some step, of some number of processes, would hold it."""
    module = TokenDataModule(config, seed)
    module.prepare_data()
    module.setup()
    defaults = {"global_step": 0, "accumulate_grad_batches": 1, "global_rank": 0, "world_size": 1}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(strategy=strategy, **{**defaults, **trainer})  # type: ignore[assignment]
    return module


def first(module: TokenDataModule, count: int) -> Tensor:
    """The first `count` training micro-batches, one below the other."""
    return torch.cat(list(islice(module.train_dataloader(), count)))


@pytest.fixture
def config(small: DataConfig) -> DataConfig:
    return replace(small, batch_size=6, val_windows=10)


def test_windows_are_pieces_of_the_text_one_after_another(config: DataConfig) -> None:
    module = opened(config)
    shards, block = module.train_windows.shards, config.block_size
    assert module.train_windows.num_windows == (len(shards) - 1) // block
    module.train_windows.seed = None  # the windows' own numbers
    for number in (0, 1, module.train_windows.num_windows - 1):
        window = module.train_windows[number]
        assert window.dtype == torch.int64
        assert window.tolist() == shards.read(number * block, block + 1).tolist()
    assert module.train_windows[0][-1] == module.train_windows[1][0]


def test_a_pass_trains_on_every_window_once(config: DataConfig) -> None:
    module = opened(replace(config, batch_size=1))
    total = module.train_windows.num_windows
    seen = {tuple(window) for window in first(module, total).tolist()}
    module.train_windows.seed = None
    assert seen == {tuple(module.train_windows[number].tolist()) for number in range(total)}


def test_the_order_is_the_same_whichever_window_is_asked_for_first(config: DataConfig) -> None:
    """Windows are put in order many at a time; jumps and the borders of these lots change nothing."""
    windows = opened(config, seed=7).train_windows
    asked = [0, 1023, 1024, 5, 4096, 4095, 1025, 10**12]
    for k, window in zip(asked, window_order(asked, windows.num_windows, 7), strict=True):
        start = int(window) * windows.block_size
        assert windows[k].tolist() == windows.shards.read(start, windows.block_size + 1).tolist()


def test_workers_change_nothing(config: DataConfig) -> None:
    alone, with_workers = opened(config), opened(replace(config, num_workers=2))
    assert torch.equal(first(alone, 7), first(with_workers, 7))
    for mine, theirs in zip(alone.val_dataloader(), with_workers.val_dataloader(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("micro_batch", "accumulate", "world_size"), [(3, 2, 1), (1, 6, 1), (3, 1, 2), (1, 3, 2)]
)
def test_micro_batch_and_processes_change_nothing(
    config: DataConfig, micro_batch: int, accumulate: int, world_size: int
) -> None:
    def windows(
        micro_batch: int, accumulate: int, world_size: int, step: int
    ) -> set[tuple[int, ...]]:
        ranks = [
            opened(
                replace(config, batch_size=micro_batch),
                global_step=step,
                accumulate_grad_batches=accumulate,
                global_rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        assert {rank.effective_batch for rank in ranks} == {6}
        return {tuple(window) for rank in ranks for window in first(rank, accumulate).tolist()}

    for step in (0, 11):
        assert windows(micro_batch, accumulate, world_size, step) == windows(6, 1, 1, step)


def test_training_begins_where_the_trainer_stands(config: DataConfig) -> None:
    whole = first(opened(config), 8)
    assert torch.equal(first(opened(config, global_step=5), 3), whole[5 * 6 :])


def test_the_seed_decides_the_order_and_not_the_validation(config: DataConfig) -> None:
    one, other = opened(config, seed=1), opened(config, seed=2)
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
    settings = replace(config, val_windows=val_windows, batch_size=4)
    ranks = [
        opened(settings, global_rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    chosen = ranks[0].chosen_val_windows()
    total = ranks[0].val_windows.num_windows
    assert len(chosen) == len(set(chosen)) == min(total, val_windows or total)
    loaded = [tuple(w) for rank in ranks for batch in rank.val_dataloader() for w in batch.tolist()]
    assert sorted(loaded) == sorted(
        tuple(ranks[0].val_windows[number].tolist()) for number in chosen
    )


def test_a_state_comes_back_and_a_foreign_one_is_refused(config: DataConfig) -> None:
    module = opened(config)
    state = module.state_dict()
    assert state == {
        "fingerprint": module.fingerprint,
        "seed": 1,
        "effective_batch": 6,
        "skipped": [],
    }
    module.load_state_dict({**state, "skipped": [[3, 5]]})
    assert module.skipped == [[3, 5]]
    for key, value in {"fingerprint": "abc", "seed": 2, "effective_batch": 12}.items():
        with pytest.raises(ValueError, match=f"{value}.*{state[key]}"):
            module.load_state_dict({**state, key: value})


def test_the_fingerprint_follows_the_text(config: DataConfig, texts) -> None:
    module = opened(config)
    assert opened(replace(config, block_size=16, batch_size=1)).fingerprint == module.fingerprint
    assert opened(replace(config, vocab_size=500)).fingerprint != module.fingerprint


def test_skipped_steps_are_left_out(config: DataConfig) -> None:
    whole = first(opened(config), 10)
    module = opened(config)
    module.skip_steps(3, 4)
    assert module.skipped == [[12, 24]]
    assert torch.equal(first(module, 8), torch.cat([whole[:12], whole[24:]]))
    module.load_state_dict(
        {**module.state_dict(), "skipped": []}
    )  # the checkpoint to go back to knows nothing of it
    assert module.skipped == [[12, 24]]
    module.skip_steps(3, 3)  # what is step 3 now lay behind the gap
    assert module.skipped == [[12, 30]]


def test_works_without_a_trainer(config: DataConfig) -> None:
    module = TokenDataModule(config)
    module.setup()
    assert next(iter(module.train_dataloader())).shape == (6, config.block_size + 1)
