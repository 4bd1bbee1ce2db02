"""Rule-based Azerbaijani inflection: functions of a stem and its features.

Suffixes are written in the usual notation of Turkic morphology: `A` is a or ə (two-way harmony),
`I` is ı, i, u or ü (four-way), `K` is q or k. A letter in brackets is a buffer, which appears only
where two vowels, or two consonants, would meet: `(n)In` gives ata-nın and ev-in, `(I)m` gives ata-m
and ev-im.

Persons are "1sg" to "3pl". The rules are those of the orthography of 2019 and of the school
grammars.
"""

from __future__ import annotations

from typing import NamedTuple

VOWELS = "aıoueəiöü"
_FOUR_WAY = dict(zip("aıoueəiöü", "ııuuiiiüü", strict=True))
_SOFT = {"k": "y", "q": "ğ"}

PERSONS = ("1sg", "2sg", "3sg", "1pl", "2pl", "3pl")
# adlıq, yiyəlik, yönlük, təsirlik, yerlik, çıxışlıq
CASES = ("nom", "gen", "dat", "acc", "loc", "abl")

_CASE = {"gen": "(n)In", "dat": "(y)A", "acc": "(n)I", "loc": "dA", "abl": "dAn"}
_CASE_AFTER_THIRD = {**_CASE, "dat": "nA", "loc": "ndA", "abl": "ndAn"}  # the pronominal n
_POSSESSIVE = dict(zip(PERSONS, ("(I)m", "(I)n", "(s)I", "(I)mIz", "(I)nIz", "lArI"), strict=True))
_COPULA = dict(zip(PERSONS, ("(y)Am", "sAn", "dIr", "(y)IK", "sInIz", "dIrlAr"), strict=True))
_FULL = {**_COPULA, "3sg": "", "3pl": "lAr"}  # after present, perfect and future
_SHORT = dict(
    zip(PERSONS, ("m", "n", "", "K", "nIz", "lAr"), strict=True)
)  # after past and conditional
_IMPERATIVE = dict(zip(PERSONS, ("(y)Im", "", "sIn", "(y)AK", "(y)In", "sInlAr"), strict=True))
_OPTATIVE = dict(
    zip(PERSONS, ("(y)Am", "(y)AsAn", "(y)A", "(y)AK", "(y)AsInIz", "(y)AlAr"), strict=True)
)

# form: (suffix, suffix of the negative, person endings)
_FINITE = {
    "pres": ("(y)Ir", "mIr", _FULL),  # indiki zaman
    "past": ("dI", "mAdI", _SHORT),  # şühudi keçmiş
    "perf": ("mIş", "mAmIş", _FULL),  # nəqli keçmiş, -mış
    "evid": ("(y)Ib", "mAyIb", _FULL),  # nəqli keçmiş, -ıb
    "fut": ("(y)AcAK", "mAyAcAK", _FULL),  # qəti gələcək
    "aor": ("(y)Ar", "mAz", _FULL),  # qeyri-qəti gələcək
    "imp": ("", "mA", _IMPERATIVE),  # əmr
    "opt": ("", "mA", _OPTATIVE),  # arzu
    "cond": ("sA", "mAsA", _SHORT),  # şərt
    "nec": ("mAlI", "mAmAlI", _COPULA),  # vacib
    "impf": ("(y)IrdI", "mIrdI", _SHORT),  # "was doing"
    "impf_evid": ("(y)IrmIş", "mIrmIş", _FULL),  # the same, by hearsay
    "pluperf": ("mIşdI", "mAmIşdI", _SHORT),  # "had done"
    "fut_past": ("(y)AcAKdI", "mAyAcAKdI", _SHORT),  # "would do"
}
# form: (suffix, suffix of the negative)
_NONFINITE = {
    "inf": ("mAK", "mAmAK"),  # məsdər
    "and": ("(y)Ib", "mAyIb"),  # feli bağlama: "having done"
    "when": ("(y)AndA", "mAyAndA"),
    "while": ("(y)Arkən", "mAzkən"),
    "by": ("(y)ArAK", "mAyArAK"),
    "part": ("(y)An", "mAyAn"),  # feli sifət: "who does"
    "done": ("dIK", "mAdIK"),  # feli sifət before a possessive: gördüyü
}
FORMS = (*_FINITE, *_NONFINITE)
DEGREES = {"comparative": "daha", "superlative": "ən", "intensive": "lap"}
_PRONOUN_BASE = {"o": "on", "bu": "bun"}
_PRONOUN_GENITIVE = {"mən": "mənim", "biz": "bizim"}


class Stem(NamedTuple):
    """A stem, and its shape before a suffix that begins with a vowel or a buffer: çörək, çörəy-."""

    plain: str
    oblique: str


def noun_stem(word: str, trait: str = "") -> Stem:
    """The stem of a noun, adjective or numeral.

    `trait` names what no rule predicts: "keep" (hüquq, hüququ: k and q stay), "drop" (ağız, ağzı:
    the last vowel is lost), "y" (su, suyu: y joins the vowels everywhere). By rule k becomes y, and
    q becomes ğ, at the end of words of two or more syllables.
    """
    if trait == "drop":
        return Stem(word, word[:-2] + word[-1])
    if trait == "y":
        return Stem(word, word + "y")
    return Stem(word, word if trait == "keep" else _soften(word))


def verb_stem(infinitive: str, trait: str = "") -> Stem:
    """The stem of a verb: qayıtmaq gives qayıt, qayıd-.

    By rule t becomes d before vowels in stems of two or more syllables; the trait "soften" marks
    the short ones that do the same (getmək, gedir). Raises ValueError if `infinitive` does not end
    in -maq or -mək.
    """
    if not infinitive.endswith(("maq", "mək")):
        raise ValueError(f"{infinitive!r} is not an infinitive: it does not end in -maq or -mək")
    plain = infinitive[:-3]
    softens = trait == "soften" or _syllables(plain) > 1
    return Stem(plain, plain[:-1] + "d" if softens and plain.endswith("t") else plain)


def attach(word: str, suffix: str, oblique: str | None = None) -> str:
    """`word` + `suffix` (in the notation above).

    `oblique` is the shape of the word before a vowel, by rule if left out. Raises ValueError if
    `word` has no vowel.
    """
    if suffix and (suffix[0] in "(AI" or suffix[0] in VOWELS):
        word = _soften(word) if oblique is None else oblique
    if suffix.startswith("("):
        buffer = suffix[1]
        rest = suffix[3:]
        after_vowel = _lower(word[-1]) in VOWELS
        # A buffer vowel separates consonants, a buffer consonant separates vowels.
        suffix = rest if after_vowel == (buffer == "I") else buffer + rest
    for letter in suffix:
        vowel = _last_vowel(word)
        front = vowel not in "aıou"
        harmony = {"A": "ə" if front else "a", "I": _FOUR_WAY[vowel], "K": "k" if front else "q"}
        word += harmony.get(letter, letter)
    return word


def noun(stem: Stem, case: str = "nom", plural: bool = False, possessor: str | None = None) -> str:
    """A form of a noun: plural, then the possessive of the person `possessor`, then the case."""
    word, oblique = stem
    if plural and possessor != "3pl":  # -ları is both "their" and "their ... s"
        word = attach(word, "lAr")
        oblique = word
    if possessor:
        word = attach(word, _POSSESSIVE[possessor], oblique)
        oblique = word
    if case == "nom":
        return word
    return attach(
        word, (_CASE_AFTER_THIRD if possessor in ("3sg", "3pl") else _CASE)[case], oblique
    )


def pronoun(word: str, case: str = "nom") -> str:
    """A form of a personal or demonstrative pronoun: mən, mənim; o, onu."""
    if case == "gen" and word in _PRONOUN_GENITIVE:
        return _PRONOUN_GENITIVE[word]
    return word if case == "nom" else noun(noun_stem(_PRONOUN_BASE.get(word, word)), case)


def verb(stem: Stem, form: str, person: str = "3sg", negative: bool = False) -> str:
    """A form of a verb, finite or not (see FORMS); only finite ones have a `person`.

    Raises ValueError for the first person of "evid", which does not exist.
    """
    if form in _NONFINITE:
        return attach(stem.plain, _NONFINITE[form][negative], stem.oblique)
    suffix, negative_suffix, endings = _FINITE[form]
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


def copula(word: str, person: str = "3sg") -> str:
    """`word` as a predicate in the present: evdəyəm, yorğunsan, gözəldir."""
    return attach(word, _COPULA[person])


def past_copula(person: str = "3sg", hearsay: bool = False) -> str:
    """The past of "to be", a separate word: idim, idin, idi; by hearsay imişəm, imişsən, imiş."""
    return attach("imiş", _FULL[person]) if hearsay else attach("idi", _SHORT[person])


def question(word: str) -> str:
    """`word` as a question: the particle comes last, after the person ending (gedirsənmi)."""
    return attach(word, "mI")


def instrumental(word: str) -> str:
    """`word` with -la, -lə after a consonant (Rəşadla, gəmilərlə), with ilə after a vowel."""
    return f"{word} ilə" if _lower(word[-1]) in VOWELS else attach(word, "lA")


def also(word: str) -> str:
    """`word` and the separate particle "too", in harmony: Rəşad da, Leyla da, Əli də."""
    return attach(f"{word} ", "dA")


def compare(adjective: str, degree: str) -> str:
    """An adjective in one of the DEGREES: daha uca, ən uca, lap uca."""
    return f"{DEGREES[degree]} {adjective}"


def ordinal(numeral: str) -> str:
    """The ordinal: beşinci, altıncı, dördüncü."""
    return attach(numeral, "(I)ncI")


def capitalize(word: str) -> str:
    """`word` with a capital first letter: i gives İ, ı gives I; the rest is unchanged."""
    return {"i": "İ", "ı": "I"}.get(word[:1], word[:1].upper()) + word[1:]


def _lower(text: str) -> str:
    return text.replace("İ", "i").replace("I", "ı").lower()


def _syllables(word: str) -> int:
    return sum(letter in VOWELS for letter in _lower(word.rsplit(" ", 1)[-1]))


def _soften(word: str) -> str:
    ends = _lower(word[-2:])
    if _syllables(word) > 1 and ends[-1] in _SOFT and ends[0] in VOWELS:
        return word[:-1] + _SOFT[ends[-1]]
    return word


def _last_vowel(word: str) -> str:
    for letter in reversed(_lower(word)):
        if letter in VOWELS:
            return letter
    raise ValueError(f"{word!r} has no vowel for its suffix to follow")
