from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from byte_scorer import byte_scorer

from azllm_lightning.cli.messages import LANGUAGES, use_language
from azllm_lightning.cli.sizes import size_text
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import progress
from azllm_lightning.data.corpus import Document
from azllm_lightning.inference.scoring import Score, Scorer
from azllm_lightning.inference.second_half import half_scores_by_source
from azllm_lightning.inference.text_scores import (
    TextToScore,
    score_by_source,
    text_report,
    text_results,
    text_to_score,
)

TEXTS = [
    Document("Nazir getdi", "xəbər", "val"),
    Document("Bir gün", "nağıl", "val"),
    Document("Tülkü meşəyə getdi", "nağıl", "val"),
]


def scorer(start: list[int]) -> Scorer:
    return byte_scorer(start, nll=1.0, unknown="g", vocab_size=256)


@pytest.mark.parametrize("scores_of", [score_by_source, half_scores_by_source])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_progress_ends_at_the_size_of_local_files(
    scores_of: Callable[..., object],
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they are stored, with duplicates, and with a file that has no text."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    pack = gzip.compress if suffix else bytes
    texts = [f"Bir gün {number} qonaq gəldi.\nO getdi." for number in range(60)]
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt{suffix}").write_bytes(pack("\n\n".join(texts).encode()))
    (tmp_path / "c.txt").write_bytes(b"")
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    text = text_to_score(DataConfig(path=str(tmp_path)), None)
    assert text.num_bytes == total
    scores_of(scorer([0]), text, None)
    lines = [line for line in capsys.readouterr().err.splitlines() if "evaluating" in line]
    first, last = (line.split(", ")[0] for line in (lines[0], lines[-1]))
    size = size_text(total)
    assert last == f"evaluating: {size} of {size}"
    assert first != last
    assert re.search(r", [\d.,]+ [kMG]B/s, ", lines[-1])


def test_scores_are_summed_by_source() -> None:
    scores = score_by_source(scorer([0]), TextToScore(TEXTS, "mətn", None), stride=4)
    assert list(scores) == ["nağıl", "xəbər"]
    assert (scores["nağıl"].documents, scores["xəbər"].documents) == (2, 1)
    assert scores["nağıl"].nll == len("Bir günTülkü meşəyə getdi".encode())
    results = text_results(scorer([0]), scores, 4)
    assert results["all"] == (scores["nağıl"] + scores["xəbər"]).metrics()
    assert (results["block_size"], results["stride"]) == (8, 4)
    assert text_results(scorer([0]), scores, None)["stride"] == 4


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_table_fits_80_columns(lang: str) -> None:
    """With the largest figures that are likely, and names that differ at their ends."""
    use_language(lang)
    score = Score(90_000, 50_000_000, 350_000_000, 100_000_000, 0, 100_000_000, 350_000_000, 1e9)
    names = [f"çox uzun bir mənbənin adı {i}" for i in range(2)]
    results = text_results(scorer([0]), dict.fromkeys(names, score), None)
    lines = text_report(scorer([0]), results).splitlines()[:4]
    assert max(map(len, lines)) <= 80
    assert len(set(lines)) == 4


def test_what_a_report_says_of_the_model() -> None:
    def notes(start: list[int]) -> list[str]:
        model = scorer(start)
        scores = score_by_source(model, TextToScore(TEXTS, "mətn", None), None)
        report = text_report(model, text_results(model, scores, None)).splitlines()
        return [*report[4:8], " ".join(report[8:])]

    *_, unknown = notes([0])
    assert notes([0])[0] == "windows of 8 tokens, stride 4, fp32"
    assert ("3 unknown tokens, for text that the tokenizer cannot represent: the bpb of") in unknown
    *_, no_start = notes([])
    assert "the first token of each document is not scored (3 tokens, 3 bytes)" in no_start
