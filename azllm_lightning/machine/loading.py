"""How fast text becomes tokens, and prepared tokens become batches."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from azllm_lightning.azerbaijani.tales import write_tales
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.data.encoding import Encoder
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.workers import Workers, num_cores

TALES_BYTES = 2_000_000
VOCAB_SIZE = 2048


def measure_data(config: RunConfig, folder: Path, seconds: float = 1.0) -> dict[str, Any]:
    """Tokens per second of batches from the shards in `folder`, as the run of `config` loads them,
    and bytes of text per second that this machine tokenizes, on all its cores.
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
    while time.perf_counter() - started < seconds:
        batch = next(batches)
        tokens += batch.shape[0] * (batch.shape[1] - 1)
    loading = tokens / (time.perf_counter() - started)
    return {
        "tokens_per_second": loading,
        "num_workers": config.data.num_workers,
        "tokenizing_bytes_per_second": tokenizing_speed(),
    }


def tokenizing_speed() -> float:
    """Bytes of tales per second, with a tokenizer of VOCAB_SIZE tokens."""
    tales = list(write_tales(TALES_BYTES, seed=0))
    tokenizer = Tokenizer.train(tales, VOCAB_SIZE)
    pieces = [tales[start::8] for start in range(8)]
    with Workers(num_cores()) as workers:
        list(workers.map(len, pieces))  # the processes start
        started = time.perf_counter()
        list(workers.map(partial(_tokenize, tokenizer.to_json()), pieces))
        seconds = time.perf_counter() - started
    return sum(len(tale.encode("utf-8")) for tale in tales) / seconds


def _tokenize(tokenizer_json: str, texts: list[str]) -> int:
    """The number of tokens of `texts`."""
    return len(Encoder(Tokenizer.from_json(tokenizer_json)).encode_documents(texts))
