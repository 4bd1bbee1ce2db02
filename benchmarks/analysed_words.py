"""The share of a text's words that the morphology analyses, and the most frequent others.

    python benchmarks/analysed_words.py TEXT [--unknown 200]

TEXT is any file, folder or glob that `data.path` takes. A word is a run of letters, with hyphens
between them, that does not continue a number (the -ci of 5-ci is none); capitals do not count. The
lexicon is ours, so what is not analysed is for the most part names and words of other languages.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable

from azllm_lightning import compose
from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.analyser import is_word
from azllm_lightning.data.corpus import documents

WORD = re.compile(r"(?<![\w-])[^\W\d_]+(?:-[^\W\d_]+)*")


def main() -> None:
    """Count, analyse and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="file, folder or glob")
    parser.add_argument("--unknown", type=int, default=200, help="unknown words to list")
    args = parser.parse_args()
    data = compose(["data=text", f"data.path={args.text}"]).data
    counts = count_words(document.text for document in documents(data))
    print(report(counts, args.unknown))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, in small letters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    small: Counter[str] = Counter()
    for word, count in counts.items():
        small[m.lower(word)] += count
    return small


def report(counts: Counter[str], unknown: int) -> str:
    """The shares of tokens and types as a Markdown table, and the most frequent unknown words."""
    others = Counter({word: count for word, count in counts.items() if not is_word(word)})
    tokens = 1 - others.total() / counts.total()
    types = 1 - len(others) / len(counts)
    listed = " ".join(f"{word} {count}" for word, count in others.most_common(unknown))
    return "\n".join(
        [
            "| words | number | analysed |",
            "|---|---|---|",
            f"| tokens | {counts.total():,} | {tokens:.1%} |",
            f"| types | {len(counts):,} | {types:.1%} |",
            "",
            f"The {min(unknown, len(others))} most frequent that are not:",
            "",
            listed,
        ]
    )


if __name__ == "__main__":
    main()
