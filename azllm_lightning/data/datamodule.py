"""Batches of token windows: the training order follows from (seed, step), validation is fixed."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig, Weight
from azllm_lightning.data.corpus import VALIDATED_SOURCES
from azllm_lightning.data.cuts import Rings, cut_offset
from azllm_lightning.data.mix import Mix, mix_of
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.remarks import prepare_and_warn
from azllm_lightning.data.replacement import replace_tokens
from azllm_lightning.data.sampler import (
    Indices,
    StepSampler,
    merge_ranges,
    skip_over,
    window_order,
)
from azllm_lightning.data.shards import SPLITS, TokenShards
from azllm_lightning.data.tokenizer import Tokenizer

VALIDATION_SEED = 0
"""Every run is validated on the same windows, whatever its seed, so that losses are comparable."""

ORDER_BLOCK = 1024
"""Positions whose windows are computed at once; one by one would add tenths of a millisecond to
each step of a small model."""

ORDER = 3
"""The version of the training order, which checkpoints hold: 1, of runs begun before it was stored,
cuts the same windows in every pass, and 2 others in each; the first pass is the same. In 3, windows
of a mix go from one source of a component to the next."""

DIGEST_CHARS = 1 << 14
"""Characters at the start of the validation text that its digest reads."""


class Windows(Dataset[Tensor]):
    """Windows of `block_size` + 1 tokens; the last token of one is the first of the next.

    The index is the window's own number.
    """

    def __init__(self, shards: TokenShards, block_size: int) -> None:
        self.shards = shards
        self.block_size = block_size
        self.num_windows = max(0, (len(shards) - 1) // block_size)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Tokens (B, T + 1) as int64; the DataLoader calls this once per batch."""
        tokens = [self.read(self.start(index)) for index in indices]
        return torch.from_numpy(np.stack(tokens).astype(np.int64))

    def __getitem__(self, index: int) -> Tensor:
        """One window (T + 1,)."""
        return self.__getitems__([index])[0]

    def start(self, index: int) -> int:
        """The first token of a window."""
        return index * self.block_size

    def read(self, start: int) -> Indices:
        """The tokens (T + 1,) of the window that begins at token `start`."""
        return self.shards.read(start, self.block_size + 1)


class TrainingWindows(Windows):
    """Endless: index k is the k-th window of a run with `seed`; a pass has `num_windows`.

    Each pass cuts the text at other places, except in `order` 1. With a mix, a pass is one of the
    mix: it reads some windows several times, and there are `unique_windows` different ones; after
    `windows_per_reading`, no text has been read more than once on average.
    """

    def __init__(
        self, shards: TokenShards, block_size: int, seed: int, weights: Mapping[str, Weight]
    ) -> None:
        super().__init__(shards, block_size)
        self.seed = seed
        self.weights = weights
        self.mix: Mix | None = None
        self.rings = Rings([[(0, len(shards))]])
        self.unique_windows = self.num_windows
        self.windows_per_reading = float(self.num_windows)
        self.follow(ORDER)

    def follow(self, order: int) -> None:
        """Read the text in this version of the training order."""
        self.order = order
        self._starts: dict[int, Indices] = {}
        if self.weights:
            shards = self.shards
            spans = [span for span in shards.manifest.spans if span.split == shards.split]
            self.mix = mix_of(self.weights, spans, self.block_size, self.seed, joined=order > 2)
            self.rings = self.mix.rings
            self.num_windows = self.mix.num_windows
            self.unique_windows = self.mix.unique_windows
            self.windows_per_reading = self.mix.windows_per_reading

    def start(self, index: int) -> int:
        """The first token of the window at position `index` of the run."""
        block, place = divmod(index, ORDER_BLOCK)
        if block not in self._starts:
            self._starts = {block: self._starts_of(block * ORDER_BLOCK + np.arange(ORDER_BLOCK))}
        return int(self._starts[block][place])

    def read(self, start: int) -> Indices:
        """The tokens (T + 1,) of the window that begins at token `start` of its ring."""
        pieces = self.rings.pieces(start, self.block_size + 1)
        return np.concatenate([self.shards.read(first, length) for first, length in pieces])

    def _starts_of(self, positions: Indices) -> Indices:
        recut = self.order > 1
        if self.mix is not None:
            return self.mix.starts(positions, recut)
        starts = window_order(positions, self.num_windows, self.seed) * self.block_size
        if recut:
            offsets = cut_offset(positions // self.num_windows, self.block_size)
            starts = self.rings.shifted(starts, offsets)
        return starts


class TokenDataModule(LightningDataModule):
    """Prepares the data if necessary, and serves batches (B, T + 1) of token ids.

    `micro_batch_size` is the B of each process; it may be changed between two fits. Validation uses
    `data.val_windows` windows chosen by a fixed seed (None: all), divided among the processes
    without padding, so that each window is counted once. `state_dict` holds what a resume needs:
    the digests of the data, the seed, the global batch size, the mix, the version of the
    training order and the skipped windows.
    """

    def __init__(self, config: DataConfig, micro_batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.skipped: list[list[int]] = []
        self._to_skip: list[list[int]] = []

    def prepare_data(self) -> None:
        """Prepare shards and tokenizer unless they exist."""
        if not hasattr(self, "folder"):  # Lightning calls this again for each fit
            prepare_and_warn(self.config)

    def setup(self, stage: str | None = None) -> None:
        """Open shards and tokenizer; raises ValueError if they do not match the manifest."""
        if self.trainer is not None:
            # The samplers below divide the windows; Lightning (2.6) would wrap them in its own.
            self.trainer._accelerator_connector.use_distributed_sampler = False
        if hasattr(self, "folder"):
            return
        folder = prepare(self.config)
        self.tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        block_size = self.config.block_size
        train, val = (
            TokenShards.open(folder, split, self.tokenizer, self.config.verify) for split in SPLITS
        )
        self.train_windows = TrainingWindows(train, block_size, self.seed, self.config.weights)
        self.val_windows = Windows(val, block_size)
        self.folder: Path = folder

    @property
    def fingerprint(self) -> str:
        """A digest of the training shards and the tokenizer."""
        return self.train_windows.shards.manifest.fingerprint

    @property
    def validation(self) -> str:
        """A digest of the validation shards and the tokenizer."""
        return self.train_windows.shards.manifest.validation

    @property
    def val_text_digest(self) -> str:
        """A digest of the validation text, the same with every tokenizer.

        Of its number of documents and bytes, and of its beginning: to decode all of it would take
        seconds.
        """
        shards = self.val_windows.shards
        split = shards.manifest.splits[shards.split]
        # A token is at least a byte, and a character at most four.
        tokens = shards.read(0, min(len(shards), 4 * DIGEST_CHARS))
        start = self.tokenizer.decode(tokens.tolist())[:DIGEST_CHARS]
        described = f"{split.documents} {split.text_bytes} {start}"
        data = described.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step, over all micro-batches and processes."""
        world_size = self.trainer.world_size if self.trainer else 1
        return self.micro_batch_size * self._micro_batches_per_step * world_size

    @property
    def _micro_batches_per_step(self) -> int:
        return int(self.trainer.accumulate_grad_batches) if self.trainer else 1

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Endless micro-batches, starting at the trainer's current step."""
        trainer = self.trainer
        sampler = StepSampler(
            first_step=trainer.global_step if trainer else 0,
            micro_batch_size=self.micro_batch_size,
            micro_batches_per_step=self._micro_batches_per_step,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            skipped=self.skipped,
        )
        return self._loader(self.train_windows, sampler)

    def training_inputs(self, batch: Tensor, micro: int) -> Tensor:
        """What the model reads of `batch` (B, T + 1), the `micro`-th micro-batch of the current
        step: the same, or with data.token_replacement a copy in which tokens are replaced.
        """
        share = self.config.token_replacement
        if not share:
            return batch
        trainer = self.trainer
        assert trainer is not None
        size = len(batch)
        before = trainer.global_step * self._micro_batches_per_step + micro
        first = (before * trainer.world_size + trainer.global_rank) * size
        positions = np.arange(first, first + size)
        return replace_tokens(batch, positions, share, self.tokenizer.vocab_size, self.seed)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The fixed validation windows of this process; the last batch may be smaller."""
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        chosen = self.chosen_val_windows()[rank::world_size]
        size = self.micro_batch_size
        batches = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return self._loader(self.val_windows, FixedBatches(batches))

    def chosen_val_windows(self) -> list[int]:
        """The numbers of the validation windows of every run on this data, sorted."""
        total = self.val_windows.num_windows
        count = min(total, self.config.val_windows or total)
        return sorted(window_order(range(count), total, VALIDATION_SEED).tolist())

    def val_sources(self) -> tuple[list[str], Tensor | None]:
        """The sources with a validation loss of their own, and the source of each validation label.

        The sources are the VALIDATED_SOURCES with the most tokens in the validation windows of all
        processes, largest first. The tensor (W, T), uint8, is for the windows of this process; it
        gives each label the index of its source in that list, or the length of the list for any
        other source. ([], None) if there is only one source.
        """
        spans = [span for span in self.val_windows.shards.manifest.spans if span.split == "val"]
        names, source_of_span = np.unique([span.source for span in spans], return_inverse=True)
        if len(names) < 2:
            return [], None
        span_ends = np.array([span.end for span in spans])
        labels = np.arange(1, self.config.block_size + 1)
        starts = self.config.block_size * np.array(self.chosen_val_windows())
        sources = np.stack(
            [
                source_of_span[np.searchsorted(span_ends, start + labels, side="right")]
                for start in starts
            ]
        )
        tokens = np.bincount(sources.ravel(), minlength=len(names))
        largest = [i for i in np.argsort(-tokens, kind="stable")[:VALIDATED_SOURCES] if tokens[i]]
        if len(largest) < 2:
            return [], None
        indices = np.full(len(names), len(largest), dtype=np.uint8)
        indices[largest] = np.arange(len(largest))
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        return names[largest].tolist(), torch.from_numpy(indices[sources[rank::world_size]])

    def state_dict(self) -> dict[str, Any]:
        """What a resume compares and restores; the position itself is the optimizer step."""
        return {
            "fingerprint": self.fingerprint,
            "validation": self.validation,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "skipped": self.skipped,
            "mix": self.config.mix,
            "order": self.train_windows.order,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a checkpoint's state; ValueError if this data could not continue it exactly.

        A validation alone needs no more than the same data.
        """
        self.check_same_data(state_dict["fingerprint"], state_dict.get("validation"))
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        if state_dict["seed"] != self.seed:
            raise ValueError(
                tr(
                    "the checkpoint has seed={theirs}, this run has seed={ours}; "
                    "omit seed=, or start a new run",
                    theirs=state_dict["seed"],
                    ours=self.seed,
                )
            )
        if state_dict["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                tr(
                    "the checkpoint has trainer.global_batch_size={theirs}, this run has {ours}; "
                    "omit trainer.global_batch_size=, or start a new run",
                    theirs=state_dict["global_batch_size"],
                    ours=self.global_batch_size,
                )
            )
        if state_dict.get("mix") != self.config.mix:
            raise ValueError(
                tr(
                    "the checkpoint has data.mix={theirs}, this run has {ours}; omit data.mix=, or "
                    "start a new run",
                    theirs=state_dict.get("mix"),
                    ours=self.config.mix,
                )
            )
        order = state_dict.get("order", 1)
        if order > ORDER:
            raise ValueError(
                tr(
                    "the checkpoint reads its text in an order (version {theirs}) that this "
                    "version of azllm-lightning, up to {ours}, does not know; update it",
                    theirs=order,
                    ours=ORDER,
                )
            )
        self.train_windows.follow(order)
        self.skipped = merge_ranges([*state_dict["skipped"], *self._to_skip])

    def check_same_data(self, fingerprint: str, validation: str | None) -> None:
        """Raise ValueError unless the digests of a checkpoint are those of this data.

        Earlier versions did not keep that of the validation text.
        """
        if fingerprint != self.fingerprint:
            raise ValueError(
                tr(
                    "the checkpoint was trained on different data (fingerprint {theirs}) from "
                    "{folder} ({ours}); resume with the same data (data.dir=, data.path=), or "
                    "start a new run",
                    theirs=fingerprint,
                    folder=self.folder,
                    ours=self.fingerprint,
                )
            )
        if validation not in (None, self.validation):
            raise ValueError(
                tr(
                    "the checkpoint was validated on other text than that of {folder}, so that "
                    "val_loss would not be comparable; resume with the same validation text "
                    "(data.dir=, data.val_path=), or start a new run",
                    folder=self.folder,
                )
            )

    def skip_steps(self, first: int, last: int) -> None:
        """Skip the windows of optimizer steps `first` to `last` in later fits.

        Takes effect when a state is loaded, or at once if the run starts from the beginning.
        """
        start = skip_over((first - 1) * self.global_batch_size, self.skipped)
        stop = skip_over(last * self.global_batch_size - 1, self.skipped) + 1
        self._to_skip.append([start, stop])
        self.skipped = merge_ranges([*self.skipped, [start, stop]])

    def _loader(self, windows: Windows, batches: Sampler[list[int]]) -> DataLoader[Tensor]:
        workers = self.config.num_workers
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            windows,
            batch_sampler=batches,
            collate_fn=_unchanged,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            # a generator of its own, because an iterator draws from the global one otherwise
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_leave_signals_to_parent,
        )


def datamodule_of(trainer: Trainer) -> TokenDataModule:
    """The datamodule of `trainer`, which Lightning leaves untyped."""
    return cast(TokenDataModule, trainer.datamodule)  # type: ignore[attr-defined]


class FixedBatches(Sampler[list[int]]):
    """A fixed list of batches of indices."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl+C reaches the whole process group; the parent finishes its step while the workers are
    # alive, and then ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _unchanged(batch: Any) -> Any:
    # `Windows` returns complete batches; a named function, because spawned workers must import it.
    return batch
