"""Token windows as batches: training in an order that only (seed, step) decides, validation on a fixed set."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.sampler import StepSampler, merge_ranges, skip_over, window_order
from azllm_lightning.data.shards import TokenShards
from azllm_lightning.data.tokenizer import Tokenizer

VALIDATION_SEED = 0
"""Every run, whatever its seed, is validated on the same windows, so that their losses compare."""

ORDERED_AT_ONCE = 1024
"""Windows whose order is worked out together: one at a time costs a small model's step some tenths of a millisecond."""

MAX_SOURCES = 12
"""Sources that are validated apart: more curves than that nobody reads."""


class Windows(Dataset[Tensor]):
    """Windows of block_size + 1 tokens, cut one after another from shards; the last label of one starts the next.

    With a `seed`, index k is the k-th window of a training run (endless); without, it is the window's own number.
    """

    def __init__(self, shards: TokenShards, block_size: int, seed: int | None = None) -> None:
        self.shards, self.block_size, self.seed = shards, block_size, seed
        self.num_windows = max(0, (len(shards) - 1) // block_size)
        self._first, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Tokens (B, T + 1) as int64; the DataLoader calls this once a batch."""
        windows = indices if self.seed is None else [self._ordered(k) for k in indices]
        tokens = [self.shards.read(int(w) * self.block_size, self.block_size + 1) for w in windows]
        return torch.from_numpy(np.stack(tokens).astype(np.int64))

    def _ordered(self, k: int) -> int:
        """The window that the k-th of the run is; worked out for many at once, since they come one after another."""
        assert self.seed is not None
        first = k - k % ORDERED_AT_ONCE
        if self._first != first:
            self._first = first
            self._order = window_order(
                range(first, first + ORDERED_AT_ONCE), self.num_windows, self.seed
            )
        return int(self._order[k - first])

    def __getitem__(self, index: int) -> Tensor:
        """One window (T + 1,)."""
        return self.__getitems__([index])[0]


class TokenDataModule(LightningDataModule):
    """Prepares the data when that is not yet done, and serves batches (B, T + 1) of token ids.

    Validation uses `data.val_windows` windows chosen once by a fixed seed (None = all), split over processes without
    padding, so that each is counted once. What a checkpoint needs of the data lives in `state_dict`: the fingerprint
    that a resume must find again, the seed, the effective batch, and the ranges of windows that were left out.
    """

    def __init__(self, config: DataConfig, micro_batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.micro_batch_size, self.seed = config, micro_batch_size, seed
        self.skipped: list[list[int]] = []
        self._to_skip: list[list[int]] = []

    def prepare_data(self) -> None:
        """Prepare shards and tokenizer; does nothing where they are done."""
        if not hasattr(self, "folder"):  # Lightning calls this again at each fit
            prepare(self.config)

    def setup(self, stage: str | None = None) -> None:
        """Open shards and tokenizer; raises ValueError where they do not match each other or their manifest."""
        if hasattr(self, "folder"):
            return
        folder = prepare(self.config)
        self.tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        block = self.config.block_size
        self.train_windows = Windows(
            TokenShards.open(folder, "train", self.tokenizer), block, self.seed
        )
        self.val_windows = Windows(TokenShards.open(folder, "val", self.tokenizer), block)
        self.folder: Path = folder

    @property
    def fingerprint(self) -> str:
        """A digest of every training shard and of the tokenizer: what the training order means besides its seed."""
        manifest = self.train_windows.shards.manifest
        parts = [manifest.tokenizer, *(file.sha256 for file in manifest.splits["train"].files)]
        return blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    @property
    def accumulate(self) -> int:
        """Micro-batches in an optimizer step, on each process."""
        return int(self.trainer.accumulate_grad_batches) if self.trainer else 1

    @property
    def global_batch_size(self) -> int:
        """Windows in an optimizer step, over all micro-batches and processes."""
        world_size = self.trainer.world_size if self.trainer else 1
        return self.micro_batch_size * self.accumulate * world_size

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Micro-batches from the trainer's step on, endless."""
        trainer = self.trainer
        sampler = StepSampler(
            first_step=trainer.global_step if trainer else 0,
            micro_batch=self.micro_batch_size,
            accumulate=self.accumulate,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            skipped=self.skipped,
        )
        return self._loader(self.train_windows, sampler)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The fixed validation windows of this process; the last batch may be smaller."""
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        chosen = self.chosen_val_windows()[rank::world_size]
        size = self.micro_batch_size
        return self._loader(
            self.val_windows, Batches([chosen[i : i + size] for i in range(0, len(chosen), size)])
        )

    def chosen_val_windows(self) -> list[int]:
        """The validation windows of every run on this data, sorted."""
        total = self.val_windows.num_windows
        count = min(total, self.config.val_windows or total)
        return sorted(window_order(range(count), total, VALIDATION_SEED).tolist())

    def val_sources(self) -> tuple[list[str], Tensor | None]:
        """The sources to tell apart in validation, and which of them each label of this process's windows comes from.

        These are the MAX_SOURCES sources with the most tokens in the validation windows of all processes, biggest
        first. The tensor (W, T), uint8, has for each label the place of its source in that list, or the list's length.
        ([], None) where all comes from one source.
        """
        spans = [span for span in self.val_windows.shards.manifest.spans if span.split == "val"]
        names, source = np.unique([span.source for span in spans], return_inverse=True)
        if len(names) < 2:
            return [], None
        ends = np.array([span.end for span in spans])
        labels = np.arange(1, self.config.block_size + 1)
        starts = self.config.block_size * np.array(self.chosen_val_windows())
        found = np.stack(
            [source[np.searchsorted(ends, start + labels, side="right")] for start in starts]
        )
        tokens = np.bincount(found.ravel(), minlength=len(names))
        biggest = [
            place for place in np.argsort(-tokens, kind="stable")[:MAX_SOURCES] if tokens[place]
        ]
        if len(biggest) < 2:
            return [], None
        places = np.full(len(names), len(biggest), dtype=np.uint8)
        places[biggest] = np.arange(len(biggest))
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        return names[biggest].tolist(), torch.from_numpy(places[found[rank::world_size]])

    def state_dict(self) -> dict[str, Any]:
        """What a resume compares and restores; the position itself is the optimizer step."""
        return {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's state; ValueError where this data could not continue it exactly."""
        self.check_same_data(state_dict["fingerprint"])
        here = self.state_dict()
        remedies = {
            "seed": "leave out seed=, or start a new run",
            "global_batch_size": "choose data.batch_size x trainer.accumulate_grad_batches x devices accordingly",
        }
        for key, remedy in remedies.items():
            if state_dict[key] != here[key]:
                raise ValueError(
                    f"the checkpoint was trained with {key.replace('_', ' ')} {state_dict[key]}, "
                    f"this run has {here[key]}: {remedy}"
                )
        self.skipped = merge_ranges([*state_dict["skipped"], *self._to_skip])

    def check_same_data(self, fingerprint: str) -> None:
        """Raise ValueError unless `fingerprint`, a checkpoint's, is that of this data."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the checkpoint was trained on other data (fingerprint {fingerprint}) than {self.folder} "
                f"({self.fingerprint}): resume with the data it was trained on (data.dir=, data.path=), "
                "or start a new run"
            )

    def skip_steps(self, first: int, last: int) -> None:
        """Leave out the windows that optimizer steps `first` to `last` used, in the fits to come.

        It takes effect with the next restored state, or at once where the run starts anew.
        """
        batch = self.global_batch_size
        start = skip_over((first - 1) * batch, self.skipped)
        stop = skip_over(last * batch - 1, self.skipped) + 1
        self._to_skip.append([start, stop])
        self.skipped = merge_ranges([*self.skipped, [start, stop]])

    def _loader(self, windows: Windows, batches: Sampler[list[int]]) -> DataLoader[Tensor]:
        workers = self.config.num_workers
        return DataLoader(
            windows,
            batch_sampler=batches,
            collate_fn=_whole,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator().manual_seed(
                0
            ),  # its own: an iterator must not draw from the global one
            worker_init_fn=_leave_signals_to_parent,
        )


class Batches(Sampler[list[int]]):
    """A fixed list of batches of indices."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl+C reaches the whole process group; the parent finishes its step with the workers alive and then ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _whole(batch: Any) -> Any:
    return batch  # `Windows` gives whole batches; a named function, so that spawned workers can import it
