"""Documents: unique, split, and limited in size."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from sample_texts import ROWS, TEXTS, jsonl, make_texts, parquet_bytes, read

from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.corpus import describe_cleaning, documents


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([*ROWS, {"text": "dörd", "site": None}]))
    (tmp_path / "b.txt").write_text("beş", encoding="utf-8")
    by_file = [d.source for d in documents(DataConfig(path=str(tmp_path)))]
    assert by_file == ["a.jsonl"] * 4 + ["b.txt"]
    by_field = [d.source for d in documents(DataConfig(path=str(tmp_path), source_field="site"))]
    assert by_field == ["a", "b", "a", "a.jsonl", "b.txt"]
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": f"{n}", "site": n} for n in range(300)]))
    with pytest.raises(ValueError, match=r"data.source_field=site: more than 256"):
        read(tmp_path, source_field="site")


@pytest.mark.parametrize(("train", "val"), [(4, 2), (2, 4), (5, 1), (4, 3), (3, 4), (7, 1)])
def test_files_are_sources_if_those_of_both_texts_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, val: int
) -> None:
    monkeypatch.setattr("azllm_lightning.data.corpus.MAX_SOURCES", 6)
    for name, count in (("train", train), ("val", val)):
        (tmp_path / name).mkdir()
        for number in range(count):
            text = f"{name} {number}"
            (tmp_path / name / f"{text}.txt").write_text(text, encoding="utf-8")
    config = DataConfig(path=str(tmp_path / "train"), val_path=str(tmp_path / "val"))
    found = [(document.text, document.source) for document in documents(config)]
    is_few = train + val <= 6
    assert len(found) == train + val
    assert all(source == (f"{text}.txt" if is_few else "text") for text, source in found)


def test_files_of_the_same_name_are_sources_by_their_folders(tmp_path: Path) -> None:
    for folder in ("xəbər/2023", "xəbər/2024", "kitab"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.txt").write_text(folder, encoding="utf-8")
    (tmp_path / "kitab" / "b.txt").write_text("b", encoding="utf-8")
    found = {d.text: d.source for d in documents(DataConfig(path=str(tmp_path)))}
    folders = ("xəbər/2023", "xəbər/2024", "kitab")
    assert found == {folder: f"{folder}/a.txt" for folder in folders} | {"b": "b.txt"}


@pytest.mark.parametrize(("most", "names"), [(6, 2), (5, 0)])
def test_files_of_the_same_name_are_compared_once_and_only_as_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, names: int
) -> None:
    """Comparing them for each file again took a minute for thousands of files."""
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{number}" / f"{name}.txt").write_text(f"{number} {name}")
    compared: list[list[str]] = []

    def counted(places: list[str]) -> str:
        compared.append(places)
        return commonprefix(places)

    commonprefix = os.path.commonprefix
    monkeypatch.setattr("azllm_lightning.data.corpus.MAX_SOURCES", most)
    monkeypatch.setattr(os.path, "commonprefix", counted)
    sources = {document.source for document in documents(DataConfig(path=str(tmp_path)))}
    assert len(sources) == (6 if names else 1)
    assert len(compared) == names


def test_exact_duplicates_are_left_out(tmp_path: Path) -> None:
    unique = make_texts(2000)
    (tmp_path / "a.jsonl").write_bytes(
        jsonl([{"text": t} for t in unique] + [{"text": f" {t}\n"} for t in unique[:500]])
    )
    counts: Counter[str] = Counter()
    assert [d.text for d in documents(DataConfig(path=str(tmp_path)), counts)] == unique
    assert counts["duplicates"] == 500


def splits_of(path: Path, **settings: Any) -> dict[str, str]:
    return {d.text: d.split for d in documents(DataConfig(path=str(path), **settings))}


def test_split_never_changes_when_files_are_added(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(jsonl([{"text": t} for t in make_texts(1000)]))
    before = splits_of(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": t} for t in make_texts(1000, seed=1)]))
    after = splits_of(tmp_path)
    assert len(after) > 1900
    assert {text: after[text] for text in before} == before
    assert 20 < sum(split == "val" for split in before.values()) < 90
    wider = splits_of(tmp_path, val_fraction=0.2)
    assert all(wider[text] == "val" for text, split in after.items() if split == "val")


def test_split_is_by_blake2b_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"mətn {n}" for n in range(200)), encoding="utf-8")
    for text, split in splits_of(tmp_path, val_fraction=0.3).items():
        number = int.from_bytes(blake2b(text.encode("utf-8"), digest_size=16).digest()[8:], "big")
        assert split == ("val" if number / 2**64 < 0.3 else "train")


def test_one_long_novel_is_cut_and_split(tmp_path: Path) -> None:
    novel = "\n".join(make_texts(6000))
    (tmp_path / "roman.txt").write_text(novel, encoding="utf-8")
    counts: Counter[str] = Counter()
    found = list(documents(DataConfig(path=str(tmp_path)), counts))
    assert all(len(d.text.encode("utf-8")) <= 16_384 for d in found)
    assert "\n".join(d.text for d in found) == novel
    assert {d.split for d in found} == {"train", "val"}
    assert counts["cut_documents"] == 1


def test_validation_text_of_its_own(tmp_path: Path) -> None:
    many = make_texts(200)
    (tmp_path / "train.jsonl").write_bytes(jsonl([{"text": t} for t in many]))
    (tmp_path / "test.jsonl").write_bytes(jsonl([{"text": t} for t in [*many[:3], "yeni"]]))
    config = DataConfig(path=str(tmp_path / "train.jsonl"), val_path=str(tmp_path / "test.jsonl"))
    found = list(documents(config))
    assert [d.text for d in found if d.split == "val"] == [*many[:3], "yeni"]
    assert [d.text for d in found if d.split == "train"] == many[3:]


def test_max_bytes(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        (tmp_path / f"{name}.jsonl").write_bytes(
            jsonl([{"text": t} for t in make_texts(500, seed)])
        )
    paths = {"path": str(tmp_path / "train.jsonl"), "val_path": str(tmp_path / "test.jsonl")}
    found = list(documents(DataConfig(**paths, max_bytes=20_000, val_fraction=0.1)))
    sizes = {s: sum(len(d.text.encode()) for d in found if d.split == s) for s in ("train", "val")}
    assert 19_000 < sizes["train"] <= 20_000
    assert 1_000 < sizes["val"] <= 2_000


def test_max_bytes_ends_within_a_long_document(tmp_path: Path) -> None:
    novel = "\n".join(make_texts(1500))
    (tmp_path / "roman.txt").write_text(novel, encoding="utf-8")
    config = DataConfig(path=str(tmp_path), max_document_bytes=1000)
    pieces = [document.text for document in documents(config)]
    size = len(pieces[0].encode()) + len(pieces[1].encode())
    for max_bytes, count in ((1, 1), (size - 1, 1), (size, 2), (size + 1, 2), (10**9, len(pieces))):
        counts: Counter[str] = Counter()
        found = list(documents(replace(config, max_bytes=max_bytes), counts))
        assert [document.text for document in found] == pieces[:count]
        assert counts == {"cut_documents": 1}
        if count > 1 and max_bytes <= size + 1:
            assert sum(document.read_bytes for document in found) == size


def test_a_reader_that_ends_early_knows_what_was_dropped(tmp_path: Path) -> None:
    texts = [text for text in make_texts(20) for _ in range(2)]
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text} for text in texts]))
    counts: Counter[str] = Counter()
    found = documents(DataConfig(path=str(tmp_path)), counts)
    next(found)
    found.close()
    assert counts["duplicates"] == 20


@pytest.mark.parametrize("max_bytes", [None, 2000, 10**9])
def test_documents_share_the_bytes_of_the_files(tmp_path: Path, max_bytes: int | None) -> None:
    rows = [{"text": text, "other": text} for text in make_texts(20)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    found = list(documents(DataConfig(path=str(tmp_path), max_bytes=max_bytes)))
    size = (tmp_path / "a.jsonl").stat().st_size
    assert sum(document.stored_bytes for document in found) == pytest.approx(size)


def test_what_max_bytes_leaves_out_is_not_counted_and_not_a_duplicate(tmp_path: Path) -> None:
    """A document for which validation has no more room may be trained on."""
    texts = ["a" * 60, "b" * 60, "a" * 60, "", "c" * 30]
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([{"text": text} for text in texts]))
    paths = {"path": str(tmp_path / "train.jsonl"), "val_path": str(tmp_path / "val.jsonl")}
    config = DataConfig(**paths, max_bytes=100, val_fraction=0.99)
    counts: Counter[str] = Counter()
    found = [(document.text[0], document.split) for document in documents(config, counts)]
    assert found == [("a", "val"), ("b", "train"), ("c", "train")]
    assert counts == {"duplicates": 2, "empty_documents": 1}


def test_the_hub_layout_of_fineweb2(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:2]), ("test", ROWS[2:])):
        folder = tmp_path / "data" / "azj_Latn" / split
        folder.mkdir(parents=True)
        extra = {"dump": "CC-MAIN-2024-10", "language_score": 0.99, "minhash_cluster_size": 3}
        (folder / "000_00000.parquet").write_bytes(
            parquet_bytes([{**row, **extra} for row in rows])
        )
    base = tmp_path / "data" / "azj_Latn"
    found = documents(
        DataConfig(
            path=str(base / "train" / "*.parquet"), val_path=str(base / "test" / "*.parquet")
        )
    )
    assert [(d.text, d.split) for d in found] == [
        (TEXTS[2], "val"),
        (TEXTS[0], "train"),
        (TEXTS[1], "train"),
    ]


def test_path_is_needed() -> None:
    with pytest.raises(ValueError, match=r"data\.path is not set: name the text"):
        list(documents(DataConfig()))


def test_a_file_saved_without_its_letters_is_counted(tmp_path: Path) -> None:
    lost = "keçiril?n t?dbird? nümay?nd?l?r iştirak edibl?r"
    (tmp_path / "a.txt").write_bytes(f"{lost}\n\n{lost} yen?\n\nKim? N?".encode("cp1254"))
    counts: Counter[str] = Counter()
    assert len(list(documents(DataConfig(path=str(tmp_path)), counts))) == 3
    (phrase,) = (phrase for phrase in describe_cleaning(counts) if "?" in phrase)
    assert phrase.startswith("2 documents")
    assert "as UTF-8" in phrase


def test_cleaning_is_described_without_what_did_not_occur() -> None:
    assert describe_cleaning({"duplicates": 1, "cut_documents": 0, "bad_utf8_lines": 1200}) == [
        "1 duplicate removed",
        "broken characters replaced in 1,200 lines",
    ]
    assert describe_cleaning({}) == []
