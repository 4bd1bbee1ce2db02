from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from hashlib import blake2b
from itertools import islice, pairwise

import pytest

from azllm_lightning.azerbaijani import morphology as m
from azllm_lightning.azerbaijani.lexicon import inflect, lexicon, read_tsv
from azllm_lightning.azerbaijani.tales import known_words, words, write_tales

SIZE = 1_000_000


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(write_tales(SIZE, seed=0))


def test_the_size_is_exceeded_by_less_than_a_story(stories: list[str]) -> None:
    sizes = [len(story.encode()) for story in stories]
    assert sum(sizes[:-1]) < SIZE <= sum(sizes)
    assert min(sizes) > 250
    assert max(sizes) < 1500


def test_a_story_depends_on_seed_and_index_alone() -> None:
    few = list(write_tales(5_000, 3))
    assert few == list(islice(write_tales(50_000, 3), len(few)))
    assert few != list(write_tales(5_000, 4))


@pytest.mark.slow
def test_stories_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from hashlib import blake2b; from azllm_lightning.azerbaijani.tales import *;"
        "text = '|'.join([*write_tales(50_000, 7), *sorted(known_words())]);"
        "print(blake2b(text.encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    text = "|".join([*write_tales(50_000, 7), *sorted(known_words())])
    assert run.stdout.strip() == blake2b(text.encode()).hexdigest()


def test_stories_hardly_repeat(stories: list[str]) -> None:
    assert len(stories) - len(set(stories)) < 0.001 * len(stories)


@pytest.mark.thorough
def test_every_word_is_known(stories: list[str]) -> None:
    assert {word for story in stories for word in words(story)} - known_words() == set()


@pytest.mark.slow
def test_little_is_known_that_is_never_written() -> None:
    """Words are known because they can be written, with their capitals."""
    written = {word for story in write_tales(3_000_000, 1) for word in words(story)}
    assert len(known_words() - written) < 0.05 * len(known_words())


def test_the_text_is_clean(stories: list[str]) -> None:
    text = "\n\n".join(stories)
    assert unicodedata.normalize("NFC", text) == text
    allowed = set("abcçdeəfgğhxıijkqlmnoöprsştuüvyzABCÇDEƏFGĞHXIİJKQLMNOÖPRSŞTUÜVYZ \n.,!?:—«»-")
    assert set(text) <= allowed
    for story in stories:
        spacing = r"  | \n|\n\n|\n | [.,!?:]|\.\.|,,|[^.!?:»]\n|[^.!?»]$"
        assert re.findall(spacing, story) == [], story
        assert re.findall(r"(?:^|[.!?] |\n— |\n|: «)[a-zçəğışöü]\w*", story) == [], story
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
        narration = re.sub(r"(?m)^— .*$", "", story)
        seen = re.findall(r" — (dedi|dedim|deyir|deyirəm|deyib)\b", story)
        seen += re.findall(r"\bidi\b", narration)
        assert len({TENSES[word] for word in seen}) <= 1, story


def forms_of_names() -> dict[str, str]:
    """The stem by each form of a child's name."""
    names = [entry for entry in lexicon().values() if "name" in entry.classes]
    forms = {inflect(entry, [case]): entry.stem for entry in names for case in (*m.CASES, "ins")}
    return forms | {
        inflect(entry, ["is", person]): entry.stem for entry in names for person in m.PERSONS
    }


INTRODUCTION = re.compile(r"(dostu|dostum|yoldaşı|yoldaşım|adı|Bu,) $", re.IGNORECASE)


def test_a_second_child_is_introduced(stories: list[str]) -> None:
    """Whoever is not the hero is a friend, a classmate or a new pupil, at first mention."""
    names = forms_of_names()
    introduced = 0
    for story in stories:
        hero = ""
        known = set()
        for match in re.finditer(r"\w+", story):
            name = names.get(match[0], "")
            if not name or name in known:
                continue
            known.add(name)
            if hero and name not in ("Lalə", "Nərgiz", "Sevinc"):  # words as well as names
                assert INTRODUCTION.search(story[: match.start()]), story
                introduced += 1
            hero = hero or name
    assert introduced > 0.3 * len(stories)


def test_a_subject_that_stays_the_same_is_left_out(stories: list[str]) -> None:
    """Azerbaijani drops it: few sentences begin with the name that began the one before."""
    names = forms_of_names()
    repeated = 0
    sentences = 0
    for story in stories:
        starts = re.findall(r"(?:^|[.!?] |\n)(?:— )?(\w+)", story)
        subjects = [names.get(word) for word in starts]
        sentences += len(subjects)
        repeated += sum(a is not None and a == b for a, b in pairwise(subjects))
    assert repeated < 0.01 * sentences


def test_what_is_still_true_of_a_narrating_hero_is_in_the_present(stories: list[str]) -> None:
    text = "\n".join(stories)
    assert "saçı var idi." in text
    assert "saçım var." in text
    assert "saçım var idi." not in text


def test_all_plots_and_narrators_occur(stories: list[str]) -> None:
    assert sum(row["symbol"].startswith("story.") for row in read_tsv("tales.tsv")) >= 20
    first_person = [
        s for s in stories if s.startswith(("Mənim adım", "Adım", "Salam! Mən", "Mən "))
    ]
    assert 0.2 < len(first_person) / len(stories) < 0.5
    openings = Counter(story[:25] for story in stories)
    assert openings.most_common(1)[0][1] < 0.02 * len(stories)


def test_every_stem_and_rule_is_used() -> None:
    rules = read_tsv("tales.tsv")
    text = " ".join(row["text"] for row in rules)
    heads = {slot.split(":")[0] for slot in re.findall(r"\{([^}]+)\}", text)}
    heads |= {item[2:] for row in rules for item in row["when"].split() if "=" in item}
    entries = lexicon().values()
    used = heads | {stem for entry in entries for stem in entry.facts.values()}
    idle = [entry.stem for entry in entries if used.isdisjoint((entry.stem, *entry.classes))]
    assert idle == ["mən", "o", "biz", "onlar"]  # the hero's pronouns
    assert {name for entry in entries for name in entry.classes} <= heads
    facts = {fact for entry in entries for fact in entry.facts}
    assert facts == set(re.findall(r"@(\w+)", text))
    symbols = {row["symbol"] for row in rules if not row["symbol"].startswith("story.")}
    assert symbols == set(re.findall(r"<([^>]+)>", text))


def test_words_are_split_in_one_way() -> None:
    text = "— Gəl! — dedi İlqar.\nÜç-dörd gün, «salam»..."
    assert words(text) == ["Gəl", "dedi", "İlqar", "Üç-dörd", "gün", "salam"]


@pytest.mark.parametrize("num_bytes", [0, -1])
def test_no_bytes_are_refused(num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"num_bytes={num_bytes}"):
        next(write_tales(num_bytes, 0))
