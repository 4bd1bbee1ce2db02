"""The filters data.languages, data.near_duplicates and data.repeated_lines."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_texts import make_texts
from sentences import AZERBAIJANI, AZERBAIJANI_IN_ARABIC, OTHERS, TURKISH

from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data import building
from azllm_lightning.data.blocks import Position, RawBlock, clean_block, write_block
from azllm_lightning.data.corpus import documents
from azllm_lightning.data.filters import without_repeated_lines
from azllm_lightning.data.languages import other_languages
from azllm_lightning.data.near_duplicates import SignatureIndex, shingles, signatures
from azllm_lightning.data.pipeline import prepare, prepared_folder
from azllm_lightning.data.remarks import prepare_and_warn
from azllm_lightning.data.removed import Place, Removal, read_removed, write_removed
from azllm_lightning.data.repeated_lines import LineCounter, line_digest, without_lines
from azllm_lightning.data.shards import Manifest
from azllm_lightning.prepare import prepare as prepare_verb

MENU = "Ana səhifə | Xəbərlər | Əlaqə"
RIGHTS = "Bütün hüquqlar qorunur"
FILTERS = {"languages": "az", "near_duplicates": 0.8, "repeated_lines": 20}


def edited(text: str, words: int, seed: int = 0) -> str:
    """`text` with so many of its words replaced."""
    rng = random.Random(seed)
    parts = text.split()
    for index in rng.sample(range(len(parts)), words):
        parts[index] = "dəyişdi"
    return " ".join(parts)


@pytest.fixture
def mixed(tmp_path: Path) -> DataConfig:
    """260 documents with a menu and a notice of rights; some are nearly equal, some Turkish."""
    pytest.importorskip("rensa")
    pytest.importorskip("py3langid")
    originals = [" ".join(make_texts(3, seed)) for seed in range(200)]
    texts = originals + [edited(text, 2) for text in originals[:30]]
    texts += [" ".join(TURKISH[index : index + 2]) for index in range(0, 30, 3)]
    random.Random(1).shuffle(texts)
    texts = [f"{MENU}\n{text}\n{RIGHTS}" for text in texts] + [f"{MENU}\n\n{RIGHTS}\nYeni mətn."]
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts),
        encoding="utf-8",
    )
    return DataConfig(path=str(path), vocab_size=320, block_size=32, val_fraction=0.1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Near-duplicates


def test_shingles_are_triples_of_words() -> None:
    assert shingles("Gəl, dedi: bağa gedək!") == ["gəl dedi bağa", "dedi bağa gedək"]
    assert shingles("İki QIZ.") == ["iki qız"]
    assert shingles("...") == [""]


def test_the_first_similar_document_is_found() -> None:
    pytest.importorskip("rensa")
    texts = [" ".join(make_texts(5, seed)) for seed in range(40)]
    index = SignatureIndex(0.7)
    for signature in signatures(texts):
        assert index.find(signature) is None
        index.add(signature)
    found = [index.find(signature) for signature in signatures(edited(text, 2) for text in texts)]
    assert [similar and similar.number for similar in found] == list(range(40))
    assert all(similar and similar.similarity >= 0.7 for similar in found)
    assert index.find(signatures([edited(texts[0], 40)])[0]) is None


def test_the_similarity_is_that_of_the_triples() -> None:
    pytest.importorskip("rensa")
    text = " ".join(make_texts(20))
    other = edited(text, 12)
    first, second = set(shingles(text)), set(shingles(other))
    exact = len(first & second) / len(first | second)
    one, two = signatures([text, other])
    assert np.mean(one == two) == pytest.approx(exact, abs=0.15)


def test_more_signatures_than_the_index_has_room_for_at_first() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**32, (3000, 128), np.uint32)
    index = SignatureIndex(0.9)
    for row in rows:
        index.add(row)
    assert [index.find(rows[number]) for number in (0, 1500, 2999)] == [
        (number, 1.0) for number in (0, 1500, 2999)
    ]


def test_a_shared_band_is_not_enough() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**32, 128, np.uint32)
    other = np.concatenate([first[:90], rng.integers(0, 2**32, 38, np.uint32)])
    for threshold, expected in ((0.9, None), (0.7, (0, 90 / 128))):
        index = SignatureIndex(threshold)
        index.add(first)
        assert index.find(other) == expected


def test_validation_text_is_kept_out_of_training_in_other_words_too(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    text = " ".join(make_texts(5))
    (tmp_path / "val.txt").write_text(text, encoding="utf-8")
    (tmp_path / "train.txt").write_text(edited(text, 2) + "\n\nBaşqa mətn.", encoding="utf-8")
    config = DataConfig(
        path=str(tmp_path / "train.txt"), val_path=str(tmp_path / "val.txt"), near_duplicates=0.6
    )
    counts: Counter[str] = Counter()
    assert [(each.split, each.text) for each in documents(config, counts)] == [
        ("val", text),
        ("train", "Başqa mətn."),
    ]
    assert counts["near_duplicates"] == 1


# Languages


def test_azerbaijani_is_told_from_turkish_and_others() -> None:
    pytest.importorskip("py3langid")
    assert other_languages(AZERBAIJANI, ["az"]) == [""] * 30
    assert Counter(other_languages(TURKISH, ["az"])) == {"tr": 30}
    assert "" not in other_languages(OTHERS, ["az"])
    assert other_languages(TURKISH + AZERBAIJANI, ["az", "tr"]) == [""] * 60


def test_short_and_cyrillic_azerbaijani_is_kept() -> None:
    pytest.importorskip("py3langid")
    cyrillic = "Бу ҝүн һава чох сојуг олдуғуна ҝөрә евдә галыб китаб охумағы гәрара алдым."
    assert (
        other_languages(["Teşekkürler.", "1 234 567 890 - 2020", "", cyrillic], ["az"]) == [""] * 4
    )
    assert other_languages([cyrillic], ["tr"]) != [""]


def test_azerbaijani_in_arabic_letters_is_kept() -> None:
    """Persian and Arabic, which have the same letters, are not: they are among OTHERS."""
    pytest.importorskip("py3langid")
    texts = [*AZERBAIJANI_IN_ARABIC, " ".join(AZERBAIJANI_IN_ARABIC)]
    assert other_languages(texts, ["az"]) == [""] * len(texts)
    assert other_languages(texts, ["tr", "az"]) == [""] * len(texts)
    assert "" not in other_languages(texts, ["tr"])


def test_a_long_text_is_judged_by_its_middle_too() -> None:
    pytest.importorskip("py3langid")
    azerbaijani = " ".join(AZERBAIJANI)
    assert other_languages([azerbaijani], ["az"]) == [""]
    assert other_languages([OTHERS[0] + " " + azerbaijani], ["az"]) == [""]
    assert other_languages([" ".join(TURKISH)], ["az"]) == ["tr"]


# Repeated lines


def test_lines_are_removed_with_the_gaps_that_they_leave() -> None:
    dropped = {line_digest(MENU), line_digest(RIGHTS)}
    text = f"{MENU}\n\nBirinci.\n\n  {RIGHTS} \n\nİkinci.\n{MENU}"
    assert without_lines(text, dropped) == ("Birinci.\n\nİkinci.", 3)
    untouched = "Bir.\n\n\n\nİki."
    assert without_lines(untouched, dropped) == (untouched, 0)
    assert line_digest(" * * * ") == 0  # a line without a letter belongs to the text


def test_lines_are_counted_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azllm_lightning.data.repeated_lines._MERGE_SIZE", 10)
    rng = np.random.default_rng(0)
    blocks = [rng.integers(1, 30, 7).astype(np.uint64) for _ in range(40)]
    counter = LineCounter()
    for block in blocks:
        counter.add(block)
    expected = {key: count for key, count in Counter(np.concatenate(blocks)).items() if count > 9}
    found = counter.above(9)
    assert dict(zip(*(array.tolist() for array in found), strict=True)) == expected
    assert len(LineCounter().above(1)[0]) == 0


def test_copies_of_a_document_do_not_make_its_lines_repeated(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Şeirin sətri\nikinci sətri\n\n" * 5 + "Başqa mətn.", encoding="utf-8")
    found = documents(DataConfig(path=str(path), repeated_lines=2))
    assert [each.text for each in found] == ["Şeirin sətri\nikinci sətri", "Başqa mətn."]


def test_copies_before_the_limit_leave_no_repeated_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    texts = [f"Sənəd.\n{RIGHTS}"] * 500 + [f"Sənəd {number}.\n{RIGHTS}" for number in range(500)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    counts: Counter[str] = Counter()
    size = 200 * len(texts[-1].encode())
    config = DataConfig(path=str(path), repeated_lines=5, max_bytes=size)
    assert not any(RIGHTS in each.text for each in documents(config, counts))
    assert counts["duplicates"] == 499


def test_a_block_without_lines_knows_its_texts_and_sources() -> None:
    texts = [RIGHTS, f"Bir.\n{RIGHTS}", "İki.", f"{RIGHTS}\n{RIGHTS}", "Üç."]
    raw = RawBlock(texts, ["a", "b", "a", "b", "c"], Position(), is_last=True)
    block = without_repeated_lines(clean_block(raw, 1000), {line_digest(RIGHTS)})
    assert [block.document(index) for index in range(3)] == ["Bir.", "İki.", "Üç."]
    assert [block.names[source] for source in block.sources] == ["b", "a", "c"]
    assert block.pieces.tolist() == [0, 1, 1, 0, 1]
    removed = {number: counts.get("repeated_lines") for number, counts in block.counts.items()}
    assert removed == {"0": 1, "1": 1, "3": 2}
    assert (
        block.digests.tobytes()
        == clean_block(
            RawBlock(["Bir.", "İki.", "Üç."], ["a"] * 3, Position(), is_last=True), 1000
        ).digests.tobytes()
    )


# All of them


def test_what_is_removed_is_counted_and_listed(
    mixed: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_removed(prepare(mixed)) == []
    config = replace(mixed, **FILTERS)
    folder = prepare(config)
    counts = Manifest.read(folder).cleaning
    rows = read_removed(folder)
    by_reason = Counter(row["reason"] for row in rows)
    assert by_reason == {"near_duplicate": 30, "language": 10, "repeated_line": 2}
    assert counts["near_duplicates"] == 30
    assert counts["other_languages"] == 10
    assert counts["repeated_lines"] == 2 * 241
    for row in rows:
        if row["reason"] == "near_duplicate":
            one, other = (set(shingles(row[key])) for key in ("text", "similar_to"))
            assert row["similarity"] >= 0.8
            assert len(one & other) > 0.5 * len(one | other)
        elif row["reason"] == "language":
            assert row["language"] == "tr"
            assert row["text"].split(".")[0] in " ".join(TURKISH)
        else:
            assert (row["text"], row["documents"]) in {(MENU, 241), (RIGHTS, 241)}
    kept = [each.text for each in documents(config)]
    assert len(kept) == sum(split.documents for split in Manifest.read(folder).splits.values())
    assert "Yeni mətn." in kept
    assert not any(MENU in text or RIGHTS in text for text in kept)

    settings = [f"data.{key}={value}" for key, value in FILTERS.items()]
    rest = ["data.vocab_size=320", "data.block_size=32", "data.val_fraction=0.1"]
    prepare_verb(compose(["data=text", f"data.path={mixed.path}", *settings, *rest], "prepare"))
    printed = capsys.readouterr().out
    assert "30 near-duplicates removed" in printed
    assert "removed.jsonl" in printed
    assert f"line of 241 documents: {MENU}" in printed


def test_each_filter_changes_the_cached_folder(mixed: DataConfig) -> None:
    settings: list[dict[str, Any]] = [{}, *({key: value} for key, value in FILTERS.items())]
    folders = {prepared_folder(replace(mixed, **each)) for each in settings}
    assert len(folders) == 4


@pytest.mark.thorough
@pytest.mark.parametrize("max_bytes", [None, 20_000])
def test_the_number_of_processes_does_not_change_what_is_kept(
    mixed: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int | None
) -> None:
    config = replace(mixed, **FILTERS, max_bytes=max_bytes)
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 10_000)
    one, two = (
        contents(
            prepare(replace(config, dir=str(tmp_path / str(workers)), prepare_workers=workers))
        )
        for workers in (1, 2)
    )
    assert one == two


@pytest.mark.parametrize("max_bytes", [None, 20_000])
def test_blocks_do_not_change_what_is_kept(
    mixed: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int | None
) -> None:
    config = replace(mixed, **FILTERS, max_bytes=max_bytes, prepare_workers=1)
    whole = contents(prepare(replace(config, dir=str(tmp_path / "whole"))))
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 10_000)
    assert contents(prepare(replace(config, dir=str(tmp_path / "blocks")))) == whole


@pytest.mark.parametrize(
    ("point", "call"),
    [("write_block", 1), ("write_block", 9), ("write_arrays", 0), ("add_lines", 0)],
)
@pytest.mark.slow
def test_an_interrupted_build_with_filters_goes_on(
    mixed: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, call: int
) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.BLOCK_CHARS", 10_000)
    config = replace(mixed, **FILTERS, prepare_workers=1)
    whole = contents(prepare(replace(config, dir=str(tmp_path / "whole"))))
    original = getattr(building, point)
    calls = []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > call:
            raise KeyboardInterrupt
        return original(*arguments)

    target = replace(config, dir=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(building, point, fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(target)
    assert contents(prepare(target)) == whole


@pytest.mark.parametrize(
    ("setting", "value", "package"),
    [("near_duplicates", 0.8, "rensa"), ("languages", "az", "py3langid")],
)
def test_a_missing_package_is_named(
    small: DataConfig, monkeypatch: pytest.MonkeyPatch, setting: str, value: Any, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = replace(small, **{setting: value})
    wanted = rf"data\.{setting} needs the package {package} .*azllm-lightning\[quality\]"
    with pytest.raises(ValueError, match=wanted):
        prepare(config)
    with pytest.raises(ValueError, match=wanted):
        list(documents(config))
    prepare(small)


@pytest.mark.parametrize("sign", ["\udcff", "\u2028", "\x85", "\x0c"])
def test_removed_text_of_a_source_with_an_odd_name_is_listed(tmp_path: Path, sign: str) -> None:
    name = f"kitab{sign}.txt"
    block = clean_block(RawBlock(["Bir."], [name], Position(), True), 1000)
    write_block(block, tmp_path / "0.npz")
    removals = [Removal(Place(0, 0), language="tr")]
    write_removed(tmp_path / "removed.jsonl", removals, [tmp_path / "0.npz"])
    (row,) = read_removed(tmp_path)
    assert (row["source"], row["text"]) == (name, "Bir.")


def test_an_unknown_language_is_refused(small: DataConfig) -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(ValueError, match=r"data\.languages: the language xq is not known"):
        prepare(replace(small, languages=["az", "xq"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": "Azerbaijani"}, r"data\.languages=Azerbaijani must be a language code"),
        ({"languages": []}, r"data\.languages=\[\] must be a language code"),
        ({"near_duplicates": 80.0}, r"data\.near_duplicates=80\.0 must be between 0\.3 and 1"),
        ({"repeated_lines": 1}, r"data\.repeated_lines=1 must be at least 2"),
    ],
)
def test_a_wrong_value_is_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(path="x", **settings)


def test_data_prepared_without_a_filter_is_named(
    small: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(tmp_path / "out")
    prepare(replace(small, dir=folder))
    caplog.clear()
    prepare_and_warn(replace(small, dir=folder, repeated_lines=50))
    assert "data.repeated_lines=50 (prepared with None)" in caplog.text
