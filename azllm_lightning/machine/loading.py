"""How fast text becomes tokens, and prepared tokens become batches."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.encoding import Encoder
from azllm_lightning.data.tokenizer import Tokenizer

TALES_BYTES = 400_000
VOCAB_SIZE = 2048
BATCH = 500
"""Tales that are tokenized at once."""
SECONDS = 1.0
"""How long batches are loaded."""


def measure_data(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Tokens per second of batches from the shards in `folder`, as the run of `config` loads them,
    and bytes of text per second that one core tokenizes.
    """
    trainer = config.trainer
    size = trainer.micro_batch_size if isinstance(trainer.micro_batch_size, int) else 8
    data = TokenDataModule(
        replace(config.data, dir=str(folder)),
        micro_batch_size=min(size, trainer.global_batch_size),
        seed=config.seed,
    )
    data.setup()
    batches = iter(data.train_dataloader())
    next(batches)  # workers start
    tokens = 0
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        batch = next(batches)
        tokens += batch.shape[0] * (batch.shape[1] - 1)
    loading = tokens / (time.perf_counter() - started)
    return {
        "tokens_per_second": loading,
        "num_workers": config.data.num_workers,
        "tokenizing_bytes_per_second": tokenizing_speed(),
    }


def tokenizing_speed() -> float:
    """Bytes of tales per second on one core, with a tokenizer of VOCAB_SIZE tokens."""
    tales = list(write_tales(TALES_BYTES, seed=0))
    encoder = Encoder(Tokenizer.train(tales, VOCAB_SIZE))
    started = time.perf_counter()
    for first in range(0, len(tales), BATCH):
        encoder.encode_documents(tales[first : first + BATCH])
    return sum(len(tale.encode("utf-8")) for tale in tales) / (time.perf_counter() - started)
