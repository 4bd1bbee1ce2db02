from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from azllm_lightning import azerbaijani
from azllm_lightning.azerbaijani.lexicon import inflect, lexicon, read_tsv

FOLDER = Path(azerbaijani.__file__).parent
LETTERS = set("abcçdeəfgğhxıijkqlmnoöprsştuüvyz")


@pytest.mark.parametrize("name", ["lexicon.tsv", "tales.tsv"])
def test_tables_are_well_formed(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert {line.count("\t") for line in lines} == {lines[0].count("\t")}
    assert unicodedata.normalize("NFC", text) == text
    assert not set("ǝәƏ") & set(text) - {"Ə"}, "look-alike schwas"
    assert [line for line in lines if line != line.strip(" ") or "  " in line] == []
    assert len(lines) == len(set(lines))


def test_stems_are_azerbaijani_words() -> None:
    stems = [row["stem"] for row in read_tsv("lexicon.tsv")]
    assert len(stems) == len(set(stems)) > 500
    letters = {s: set(s.replace("İ", "i").replace("I", "ı").lower()) for s in stems}
    assert [stem for stem in stems if letters[stem] - LETTERS - {" ", "-"}] == []


def test_entries_agree_with_their_part_of_speech() -> None:
    for entry in lexicon().values():
        assert entry.pos in ("name", "noun", "pronoun", "adjective", "numeral", "verb")
        assert (entry.pos == "verb") == entry.stem.endswith(("maq", "mək")), entry
        assert entry.trait in ("", "keep", "drop", "own", "y", "soften"), entry
        assert all(stem in lexicon() for stem in entry.facts.values()), entry
        assert entry.stem[0].isupper() == (entry.pos == "name"), entry


def test_short_verbs_in_t_that_soften_say_so() -> None:
    for entry in lexicon().values():
        if entry.pos == "verb" and entry.stem.split()[-1] in ("getmək", "etmək"):
            assert entry.trait == "soften", entry


@pytest.mark.parametrize(
    ("stem", "features", "right"),
    [
        ("ağız", "p3sg.dat", "ağzına"),
        ("küçük", "acc", "küçüyü"),
        ("dost", "p1sg.too", "dostum da"),
        ("getmək", "inf.dat", "getməyə"),
        ("oxumaq", "inf.acc", "oxumağı"),
        ("görmək", "done.p3sg.acc", "gördüyünü"),
        ("bilmək", "aor.2sg.mi", "bilərsənmi"),
        ("qorxmaq", "pres.1sg.neg", "qorxmuram"),
        ("Əli", "is.1sg", "Əliyəm"),
        ("mən", "gen", "mənim"),
        ("mən", "ins", "mənimlə"),
        ("o", "ins", "onunla"),
        ("onlar", "ins", "onlarla"),
        ("Rəşad", "ins", "Rəşadla"),
        ("ana", "p3sg.ins", "anası ilə"),
        ("ana", "ins.p1sg", "anamla"),
        ("iki", "ord", "ikinci"),
        ("diqqətli", "comparative.is.2sg", "daha diqqətlisən"),
        ("uşaq", "pl.p1pl.abl", "uşaqlarımızdan"),
    ],
)
def test_inflect(stem: str, features: str, right: str) -> None:
    entry = lexicon()[stem]
    assert inflect(entry, features.split(".")) == right
    assert inflect(entry, reversed(features.split("."))) == right


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown feature 'dativ' of 'dost'"):
        inflect(lexicon()["dost"], ["dativ"])
