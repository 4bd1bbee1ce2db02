"""Made-up Azerbaijani text, and ways to write and read it, for the tests of the data."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import documents

WORDS = (
    "Bakı şəhər kitab oxu gəl göz üçün və ilə nənə ağac günəş dəniz yol uşaq məktəb ev su çörək "
    "alma İlqar Ələkbər qırmızı böyük kiçik gözəl yaxşı bir iki üç dörd beş sabah axşam gecə "
    "gündüz yağış qar külək bulud ulduz ay"
).split()
SUFFIXES = ("", *"lar lər da də dan dən ın in un nın ımız iniz 'dan -nın".split())

ROWS = [
    {"id": 1, "text": "Birinci mətn, «sitat»;\nikinci sətir.", "site": "a"},
    {"id": 2, "text": 'İkinci "mətn" ə 😀', "site": "b"},
    {"id": 3, "text": "123", "site": "a"},
]
TEXTS = [row["text"] for row in ROWS]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """`count` different documents of a few sentences each."""
    rng = random.Random(seed)
    return [
        f"{number}. " + " ".join(_sentence(rng) for _ in range(rng.randint(2, 6)))
        for number in range(count)
    ]


def _sentence(rng: random.Random) -> str:
    words = [rng.choice(WORDS) + rng.choice(SUFFIXES) for _ in range(rng.randint(4, 12))]
    return " ".join(words) + "."


def read(path: Any, **settings: Any) -> list[str]:
    """The texts of the documents at a path, or a list of them."""
    paths = path if isinstance(path, list) else str(path)
    return [document.text for document in documents(DataConfig(path=paths, **settings))]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


def parquet_bytes(rows: list[dict[str, Any]], **options: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()
