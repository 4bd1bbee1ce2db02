from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from hashlib import blake2b
from pathlib import Path

import pytest

from azllm_lightning import azerbaijani
from azllm_lightning.azerbaijani.lexicon import lexicon, read_tsv
from azllm_lightning.azerbaijani.pairs import (
    PAIRS_OF_EACH,
    RULES,
    Pair,
    minimal_pairs,
    phenomenon_name,
)
from azllm_lightning.azerbaijani.tales import known_words, words
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.pipeline import prepared_folder

TABLE = "pairs_lexicon.tsv"
FUNCTION_WORDS = set(
    "bu o mən sən biz siz onlar mənim sənin bizim sizin kim bir heç hamı başqa niyə indi sabah "
    "yenə vaxt sonra əvvəl qədər yeni".split()
)

# One pair per phenomenon, as a speaker writes it.
KNOWN = {
    "harmony_plural": ("Bu vəkillər gecikir.", "Bu vəkillar gecikir."),
    "harmony_case": ("Nazir universitetə yollandı.", "Nazir universiteta yollandı."),
    "harmony_possessive": ("Mənim redaktorum gecikdi.", "Mənim redaktorüm gecikdi."),
    "harmony_rounding": ("Hökumət qanunu təsdiqlədi.", "Hökumət qanunı təsdiqlədi."),
    "harmony_verb": ("Sabah biz barışacağıq.", "Sabah biz barışəcəyik."),
    "k_to_y": ("Onlar sabitliyi qiymətləndirirlər.", "Onlar sabitliki qiymətləndirirlər."),
    "q_to_gh": ("Dostluğun mənası dəyişib.", "Dostluqun mənası dəyişib."),
    "buffer_consonant": (
        "Klinikanın işçisi mükafatlandırıldı.",
        "Klinikanın işçiyi mükafatlandırıldı.",
    ),
    "pronominal_n": (
        "Professorun jurnalında qüsur aşkarlandı.",
        "Professorun jurnalıda qüsur aşkarlandı.",
    ),
    "question_order": ("Sən yenə gecikirsənmi?", "Sən yenə gecikirmisən?"),
    "person_agreement": ("Mən dünən əsəbiləşdim.", "Mən dünən əsəbiləşdik."),
    "possessor_agreement": ("Mənim redaktorum gecikdi.", "Mənim redaktorun gecikdi."),
    "possessive_chain": (
        "Klinikanın işçisinin layihəsi gecikdi.",
        "Klinikanın işçisi layihəsi gecikdi.",
    ),
    "case_government": ("Nazir hüquqşünasa güvənir.", "Nazir hüquqşünasdan güvənir."),
    "postposition_case": (
        "Konfransdan sonra vəziyyət dəyişdi.",
        "Konfransa sonra vəziyyət dəyişdi.",
    ),
    "negation": ("Heç bir çoban bezmədi.", "Heç bir çoban bezdi."),
    "numeral_singular": ("Ölkədə altmış saray tikildi.", "Ölkədə altmış saraylar tikildi."),
    "tense_adverb": ("Dünən hakim dincəldi.", "Dünən hakim dincələcək."),
}


def by_phenomenon() -> dict[str, list[Pair]]:
    found = defaultdict(list)
    for pair in minimal_pairs():
        found[pair.phenomenon].append(pair)
    return found


def lower(text: str) -> str:
    return text.replace("İ", "i").replace("I", "ı").lower()


def test_a_hundred_pairs_of_each_phenomenon() -> None:
    pairs = minimal_pairs()
    counts = Counter(pair.phenomenon for pair in pairs)
    assert len(counts) >= 12
    assert set(counts.values()) == {PAIRS_OF_EACH}
    assert {pair.right for pair in pairs}.isdisjoint(pair.wrong for pair in pairs)
    for group in by_phenomenon().values():
        assert len({pair.right for pair in group}) == PAIRS_OF_EACH


def test_phenomena_have_a_name_in_both_languages() -> None:
    names = [phenomenon_name(key, lang) for key in by_phenomenon() for lang in ("en", "az")]
    assert all(names)
    assert len(names) == len(set(names))
    assert phenomenon_name("negation") == "negation"
    assert phenomenon_name("negation", "az") == "inkar"
    rows = read_tsv("pairs_phenomena.tsv")
    assert [row["phenomenon"] for row in rows] == list(by_phenomenon())


@pytest.mark.parametrize("phenomenon", KNOWN)
def test_pairs_are_right_and_wrong_as_a_speaker_says(phenomenon: str) -> None:
    pairs = by_phenomenon()
    assert KNOWN.keys() == pairs.keys()
    assert KNOWN[phenomenon] in [(pair.right, pair.wrong) for pair in pairs[phenomenon]]


def test_sentences_differ_in_one_word_only() -> None:
    for pair in minimal_pairs():
        words_of_both = zip(pair.right.split(), pair.wrong.split(), strict=True)
        ((right, wrong),) = [(a, b) for a, b in words_of_both if a != b]
        assert lower(right).strip(".?") == pair.right_form
        assert lower(wrong).strip(".?") == pair.wrong_form


def changed_letters(pair: Pair) -> set[tuple[str, str]]:
    return {(a, b) for a, b in zip(pair.right_form, pair.wrong_form, strict=True) if a != b}


def test_misspelt_forms_differ_in_the_letters_of_the_rule() -> None:
    swaps = set(zip("aəıiuü", "əaiıüu", strict=True))
    allowed = {
        "harmony_plural": swaps,
        "harmony_case": swaps,
        "harmony_possessive": swaps,
        "harmony_verb": swaps | {("y", "ğ"), ("ğ", "y"), ("k", "q"), ("q", "k")},
        "harmony_rounding": set(zip("ıiuü", "uüıi", strict=True)),
        "k_to_y": {("y", "k")},
        "q_to_gh": {("ğ", "q")},
        "buffer_consonant": {("n", "y"), ("s", "y")},
    }
    for phenomenon, letters in allowed.items():
        for pair in by_phenomenon()[phenomenon]:
            assert changed_letters(pair) <= letters, pair
    for pair in by_phenomenon()["pronominal_n"]:
        with_n = {pair.wrong_form[:i] + "n" + pair.wrong_form[i:] for i in range(3, 20)}
        assert pair.right_form in with_n, pair


def test_tales_are_the_same_when_pairs_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared data are named after the files they were made from."""
    folder = shutil.copytree(azerbaijani.__path__[0], tmp_path / "azerbaijani")
    monkeypatch.setattr(azerbaijani, "__path__", [str(folder)])
    before = prepared_folder(DataConfig(name="tales"))
    for name in ("pairs.py", "pairs.tsv", "pairs_phenomena.tsv", TABLE):
        (folder / name).write_text("", encoding="utf-8")
    assert prepared_folder(DataConfig(name="tales")) == before
    (folder / "tales.tsv").write_text("", encoding="utf-8")
    assert prepared_folder(DataConfig(name="tales")) != before


def test_prepared_tales_are_named_after_all_that_they_are_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables, and every module of the folder that tales.py imports."""
    folder = shutil.copytree(azerbaijani.__path__[0], tmp_path / "azerbaijani")
    monkeypatch.setattr(azerbaijani, "__path__", [str(folder)])
    sources = {"lexicon.tsv", "tales.tsv"}
    waiting = {"tales"}
    while waiting:
        source = f"{waiting.pop()}.py"
        sources.add(source)
        code = (folder / source).read_text(encoding="utf-8")
        names = re.findall(r"^from azllm_lightning\.azerbaijani\.(\w+) import", code, re.MULTILINE)
        names += re.findall(r"^from azllm_lightning\.azerbaijani import (\w+)", code, re.MULTILINE)
        waiting |= {name for name in names if f"{name}.py" not in sources}
    assert len(sources) == 8
    for name in sources:
        before = prepared_folder(DataConfig(name="tales"))
        (folder / name).write_text("", encoding="utf-8")
        assert prepared_folder(DataConfig(name="tales")) != before, name


def test_stems_do_not_occur_in_the_tales() -> None:
    tales = {lower(word) for word in known_words()}
    assert lexicon(TABLE).keys() & lexicon().keys() == set()
    for pair in minimal_pairs():
        assert {pair.right_form, pair.wrong_form}.isdisjoint(tales), pair
        assert {lower(word) for word in words(pair.right)} & tales <= FUNCTION_WORDS, pair


def test_the_same_in_every_process() -> None:
    code = (
        "from hashlib import blake2b; from azllm_lightning.azerbaijani.pairs import *;"
        "print(blake2b(repr(minimal_pairs()).encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == blake2b(repr(minimal_pairs()).encode()).hexdigest()


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs_phenomena.tsv", TABLE])
def test_tables_are_well_formed(name: str) -> None:
    text = (Path(azerbaijani.__file__).parent / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert {line.count("\t") for line in lines} == {lines[0].count("\t")}
    assert unicodedata.normalize("NFC", text) == text
    assert len({line.split("\t")[name == "pairs.tsv"] for line in lines}) == len(lines)


def test_every_stem_and_every_rule_has_a_use() -> None:
    frames = " ".join(row["frame"] for row in read_tsv("pairs.tsv"))
    for entry in lexicon(TABLE).values():
        assert entry.classes
        assert all(f"{{{name}" in frames for name in entry.classes), entry
        assert entry.pos in ("noun", "numeral", "verb")
    assert all(f"|{rule}}}" in frames for rule in RULES)
