"""Rule-based Azerbaijani inflection: functions of a stem and its features.

Suffixes are written in the usual notation of Turkic morphology: `A` is a or ə (two-way harmony),
`I` is ı, i, u or ü (four-way), `K` is q or k. A letter in brackets is a buffer, which appears only
where two vowels, or two consonants, would meet: `(n)In` gives ata-nın and ev-in, `(I)m` gives ata-m
and ev-im. The suffixes themselves are in `suffixes`.

Persons are "1sg" to "3pl". The rules are those of the orthography of 2019 and of the school
grammars. The harmony follows the last vowel, in loanwords too (saata, rolu, halda): what other
Turkic languages except has no exceptions here. Suffixes join names without an apostrophe.
"""

from __future__ import annotations

from typing import NamedTuple

from azllm_lightning.azerbaijani import suffixes as s
from azllm_lightning.azerbaijani.suffixes import CASES as CASES
from azllm_lightning.azerbaijani.suffixes import PERSONS as PERSONS

VOWELS = "aıoueəiöü"
_FOUR_WAY = dict(zip("aıoueəiöü", "ııuuiiiüü", strict=True))
_SOFT = {"k": "y", "q": "ğ"}

FORMS = s.VERB_FORMS
DEGREES = {"comparative": "daha", "superlative": "ən", "intensive": "lap"}
_PRONOUN_BASE = {"o": "on", "bu": "bun"}
_PRONOUN_GENITIVE = {"mən": "mənim", "biz": "bizim"}

# Stems whose voices no rule predicts.
_VOICE = {
    "caus": dict(
        pair.split(":")
        for pair in (
            "gəl:gətir gör:göstər qayıt:qaytar oyan:oyat uzan:uzat aldan:aldat isin:isit "
            "öyrən:öyrət tərpən:tərpət dağıl:dağıt qalx:qaldır çıx:çıxar qop:qopar qorx:qorxut "
            "ax:axıt ürk:ürküt hürk:hürküt əm:əmizdir iç:içir düş:düşür qaç:qaçır biş:bişir "
            "keç:keçir uç:uçur köç:köçür bit:bitir bat:batır yat:yatır art:artır it:itir aş:aşır "
            "daş:daşır şiş:şişir doy:doyur öt:ötür"
        ).split()
    ),
    "pass": dict(
        pair.split(":")
        for pair in (
            "ayır:ayrıl çevir:çevril qıvır:qıvrıl yoğur:yoğrul devir:devril sovur:sovrul".split()
        )
    ),
}


class Stem(NamedTuple):
    """A stem, and its shapes before a vowel or a buffer: çörək, çörəy-."""

    plain: str
    oblique: str
    owned: str = ""  # before a possessive, where it is not the same: ağız, ağıza, but ağzı


def noun_stem(word: str, trait: str = "") -> Stem:
    """The stem of a noun, adjective or numeral.

    `trait` names what no rule predicts: "keep" (hüquq, hüququ: k and q stay), "drop" (fikir, fikri,
    fikrə: the last vowel is lost), "own" (ağız, ağzı, but ağıza: it is lost before possessives
    alone), "y" (su, suyu: y joins the vowels everywhere). By rule k becomes y, and q becomes ğ, at
    the end of words of two or more syllables.
    """
    if trait == "drop":
        return Stem(word, word[:-2] + word[-1])
    if trait == "own":
        return Stem(word, word, word[:-2] + word[-1])
    if trait == "y":
        return Stem(word, word + "y")
    return Stem(word, word if trait == "keep" else soften(word))


def verb_stem(infinitive: str, trait: str = "") -> Stem:
    """The stem of a verb: qayıtmaq gives qayıt, qayıd-.

    By rule t becomes d before vowels in stems of two or more syllables; the trait "soften" marks
    the short ones that do the same (getmək, gedir). Raises ValueError if `infinitive` does not end
    in -maq or -mək.
    """
    if not infinitive.endswith(("maq", "mək")):
        raise ValueError(f"{infinitive!r} is not an infinitive: it does not end in -maq or -mək")
    plain = infinitive[:-3]
    return _verb_shapes(plain, soft=trait == "soften")


def _verb_shapes(plain: str, soft: bool = False) -> Stem:
    softens = soft or _syllables(plain) > 1
    return Stem(plain, plain[:-1] + "d" if softens and plain.endswith("t") else plain)


def voiced(stem: Stem, voice: str) -> Stem:
    """The stem of a verb in one of `suffixes.VOICES`: yaz gives yazıl, oxu gives oxun and oxut.

    "caus2" is the causative of a causative: yazdırt.
    """
    *before, word = stem.plain.split(" ")
    kind = "caus" if voice == "caus2" else voice
    irregular = _VOICE.get(kind, {}).get(word)
    if irregular:
        return _verb_shapes(" ".join([*before, irregular]))
    after_vowel = word[-1] in VOWELS
    short = _syllables(word) == 1
    oblique = stem.plain + "y" if after_vowel and short else stem.oblique
    if kind == "caus":
        takes_t = not short and (after_vowel or word[-1] in "lr")
        return _verb_shapes(attach(stem.plain, s.CAUSATIVE_SHORT if takes_t else s.CAUSATIVE))
    if kind == "pass":
        suffix = s.PASSIVE
        if word[-1] == "l":
            suffix = s.PASSIVE_AFTER_L
        elif after_vowel and not short:
            suffix = s.PASSIVE_AFTER_VOWEL
    else:
        suffix = s.REFLEXIVE if kind == "refl" else s.RECIPROCAL
    return _verb_shapes(attach(stem.plain, suffix, oblique))


def attach(word: str, suffix: str, oblique: str | None = None) -> str:
    """`word` + `suffix` (in the notation above).

    `oblique` is the shape of the word before a vowel, by rule if left out. A short word that ends
    in a doubled consonant loses one before a consonant: haqq, haqqı, haqdan. Raises ValueError if
    `word` has no vowel.
    """
    before_vowel = soften(word) if oblique is None else oblique
    ending = _buffered(before_vowel, suffix)
    if ending and (ending[0] in "AI" or ending[0] in VOWELS):
        word = before_vowel
    elif ending:
        # (y)dI without its buffer: uşaqdı, fikirdi, although uşağam, fikrəm; and suydu.
        ending = _buffered(word, suffix)
        word = undouble(word)
    for letter in ending:
        vowel = _last_vowel(word)
        front = vowel not in "aıou"
        harmony = {"A": "ə" if front else "a", "I": _FOUR_WAY[vowel], "K": "k" if front else "q"}
        word += harmony.get(letter, letter)
    return word


def _buffered(word: str, suffix: str) -> str:
    """`suffix` as it follows `word`: with its buffer or without it."""
    if not suffix.startswith("("):
        return suffix
    buffer = suffix[1]
    rest = suffix[3:]
    after_vowel = lower(word[-1]) in VOWELS
    # A buffer vowel separates consonants, a buffer consonant separates vowels.
    return rest if after_vowel == (buffer == "I") else buffer + rest


def noun(stem: Stem, case: str = "nom", plural: bool = False, possessor: str | None = None) -> str:
    """A form of a noun: plural, then the possessive of the person `possessor`, then the case.

    `case` is one of CASES, "equ" (fikrincə) or "ins" ("with": Rəşadla, Leyla ilə).
    """
    word, oblique, owned = stem
    if plural and possessor != "3pl":  # -ları is both "their" and "their ... s"
        word = attach(word, s.PLURAL)
        oblique = owned = word
    if possessor:
        word = attach(word, s.POSSESSIVE[possessor], owned or oblique)
        oblique = word
    if case == "nom":
        return word
    if case == s.INSTRUMENTAL:
        return instrumental(word)
    cases = s.CASE_AFTER_THIRD if possessor in ("3sg", "3pl") else s.CASE
    return attach(word, cases[case], oblique)


def relative(word: str, case: str = "nom", plural: bool = False) -> str:
    """Of a place or time, with what it takes as a noun: evdəki, evdəkilər, evdəkinə, axşamkı."""
    word = attach(word, s.RELATIVE)
    if plural:
        return noun(noun_stem(word), case, plural=True)
    return word if case == "nom" else attach(word, s.CASE_AFTER_THIRD[case])


def pronoun(word: str, case: str = "nom", trait: str = "") -> str:
    """A form of a personal or demonstrative pronoun: mən, mənim; o, onu."""
    if case == "gen" and word in _PRONOUN_GENITIVE:
        return _PRONOUN_GENITIVE[word]
    return word if case == "nom" else noun(noun_stem(pronoun_base(word), trait), case)


def pronoun_base(word: str) -> str:
    """What the cases of a pronoun are formed from: on- of o."""
    return _PRONOUN_BASE.get(word, word)


def verb(stem: Stem, form: str, person: str = "3sg", negative: bool = False) -> str:
    """A form of a verb, finite or not (see FORMS); only finite ones have a `person`.

    Raises ValueError for the first person of "evid", which does not exist.
    """
    if form in s.NONFINITE:
        return attach(stem.plain, s.NONFINITE[form][negative], stem.oblique)
    if form in s.NEGATIVE_ONLY:
        return attach(stem.plain, s.NEGATIVE_ONLY[form])
    if form in s.REPEATED:
        *before, _ = stem.plain.split(" ")
        parts = [verb(stem, part, "3sg", sign) for part, sign in s.REPEATED[form]]
        return " ".join([*before, "-".join(part.split(" ")[-1] for part in parts)])
    suffix, negative_suffix, endings = s.FINITE[form]
    if form == "evid" and person.startswith("1"):
        raise ValueError("-ıb has no first person in Azerbaijani: use perf (-mışam)")
    if form == "aor" and negative and person.startswith("1"):
        negative_suffix = "mAr"  # almaram, but almazsan
    if negative:
        suffix = negative_suffix
    if not suffix:
        return attach(stem.plain, endings[person], stem.oblique)
    word = attach(stem.plain, suffix, stem.oblique)
    if form == "perf" and endings[person].startswith("s"):
        word = word[:-1]  # almısan, not almışsan
    return attach(word, endings[person])


def copula(word: str, person: str = "3sg", oblique: str | None = None) -> str:
    """`word` as a predicate in the present: evdəyəm, yorğunsan, gözəldir."""
    return attach(word, s.COPULA[person], oblique)


def past_copula(person: str = "3sg", hearsay: bool = False) -> str:
    """The past of "to be", a separate word: idim, idin, idi; by hearsay imişəm, imişsən, imiş."""
    return attach("imiş", s.FULL[person]) if hearsay else attach("idi", s.SHORT[person])


def joined_copula(word: str, suffix: str, person: str = "3sg") -> str:
    """`word` with the past (JOINED_PAST, JOINED_HEARSAY) as a suffix: evdəydim, evdəymiş.

    Common, but the written norm after a noun is the separate `past_copula`.
    """
    endings = s.SHORT if suffix == s.JOINED_PAST else s.FULL
    return attach(attach(word, suffix), endings[person])


def question(word: str) -> str:
    """`word` as a question: the particle comes last, after the person ending (gedirsənmi)."""
    return attach(word, s.QUESTION)


def instrumental(word: str) -> str:
    """`word` and "with": joined after a consonant (Rəşadla, gəmilərlə), with ilə after a vowel."""
    return f"{word} ilə" if lower(word[-1]) in VOWELS else attach(word, "lA")


def also(word: str) -> str:
    """`word` and the separate particle "too", in harmony: Rəşad da, Leyla da, Əli də."""
    return attach(f"{word} ", "dA")


def vocative(word: str) -> str:
    """How somebody is called: ay ana, ay oğlum. The word itself does not change."""
    return f"ay {word}"


def compare(adjective: str, degree: str) -> str:
    """An adjective in one of the DEGREES: daha uca, ən uca, lap uca."""
    return f"{DEGREES[degree]} {adjective}"


def ordinal(numeral: str) -> str:
    """The ordinal: beşinci, altıncı, dördüncü."""
    return attach(numeral, s.ORDINAL)


def distributive(numeral: str) -> str:
    """So many each: iki-iki, üç-üç."""
    return f"{numeral}-{numeral}"


def capitalize(word: str) -> str:
    """`word` with a capital first letter: i gives İ, ı gives I; the rest is unchanged."""
    return {"i": "İ", "ı": "I"}.get(word[:1], word[:1].upper()) + word[1:]


def lower(text: str) -> str:
    """`text` in small letters: İ gives i, I gives ı."""
    return text.replace("İ", "i").replace("I", "ı").lower()


def soften(word: str) -> str:
    """`word` before a vowel, by rule: k becomes y and q becomes ğ after two syllables or more."""
    ends = lower(word[-2:])
    if ends[-1] in _SOFT and ends[0] in VOWELS and _syllables(word) > 1:
        return word[:-1] + _SOFT[ends[-1]]
    return word


def undouble(word: str) -> str:
    """`word` before a consonant: of a doubled last consonant one is left after one syllable."""
    doubled = len(word) > 2 and word[-1] == word[-2] and word[-1] not in VOWELS
    return word[:-1] if doubled and _syllables(word) == 1 else word


def _syllables(word: str) -> int:
    return sum(letter in VOWELS for letter in lower(word.rsplit(" ", 1)[-1]))


def _last_vowel(word: str) -> str:
    for letter in reversed(lower(word)):
        if letter in VOWELS:
            return letter
    raise ValueError(f"{word!r} has no vowel for its suffix to follow")
