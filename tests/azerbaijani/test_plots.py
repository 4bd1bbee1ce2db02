from __future__ import annotations

from itertools import islice

import pytest

from azllm_lightning.azerbaijani.plots import (
    CONSISTENT,
    ORDER,
    PLAYERS,
    SENTENCE,
    UNFINISHED,
    judge,
)
from azllm_lightning.azerbaijani.tales import write_tales

QUARREL = """\
Rəşadın yeddi yaşı var idi. O, şən və mehriban uşaq idi. Qırmızı bir şarı var idi. Bir səhər \
dostu Aynur da onunla oynamaq istədi.
— Bu gün şarı mən götürəcəyəm, — dedi Rəşad.
— Yox, mən! — qışqırdı Aynur.
Aynur incidi və daha danışmadı. Rəşad tək oynamağa başladı, amma bu, heç maraqlı olmadı.
— Aynur niyə gəlmir? — soruşdu əmisi.
Rəşad hər şeyi danışdı.
— Get, ondan üzr istə, — dedi əmisi.
Ertəsi gün Rəşad Aynurun qapısını döydü.
— Məni bağışla, — dedi.
— Sən də məni bağışla, — gülümsədi Aynur."""


def test_every_tale_holds_its_plot() -> None:
    for tale in islice(write_tales(1_000_000, 11), 60):
        assert judge(tale).reason == CONSISTENT, tale


def test_a_consistent_plot_is_named() -> None:
    assert judge(QUARREL) == (CONSISTENT, "quarrel", "", 1.0)


def test_spaces_lines_and_capitals_do_not_count() -> None:
    assert judge(" ".join(QUARREL.lower().split())).reason == CONSISTENT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Ertəsi gün Rəşad", "Ertəsi gün Nicat"),  # another hero
        ("gülümsədi Aynur", "gülümsədi Leyla"),  # another friend
        ("şarı mən", "topu mən"),  # another toy
        ("dedi əmisi", "dedi dayısı"),  # another elder
    ],
)
def test_players_who_change_are_noticed(old: str, new: str) -> None:
    assert old in QUARREL
    verdict = judge(QUARREL.replace(old, new))
    assert (verdict.reason, verdict.plot) == (PLAYERS, "quarrel")
    assert verdict.rest


def test_one_player_in_two_parts_is_noticed() -> None:
    other_hero = QUARREL.replace("Rəşadın", "Toğrulun").replace("Rəşad", "Toğrul")
    assert judge(other_hero).reason == CONSISTENT
    assert judge(other_hero.replace("Aynur", "Toğrul")).reason == PLAYERS


def test_the_rest_begins_where_the_text_cannot_be_read_on() -> None:
    verdict = judge(QUARREL.replace("gülümsədi Aynur", "gülümsədi Leyla"))
    assert verdict.rest == "Leyla."
    letters = len("".join(QUARREL.split()))  # Leyla has as many as Aynur
    assert verdict.share == (letters - len("Leyla.")) / letters


@pytest.mark.parametrize("letters", [20, 100, 250, 331, 420])
def test_the_beginning_of_a_plot_is_unfinished(letters: int) -> None:
    assert judge(QUARREL[:letters]).reason == UNFINISHED


def test_sentences_in_another_order_make_no_plot() -> None:
    middle = "Rəşad tək oynamağa başladı, amma bu, heç maraqlı olmadı.\n"
    assert middle in QUARREL
    assert judge(QUARREL.replace(middle, "") + "\n" + middle).reason == ORDER


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("heç maraqlı olmadı", "heç maraqlı olmur"),  # the tense changes
        ("— dedi.", "— dedim."),  # the narrator changes
        ("qapısını", "qapısıni"),
    ],
)
def test_what_no_tale_says_is_noticed(old: str, new: str) -> None:
    assert old in QUARREL
    assert judge(QUARREL.replace(old, new)).reason == SENTENCE


def test_other_texts_hold_no_plot() -> None:
    assert judge("Bakı Azərbaycanın paytaxtıdır.").reason == SENTENCE
    assert judge("").reason == UNFINISHED
