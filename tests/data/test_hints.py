"""What a text has and its settings leave unused is said once, before it is trained on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.config.compose import compose
from azllm_lightning.data.files import TextFile
from azllm_lightning.data.hints import Look, hints, look
from azllm_lightning.prepare import prepare


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def found(path: Path, *settings: str) -> Look:
    return look(compose(["data=text", f"data.path={path}", *settings]).data)


def rows(field: str, sources: int, footer: str = "") -> list[dict[str, str]]:
    return [
        {"text": f"Sənəd {i}: Kür çayı axır.{footer}", field: f"mənbə {i % sources}"}
        for i in range(300)
    ]


def test_a_field_of_sources_is_named_with_its_values(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows("Source", 7))
    (hint,) = hints(found(path))
    assert hint.startswith("The records have a field 'Source' with 7 values")
    named = compose(["data=text", f"data.path={path}", "data.source_field=source"]).data
    assert hints(look(named)) == []


@pytest.mark.parametrize("field", ["mənbə", "menbe", "MENBE", "Mənbə", "kateqoriya", "Janr"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_hint_spells_the_field_as_the_file_does(tmp_path: Path, field: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        written(path, rows(field, 3))
    else:
        lines = [f"text,{field}", *(f"Sənəd {i},{i % 3}" for i in range(30))]
        path.write_text("\n".join(lines), encoding="utf-8")
    (hint,) = hints(found(path))
    assert f"data.source_field={field} " in hint


@pytest.mark.parametrize(("field", "sources"), [("source", 1), ("source", 300), ("title", 7)])
def test_a_field_that_tells_nothing_apart_is_not_named(
    tmp_path: Path, field: str, sources: int
) -> None:
    assert found(written(tmp_path / "a.jsonl", rows(field, sources))).field is None


def test_a_column_of_a_table_counts_too(tmp_path: Path) -> None:
    lines = ["text,source", *(f"Sənəd {i},{i % 3}" for i in range(30))]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    assert found(tmp_path / "a.csv").values == 3


def test_lines_of_many_documents_are_named_with_the_setting(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows("title", 7, "\nBütün hüquqlar qorunur"))
    (hint,) = hints(found(path))
    assert "1 line is in more than 10%" in hint
    assert "Bütün hüquqlar qorunur" in hint
    assert "data.repeated_lines=30" in hint
    assert hints(found(path, "data.repeated_lines=50")) == []
    few = written(tmp_path / "b.jsonl", rows("title", 7, "\nBütün hüquqlar qorunur")[:50])
    assert hints(found(few)) == []


@pytest.mark.parametrize("raw", ["Oxu \\ud83d paylaş", "Oxu\\u00a0\\ufffd paylaş\\u200b"])
def test_lines_are_counted_as_they_are_cleaned(tmp_path: Path, raw: str) -> None:
    path = tmp_path / "a.jsonl"
    lines = (f'{{"text": "Sənəd {i}: Kür çayı axır.\\n{raw}"}}' for i in range(100))
    path.write_text("\n".join(lines), encoding="utf-8")
    (hint,) = hints(found(path))
    assert "“Oxu \ufffd paylaş”" in hint


def test_the_limit_is_that_of_all_documents_where_only_some_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = rows("title", 7, "\nBütün hüquqlar qorunur")
    for number in range(20):
        written(
            tmp_path / f"{number:02d}.jsonl", [{"text": f"{number} {row['text']}"} for row in texts]
        )
    opened = set()
    original = TextFile.open_text

    def opening(file: TextFile, *more: Any) -> Any:
        opened.add(file.name)
        return original(file, *more)

    monkeypatch.setattr(TextFile, "open_text", opening)
    now = itertools.count()
    monkeypatch.setattr("azllm_lightning.data.hints.time.monotonic", lambda: next(now))
    looked = look(compose(["data=text", f"data.path={tmp_path}"]).data, seconds=635)
    assert not looked.is_complete
    assert opened == {"00.jsonl", "01.jsonl"}
    assert 590 <= looked.documents < 600
    assert looked.all_documents == pytest.approx(6000, rel=0.02)
    assert f"data.repeated_lines={round(0.1 * looked.all_documents)}" in hints(looked)[0]
    half = compose(["data=text", f"data.path={tmp_path}", "data.max_bytes=20_000"]).data
    assert look(half).all_documents < looked.all_documents / 2


def test_only_the_text_that_is_used_is_looked_at(tmp_path: Path) -> None:
    """data.max_bytes may end before the second source, or before a line that is repeated later."""
    texts = rows("source", 1) + [
        {"text": f"Başqa {row['text']}\nBütün hüquqlar qorunur", "source": "başqa"}
        for row in rows("source", 1)
    ]
    path = written(tmp_path / "a.jsonl", texts)
    used = sum(len(row["text"].encode("utf-8")) for row in texts[:300])
    for limit, is_told in ((used, False), (None, True), (2 * used, True)):
        looked = found(path, f"data.max_bytes={'null' if limit is None else limit}")
        assert looked.is_complete
        assert (looked.field is not None) == is_told
        assert (looked.lines > 0) == is_told
    assert found(path, f"data.max_bytes={used}").all_documents == 300


def test_a_limit_holds_for_text_for_training_and_for_validation(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", rows("source", 1))
    val = written(tmp_path / "v.jsonl", [{"text": row["text"] + " V"} for row in rows("title", 1)])
    looked = found(path, f"data.val_path={val}", "data.max_bytes=3000", "data.val_fraction=0.5")
    assert 3000 / 40 < looked.documents < 4500 / 20


def test_text_that_is_given_twice_is_one_source(tmp_path: Path) -> None:
    """Duplicates are not used."""
    texts = [*rows("source", 1), *({**row, "source": "surət"} for row in rows("source", 1))]
    assert found(written(tmp_path / "a.jsonl", texts)).field is None


def test_no_more_losses_are_promised_than_there_will_be(tmp_path: Path) -> None:
    (hint,) = hints(found(written(tmp_path / "a.jsonl", rows("source", 30))))
    assert hint.endswith("gives val_loss for each of the 12 largest.")


def test_the_same_document_many_times_is_no_repeated_line(tmp_path: Path) -> None:
    copies = [{"text": "Qız qalası\nBakıdadır"}] * 200
    assert found(written(tmp_path / "a.jsonl", [*rows("title", 7)[:150], *copies])).lines == 0


def test_a_text_that_cannot_be_read_is_left_to_its_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Bir"}\n{"text": 3}\n{"text', encoding="utf-8")
    assert found(path).documents == 1
    assert caplog.text == ""
    assert look(compose([]).data).documents == 0  # tales
    assert found(tmp_path / "gone.jsonl").documents == 0
    assert look(compose(["data=text", "data.path=https://example.org/a.txt"]).data).documents == 0


def test_prepare_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "a.jsonl", rows("source", 7))
    settings = ["data=text", f"data.path={path}", "data.vocab_size=300", "data.block_size=16"]
    settings += ["data.prepare_workers=1"]
    prepare(compose([*settings, f"data.dir={tmp_path / 'shards'}"], "prepare"))
    assert "note        The records have a field 'source' with 7" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt"])
def test_the_look_ends_at_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also in a file of one large JSON value, whose texts all come at its end."""
    path = tmp_path / f"a.{kind}"
    line = "Kür çayı axır."
    content = json.dumps({"text": [{"text": line}] * 300_000}, ensure_ascii=False)
    if kind != "json":
        content = "\n".join(["text", *[line] * 600_000])
    if kind == "jsonl":
        content = f"{json.dumps({'text': line})}\n" * 300_000
    path.write_text(content, encoding="utf-8")
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    looked = look(compose(["data=text", f"data.path={path}"]).data, seconds=3.0)
    assert not looked.is_complete
    assert next(clock) < 60
