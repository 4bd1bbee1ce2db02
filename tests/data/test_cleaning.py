from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from textwrap import fill

import pytest

from azllm_lightning.data.cleaning import (
    clean,
    cut,
    has_lost_letters,
    is_garbled,
    is_mostly_cyrillic,
    split_at_markers,
)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("s\u04d9h\u01ddr", "səhər"),
        ("\u04d8li, \u018eli, \u018fli", "Əli, Əli, Əli"),
        (unicodedata.normalize("NFD", "gözüçü"), "gözüçü"),
        ("bir\r\niki\rüç\u2028dörd\x0cbeş", "bir\niki\nüç\ndörd\nbeş"),
        ("a\x00b\x07c\x1bd\x7fe\x9df\ufeffg", "abcdefg"),
        ("Bakı\x92nın \x93sözü\x94 \x96 bu\x85 \x9a\x81\x80", "Bakı’nın “sözü” – bu… š€"),
        ("\tsətir\n", "\tsətir\n"),
        ("yarım \ud83d hərf", "yarım \ufffd hərf"),
        ("e\x00\u0301", "é"),
        ("İI ıi 😀 «sitat»", "İI ıi 😀 «sitat»"),
        ("müs\u00adtə\u200bqil\u2060lik\u200e", "müstəqillik"),
        # a word that is divided at the end of a line
        ("Bu kitab\u00ad\nlar yaxşıdır", "Bu kitablar yaxşıdır"),
        ("kitab\u00ad \r\n\u00a0\tlar, ev\u00ad\u2028lər", "kitablar, evlər"),
        ("ки\u00ad\nтаб, əl\u00ad\n\u0130l, kit\u00ad\na\u00ad\nb", "китаб, əlİl, kitab"),
        ("kitab\u00ad\n\nLar\u00ad\n- və\u00ad\n5, bu\n\u00adda", "kitab\n\nLar\n- və\n5, bu\nda"),
        ("5\u00a0min\u202fman\u2003at\u3000", "5 min man at "),
        (
            "ki\u200ctab\u200d və 👨\u200d👩\u200d👧 می\u200cخواهم",
            "kitab və 👨\u200d👩\u200d👧 می\u200cخواهم",
        ),
        ("İstanbul".lower() + " " + "İL".lower(), "istanbul il"),
        # look-alikes within a word: it becomes Latin, or Cyrillic, or stays
        ("Bаkı şəhəri, сəmi 5 kitаb", "Bakı şəhəri, cəmi 5 kitab"),
        ("Азəрбајҹан, Нəнə, ушaглар", "Азәрбајҹан, Нәнә, ушаглар"),
        ("Ушаглар, сәс, сос, ОНА", "Ушаглар, сәс, сос, ОНА"),
        ("COVİD-19-dan, Вi-bi-si, жеlə", "COVİD-19-dan, Bi-bi-si, жеlə"),
        ("кgün", "кgün"),
        ("cоc, сoс", "coc, сос"),
        ("МƏN SƏНИ", "MƏN SƏНИ"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned


def test_a_single_unusual_character_is_enough_to_clean_a_text() -> None:
    """The quick check for printable text misses no character that is to be changed."""
    for code in range(0x10000):  # there are none beyond
        category = unicodedata.category(chr(code))
        if category in ("Cc", "Cs", "Zl", "Zp", "Zs") or code in (0xAD, 0x200B, 0xFEFF):
            kept = chr(code) in "\n\t "
            assert (clean(f"a{chr(code)}b") == f"a{chr(code)}b") == kept, hex(code)


def test_the_rest_of_a_text_does_not_decide_what_becomes_of_a_character() -> None:
    """The quick check, which a control fails, leaves no character to chance."""
    codes = [*range(0x10000), *range(0xE0000, 0xE1000)]
    raw = [f"a{chr(code)}b" for code in codes if chr(code) != "|"]
    thorough = clean("\0" + "|".join(raw)).split("|")
    for text, cleaned in zip(raw, thorough, strict=True):
        assert text == cleaned or clean(text) == cleaned, ascii(text)


def test_mended_words_are_counted() -> None:
    counts: Counter[str] = Counter()
    clean("Bаkı кgün səhər сəmi ушаг", counts)
    assert counts == {"mended_words": 2}


def test_no_word_becomes_mixed() -> None:
    """Whatever letters a word has: it stays as it was, or is in one script."""
    rng = random.Random(0)
    letters = "abcəxoijKXЖжабсоәхјӘİş"
    for _ in range(3000):
        word = "".join(rng.choices(letters, k=rng.randint(1, 5)))
        cleaned = clean(word)
        has_cyrillic = any("\u0400" <= letter <= "\u052f" for letter in cleaned)
        has_latin = any(not "\u0400" <= letter <= "\u052f" for letter in cleaned)
        assert cleaned == word or not (has_cyrillic and has_latin), word
        assert clean(cleaned) == cleaned


CYRILLIC = "АВЕЅІЈКМНОРСТУХҮҺԚԜӘаеѕіјорсухһԛԝәӏ"
LATIN = "ABESIJKMHOPCTYXYHQWƏaesijopcyxhqwəl"
NEVER_OURS = "ЅІԚԜѕіԛԝӏ"


def every_step(text: str) -> str:
    """What `clean` does, without its shortcuts: every step for every text."""
    text = re.sub("[\r\x0b\x0c\u2028\u2029]", "\n", text.replace("\r\n", "\n"))
    text = re.sub("[\x80-\x9f]", lambda c: c[0].encode("latin1").decode("cp1252", "ignore"), text)
    text = "".join(" " if unicodedata.category(char) == "Zs" else char for char in text)
    text = re.sub("\xad+[ \t]*\n[ \t]*(?=[^\\W\\d_])", "", text)
    text = re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u202a\ufeff\U000e0041]", "", text)
    text = re.sub("(?<=[\x20-\u052f])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x20-\u052f])", "", text)
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    text = unicodedata.normalize("NFC", text).replace("i\u0307", "i")
    text = text.replace("\u01dd", "ə").replace("\u018e", "Ə")
    if re.search("Й™|Г¶|Г§|Д±", text):
        return text
    return re.sub(r"[^\W\d_]+", in_one_script, text)


def in_one_script(match: re.Match[str]) -> str:
    """A word that has a Cyrillic letter next to a Latin one in the script of most of its letters,
    or the one that all of them exist in.
    """
    word = match[0]
    scripts = "".join(
        "c"
        if "\u0400" <= letter <= "\u052f"
        else "l"
        if letter <= "\u024f" or letter == "ə"
        else "?"
        for letter in word
    )
    if "cl" not in scripts and "lc" not in scripts:
        return word
    latin = word.translate(str.maketrans(CYRILLIC, LATIN))
    pairs = [pair for pair in zip(LATIN, CYRILLIC, strict=True) if pair[1] not in NEVER_OURS]
    cyrillic = word.translate({ord(to): letter for to, letter in reversed(pairs)})
    is_latin = not re.search("[\u0400-\u052f]", latin)
    is_cyrillic = re.fullmatch("[\u0400-\u052f]+", cyrillic) is not None
    if is_latin and is_cyrillic:
        is_latin = scripts.count("c") * 2 <= len(word)
    return latin if is_latin else cyrillic if is_cyrillic else word


def test_shortcuts_change_no_result() -> None:
    """Texts of common letters, and of everything that a step of cleaning looks for."""
    rng = random.Random(0)
    kinds = (
        "abcəxoijKşöüçğıİNL",
        CYRILLIC + "ЖжбћԱ",
        " \n\t.«»-",
        "\r\x0b\x85\u2028\xa0\u2003\x00\x1b\xad\u200b\u200e\u202a\ufeff\U000e0041",
        "\u200c\u200d\ud83d\u0307\u0301\u01dd\u018e😀م",
        "ÉÃЙГДkВ™¶§±\x99",
        "\u0104\u0105\u2004\u0504\u0405\u1e05",  # with a byte 4 or 5 in UTF-16
    )
    for number in range(4000):
        # a few kinds each, so that each shortcut is taken and not taken
        letters = "".join(rng.sample(kinds, rng.randint(1, 3)))
        text = "".join(rng.choices(letters, k=rng.randint(0, 24)))
        assert clean(text) == every_step(text), (number, text)
        garbled = re.search("É™|É\x99|Ã¶|Ã¼|Ã§|Й™|Г¶|Г§|Д±", text)
        assert is_garbled(text) == (garbled is not None), (number, text)
        found = len(re.findall("[\u0400-\u052f]", text))
        assert is_mostly_cyrillic(text) == (
            found > 0 and 2 * found >= sum(map(str.isalpha, text))
        ), (number, text)


def test_mostly_cyrillic() -> None:
    assert is_mostly_cyrillic("Нәнә нағыл данышыр, 1999.")
    assert not is_mostly_cyrillic("Nənə «Правда» oxuyur.")
    assert not is_mostly_cyrillic("1999.")


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("bir\n<|endoftext|>\niki", ["bir", "iki"]),
        ("bir.<|endoftext|>İki", ["bir.", "İki"]),
        ("<|endoftext|>bir<|endoftext|>", ["", "bir", ""]),
        ("`<|endoftext|>` nişanı, “<|endoftext|>”, «<|endoftext|>»", None),
        ("adi mətn <|endofprompt|>", None),
        ("sətir <|endoftext|> davamı", None),
        ("bir \t<|endoftext|>  \n\n iki", ["bir", "iki"]),
        ("bir\n  <|endoftext|> iki\nüç", ["bir", "iki\nüç"]),
    ],
)
def test_markers_of_the_end_of_a_document(text: str, documents: list[str] | None) -> None:
    assert split_at_markers(text) == (documents or [text])


def test_cut_keeps_short_text_in_one_piece() -> None:
    assert cut("bir\n\niki", 64) == ["bir\n\niki"]
    assert cut("  \n ", 64) == []


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("aaaa\nbbbb\n\ncccc\ndddd", 16, ["aaaa\nbbbb", "cccc\ndddd"]),  # paragraphs
        ("aaaa\nbbbb\ncccc", 10, ["aaaa\nbbbb", "cccc"]),  # lines
        ("Aaa bbb. Ccc ddd. Eee fff ggg.", 22, ["Aaa bbb. Ccc ddd.", "Eee fff ggg."]),  # sentences
        ("aaa bbb ccc", 8, ["aaa bbb", "ccc"]),  # words
        ("əəəəə", 5, ["əə", "əə", "ə"]),  # characters: two bytes each
    ],
)
def test_cut_uses_the_coarsest_boundary(text: str, limit: int, pieces: list[str]) -> None:
    assert cut(text, limit) == pieces


def test_cut_loses_nothing_and_respects_the_limit() -> None:
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(
            rng.choice(["ə", "a", "😀", " ", "\n", "\n\n", ". ", "söz"]) for _ in range(400)
        )
        pieces = cut(text, 64)
        assert all(0 < len(piece.encode("utf-8")) <= 64 for piece in pieces)
        assert "".join("".join(pieces).split()) == "".join(text.split())


@pytest.mark.parametrize("between", ["\n\n", "\n", " ", ". "])
@pytest.mark.parametrize("before", [1, 300, 5_000, 40_000])
def test_a_copy_with_a_foreword_soon_has_the_same_pieces(between: str, before: int) -> None:
    """So that its pieces are duplicates, and not in the training text if they are in validation."""
    rng = random.Random(before)
    words = [between.join([str(rng.randrange(10**9)) for _ in range(n)]) for n in (before, 30_000)]
    foreword, text = words
    pieces = set(cut(text, 4096))
    again = set(cut(f"{foreword}{between}{text}", 4096))
    same = sum(len(piece) for piece in pieces & again)
    assert same > 0.8 * len(text)


@pytest.mark.parametrize("width", [None, 60, 75])
def test_a_copy_with_other_line_breaks_soon_has_the_same_pieces(width: int | None) -> None:
    rng = random.Random(0)
    paragraphs = [" ".join(["söz", *(str(rng.random()) for _ in range(20))]) for _ in range(3000)]

    def words_of_pieces(wrapped: int | None, space: str) -> set[str]:
        lines = [fill(p, wrapped) if wrapped else p for p in paragraphs]
        text = "\n\n".join(lines).replace(" ", space)
        return {" ".join(piece.split()) for piece in cut(text, 4096)}

    pieces = words_of_pieces(None, " ")
    same = pieces & words_of_pieces(width, "  " if width is None else " ")
    assert sum(map(len, same)) > 0.4 * sum(map(len, pieces))


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1254", "cp1251"])
@pytest.mark.parametrize("text", ["Nənə «çörək» üçün gəldi", "Qızıl ördək", "Çox gözəl"])
def test_garbled_text_is_noticed_and_not_mended(encoding: str, text: str) -> None:
    garbled = text.encode("utf-8").decode(encoding, errors="replace")
    counts: Counter[str] = Counter()
    assert is_garbled(garbled)
    clean(garbled, counts)
    assert not counts["mended_words"]
    assert not is_garbled(text)


@pytest.mark.parametrize(
    "text", ["Й. Г. Дадашов, Гянджа", "Ҝүнәш чыхды™", "Bакı § 5", "Дағ ± 2", "Гара Гарајев"]
)
def test_cyrillic_and_signs_are_not_garbled(text: str) -> None:
    assert not is_garbled(text)


LOST = "Azərbaycanın paytaxtında keçirilən tədbirdə nümayəndələr iştirak ediblər, sonra gediblər."


@pytest.mark.parametrize("encoding", ["cp1254", "cp1252", "ascii"])
@pytest.mark.parametrize("text", [LOST, LOST.upper()])
def test_letters_that_an_encoding_did_not_have_are_noticed(encoding: str, text: str) -> None:
    lost = text.encode(encoding, errors="replace").decode(encoding)
    assert "?" in lost
    assert has_lost_letters(lost)
    assert not is_garbled(lost)
    assert not has_lost_letters(text)


@pytest.mark.parametrize(
    "text",
    [
        "Nə?Sonra necə?Bəs kim?Heç kim gəlmədi, heç kim getmədi, hamı oturub susdu. " + LOST,
        " ".join(f"http://a.az/b.php?id={n}&x?y=2 a.az/watch?v=ab{n}" for n in range(20)),
        "Kim? Nə? Harada? Haçan? Niyə? Necə? Neçə? Hara? Haradan?",
        "?a ?b ?c d? e? f? ???",
        "Az?rbaycan keçiril?n",  # too little to tell
    ],
)
def test_question_marks_of_other_texts_are_no_lost_letters(text: str) -> None:
    assert not has_lost_letters(text)
