from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest

from azllm_lightning import azerbaijani
from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani import suffixes as s
from azllm_lightning.azerbaijani.analyser import analyse, is_word, stems
from azllm_lightning.azerbaijani.lexicon import inflect, read_tsv

with (Path(__file__).parent / "forms.tsv").open(encoding="utf-8", newline="") as table:
    FORMS = [row["form"] for row in csv.DictReader(table, delimiter="\t") if " " not in row["form"]]
POS = "noun name pronoun adjective numeral verb adverb particle".split()
LETTERS = set("abcçdeəfgğhxıijkqlmnoöprsştuüvyz -")


def test_what_is_analysed_is_generated_again() -> None:
    """The analyser is the inverse of the generator; it is exact up to one derivation."""
    entries: dict[tuple[str, str], list[object]] = {}
    for entry in stems():
        entries.setdefault((entry.stem, entry.pos), []).append(entry)
    for form in FORMS[::4]:
        found = analyse(form)
        assert found, form
        for one in found:
            if sum(feature in s.DERIVATIONS for feature in one.features) < 2:
                made = [m.lower(inflect(e, one.features)) for e in entries[one.stem, one.pos]]
                assert m.lower(form) in made, one


def readings(word: str) -> set[str]:
    return {".".join((one.stem, *one.features)) for one in analyse(word)}


def test_every_reading_is_found() -> None:
    assert readings("kitabları") == {"kitab.p3pl", "kitab.pl.acc", "kitab.pl.p3sg"}
    assert {"alma.loc", "almaq.act.loc"} <= readings("almada")
    assert readings("evindəkilər") == {"ev.p2sg.kilər", "ev.p3sg.kilər"}
    assert {"görmək.recip.caus.pass.act.p3sg.acc"} <= readings("görüşdürülməsini")


def test_derivations_may_follow_each_other() -> None:
    assert "duz.sız.laş.caus.pass.act" in readings("duzsuzlaşdırılma")
    assert "iş.çı.lıq.dat" in readings("işçiliyə")


def test_the_fewest_suffixes_come_first() -> None:
    found = analyse("almada")
    assert [len(one.features) for one in found] == sorted(len(one.features) for one in found)


def test_capitals_do_not_count() -> None:
    assert readings("İRAQA") == readings("İraqa") == {"İraq.dat"}
    assert readings("KİTABIN") == readings("kitabın")


@pytest.mark.parametrize(
    "word",
    [
        "kitabler",  # harmony
        "ölkəda",
        "qanunı",
        "çörəki",  # k becomes y
        "otaqı",
        "mexanikə-",
        "fikiri",  # the vowel is lost
        "ağzlar",  # but not before a consonant
        "burnlar",
        "haqqdan",  # one of two consonants is lost
        "suın",
        "suda-",
        "evidə",  # the pronominal n
        "ölkəyin",  # the buffer
        "gedirmisən",  # the particle comes last
        "gəlmışdi",
        "getir",  # t becomes d
        "uşağdı",  # k and q stay before a consonant
        "böyüysə",
        "fikrdi",  # and no vowel is lost
        "yazıbam",  # no first person
        "almazam",
        "gəlmişsən",
        "gördük-",
        "yazdırıldıq-mı",
        "saati",  # loanwords follow the harmony, too
        "rolü",
        "əməkdəş",  # -daş does not
        "axşamadak",  # nor does -dək
        "Bakı'ya",  # no apostrophe
        "react",
        "",
    ],
)
def test_wrong_forms_are_no_words(word: str) -> None:
    assert not is_word(word)


@pytest.mark.parametrize("word", ["ana-ata", "tez-tez", "gülə-gülə", "görər-görməz", "beş-beş"])
def test_words_with_hyphens(word: str) -> None:
    assert is_word(word)


def test_the_table_of_stems_is_well_formed() -> None:
    text = (Path(azerbaijani.__file__).parent / "stems.tsv").read_text(encoding="utf-8")
    assert unicodedata.normalize("NFC", text) == text
    rows = read_tsv("stems.tsv")
    keys = [(row["stem"], row["pos"]) for row in rows]
    assert len(keys) == len(set(keys)) > 4000
    assert keys == sorted(keys, key=lambda key: (ORDER.index(key[1]), key[0]))
    for row in rows:
        assert row["pos"] in POS, row
        assert row["trait"] in ("", "keep", "drop", "own", "y", "soften", "compound"), row
        assert (row["trait"] == "compound") == row["facts"].startswith("head="), row
        assert set(m.lower(row["stem"])) <= LETTERS, row
        if row["pos"] == "verb":
            assert row["stem"].endswith(("maq", "mək")), row
        assert row["pos"] != "name" or row["stem"][0] == m.capitalize(row["stem"])[0], row


ORDER = ("verb", "noun", "adjective", "name", "numeral", "pronoun", "adverb", "particle")


def test_a_stem_of_several_tables_is_known_once() -> None:
    keys = [(entry.stem, entry.pos) for entry in stems()]
    assert len(keys) == len(set(keys))


def test_k_and_q_stay_only_where_they_would_change() -> None:
    """A trait that changes nothing would be a mistake in the table."""
    for row in read_tsv("stems.tsv"):
        if row["trait"] == "keep":
            assert m.soften(row["stem"]) != row["stem"], row
