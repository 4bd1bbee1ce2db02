from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from hashlib import blake2b
from itertools import islice

import pytest

from azllm_lightning.azerbaijani.lexicon import lexicon, read_tsv
from azllm_lightning.azerbaijani.tales import known_words, words, write_tales


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(write_tales(2_000_000, seed=0))


def test_the_size_is_reached_and_not_passed_by_a_story(stories: list[str]) -> None:
    sizes = [len(story.encode()) for story in stories]
    assert sum(sizes[:-1]) < 2_000_000 <= sum(sizes)
    assert min(sizes) > 250
    assert max(sizes) < 1500


def test_a_story_depends_on_seed_and_index_alone() -> None:
    assert list(write_tales(5_000, 3)) == list(
        islice(write_tales(50_000, 3), len(list(write_tales(5_000, 3))))
    )
    assert list(write_tales(5_000, 3)) != list(write_tales(5_000, 4))


def test_stories_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from hashlib import blake2b; from azllm_lightning.azerbaijani.tales import *;"
        "text = '|'.join([*write_tales(50_000, 7), *sorted(known_words())]);"
        "print(blake2b(text.encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    text = "|".join([*write_tales(50_000, 7), *sorted(known_words())])
    assert made.stdout.strip() == blake2b(text.encode()).hexdigest()


def test_stories_hardly_repeat(stories: list[str]) -> None:
    assert len(stories) - len(set(stories)) < 0.001 * len(stories)


def test_every_word_is_known(stories: list[str]) -> None:
    assert {word for story in stories for word in words(story)} - known_words() == set()


def test_little_is_known_that_is_never_written() -> None:
    """Words are known because they can be written, capitals included: three megabytes hold nearly all of them."""
    written = {word for story in write_tales(3_000_000, 1) for word in words(story)}
    assert len(known_words() - written) < 0.05 * len(known_words())


def test_the_text_is_clean(stories: list[str]) -> None:
    text = "\n\n".join(stories)
    assert unicodedata.normalize("NFC", text) == text
    allowed = set("abcçdeəfgğhxıijkqlmnoöprsştuüvyzABCÇDEƏFGĞHXIİJKQLMNOÖPRSŞTUÜVYZ \n.,!?:—«»-")
    assert set(text) <= allowed
    for story in stories:
        assert re.findall(r"  | \n|\n\n|\n | [.,!?:]|\.\.|,,|[^.!?:»]\n|[^.!?»]$", story) == [], (
            story
        )
        assert re.findall(r"(?:^|[.!?] |\n— |\n)[a-zçəğışöü]\w*", story) == [], story
        assert re.findall(r"\b(\w+) \1\b", story) == [], story


TENSES = {
    "dedi": "past",
    "dedim": "past",
    "idi": "past",
    "deyir": "pres",
    "deyirəm": "pres",
    "deyib": "evid",
}


def test_the_tenses_do_not_mix(stories: list[str]) -> None:
    for story in stories:
        told = re.sub(r"(?m)^— .*$", "", story)
        seen = re.findall(r" — (dedi|dedim|deyir|deyirəm|deyib)\b", story) + re.findall(
            r"\bidi\b", told
        )
        assert len({TENSES[word] for word in seen}) <= 1, story


def test_all_plots_and_tellers_occur(stories: list[str]) -> None:
    assert sum(row["symbol"].startswith("story.") for row in read_tsv("tales.tsv")) >= 20
    assert (
        0.2
        < sum(story.startswith(("Mənim adım", "Salam! Mən", "Mən ")) for story in stories)
        / len(stories)
        < 0.5
    )
    openings = Counter(story[:25] for story in stories)
    assert openings.most_common(1)[0][1] < 0.02 * len(stories)


def test_every_stem_and_rule_is_used() -> None:
    rules = read_tsv("tales.tsv")
    text = " ".join(row["text"] for row in rules)
    heads = {slot.split(":")[0] for slot in re.findall(r"\{([^}]+)\}", text)}
    heads |= {item[2:] for row in rules for item in row["when"].split() if "=" in item}
    facts = {stem for entry in lexicon().values() for stem in entry.facts.values()}
    idle = [
        e.stem
        for e in lexicon().values()
        if not heads.intersection((e.stem, *e.classes)) and e.stem not in facts
    ]
    assert idle == ["mən", "o"]  # the hero's pronouns
    assert {c for entry in lexicon().values() for c in entry.classes} <= heads
    symbols = {row["symbol"] for row in rules if not row["symbol"].startswith("story.")}
    assert symbols == set(re.findall(r"<([^>]+)>", text))


def test_words_are_split_in_one_way() -> None:
    assert words("— Gəl! — dedi İlqar.\nÜç-dörd gün, «salam»...") == [
        "Gəl",
        "dedi",
        "İlqar",
        "Üç-dörd",
        "gün",
        "salam",
    ]


@pytest.mark.parametrize("num_bytes", [0, -1])
def test_no_bytes_are_refused(num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"num_bytes={num_bytes}"):
        next(write_tales(num_bytes, 0))
