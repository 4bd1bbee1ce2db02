"""The suffixes of Azerbaijani by feature, in the notation of `morphology`.

A pair is (suffix, suffix of the negative). The generator (`morphology`, `lexicon.inflect`) and the
analyser (`analyser`) read the same tables.
"""

from __future__ import annotations

PERSONS = ("1sg", "2sg", "3sg", "1pl", "2pl", "3pl")
# adlıq, yiyəlik, yönlük, təsirlik, yerlik, çıxışlıq
CASES = ("nom", "gen", "dat", "acc", "loc", "abl")
EQUATIVE = "equ"  # "according to, as": fikrincə, uşaqca
INSTRUMENTAL = "ins"

CASE = {"gen": "(n)In", "dat": "(y)A", "acc": "(n)I", "loc": "dA", "abl": "dAn", EQUATIVE: "cA"}
# The pronominal n.
CASE_AFTER_THIRD = {**CASE, "dat": "nA", "loc": "ndA", "abl": "ndAn", EQUATIVE: "ncA"}
PLURAL = "lAr"
POSSESSIVE = dict(zip(PERSONS, ("(I)m", "(I)n", "(s)I", "(I)mIz", "(I)nIz", "lArI"), strict=True))
COPULA = dict(zip(PERSONS, ("(y)Am", "sAn", "dIr", "(y)IK", "sInIz", "dIrlAr"), strict=True))
FULL = {**COPULA, "3sg": "", "3pl": "lAr"}  # after present, perfect and future
SHORT = dict(
    zip(PERSONS, ("m", "n", "", "K", "nIz", "lAr"), strict=True)
)  # after past and conditional
IMPERATIVE = dict(zip(PERSONS, ("(y)Im", "", "sIn", "(y)AK", "(y)In", "sInlAr"), strict=True))
OPTATIVE = dict(
    zip(PERSONS, ("(y)Am", "(y)AsAn", "(y)A", "(y)AK", "(y)AsInIz", "(y)AlAr"), strict=True)
)

# form: (suffix, suffix of the negative, person endings)
FINITE = {
    "pres": ("(y)Ir", "mIr", FULL),  # indiki zaman
    "past": ("dI", "mAdI", SHORT),  # şühudi keçmiş
    "perf": ("mIş", "mAmIş", FULL),  # nəqli keçmiş, -mış
    "evid": ("(y)Ib", "mAyIb", FULL),  # nəqli keçmiş, -ıb
    "fut": ("(y)AcAK", "mAyAcAK", FULL),  # qəti gələcək
    "aor": ("(y)Ar", "mAz", FULL),  # qeyri-qəti gələcək
    "imp": ("", "mA", IMPERATIVE),  # əmr
    "opt": ("", "mA", OPTATIVE),  # arzu
    "cond": ("sA", "mAsA", SHORT),  # şərt
    "nec": ("mAlI", "mAmAlI", COPULA),  # vacib
    "duty": ("(y)AsI", "mAyAsI", COPULA),  # lazım: gedəsiyəm, "am to go"
    "impf": ("(y)IrdI", "mIrdI", SHORT),  # "was doing"
    "impf_evid": ("(y)IrmIş", "mIrmIş", FULL),  # the same, by hearsay
    "pluperf": ("mIşdI", "mAmIşdI", SHORT),  # "had done"
    "pluperf_evid": ("(y)IbmIş", "mAyIbmIş", FULL),  # the same, by hearsay
    "fut_past": ("(y)AcAKdI", "mAyAcAKdI", SHORT),  # "would do"
    "fut_evid": ("(y)AcAKmIş", "mAyAcAKmIş", FULL),
    "aor_past": ("(y)ArdI", "mAzdI", SHORT),  # "used to do, would do"
    "aor_evid": ("(y)ArmIş", "mAzmIş", FULL),
    "cond_past": ("sAydI", "mAsAydI", SHORT),  # "if only ... had done"
    "cond_evid": ("sAymIş", "mAsAymIş", FULL),
    "opt_past": ("(y)AydI", "mAyAydI", SHORT),  # "would that ... had done"
}
# form: (suffix, suffix of the negative). What can be declined is in DECLINED.
NONFINITE = {
    "inf": ("mAK", "mAmAK"),  # məsdər
    "act": ("mA", "mAmA"),  # feili isim: "doing"
    "manner": ("(y)Iş", "mAyIş"),  # gəliş, baxış
    "doer": ("(y)IcI", "mAyIcI"),  # oxuyucu
    # feili sifət
    "part": ("(y)An", "mAyAn"),  # "who does"
    "part_perf": ("mIş", "mAmIş"),  # oxunmuş: "read"
    "part_fut": ("(y)AcAK", "mAyAcAK"),  # gələcək gün; gələcəyi: "that he will come"
    "part_aor": ("(y)Ar", "mAz"),  # axar su, dözülməz
    "part_duty": ("(y)AsI", "mAyAsI"),  # deyiləsi söz: "to be said"
    "part_nec": ("mAlI", "mAmAlI"),  # görməli yer: "worth seeing"
    "done": ("dIK", "mAdIK"),  # before a possessive: gördüyü
    # feili bağlama
    "and": ("(y)Ib", "mAyIb"),  # "having done"
    "by": ("(y)ArAK", "mAyArAK"),
    "when": ("(y)AndA", "mAyAndA"),
    "while": ("(y)Arkən", "mAzkən"),  # -kən ignores the harmony
    "once": ("dIKdA", "mAdIKdA"),  # "when, in case"
    "after": ("dIKdAn", "mAdIKdAn"),  # gəldikdən sonra
    "the_more": ("dIKcA", "mAdIKcA"),  # "the more ... does"
    "until": ("(y)IncA", "mAyIncA"),
    "since": ("(y)AlI", "mAyAlI"),
    "as_if": ("mIşcAsInA", "mAmIşcAsInA"),
}
# Forms that are negative by their meaning.
NEGATIVE_ONLY = {
    "without": "mAdAn",
    "not_yet": "mAmIş",  # gəlməmiş: "before coming"
    "before": "mAmIşdAn",  # gəlməmişdən əvvəl
    "prior": "mAzdAn",  # gəlməzdən əvvəl
}
# form: the two forms that it is made of, (form, negative)
REPEATED = {
    "repeat": (("opt", False), ("opt", False)),  # gülə-gülə
    "as_soon_as": (("aor", False), ("aor", True)),  # görər-görməz
}
DECLINED = frozenset(
    "inf act manner doer part part_perf part_fut part_aor part_duty part_nec done".split()
)
VERB_FORMS = (*FINITE, *NONFINITE, *NEGATIVE_ONLY, *REPEATED)

# qayıdış, qarşılıq, icbar, məchul, in the order in which they follow each other
VOICES = ("refl", "recip", "caus", "caus2", "pass")
# After l, after a vowel, after other consonants, and in short stems in a vowel (de, ye, yu).
REFLEXIVE = "(I)n"
RECIPROCAL = "(I)ş"
PASSIVE_AFTER_L = "(I)n"
PASSIVE_AFTER_VOWEL = "n"
PASSIVE = "(y)Il"
CAUSATIVE = "dIr"
CAUSATIVE_SHORT = "t"

# What makes a word of another word: feature: (suffix, parts of speech it follows, what it gives)
_NOMINAL = ("noun", "name", "adjective", "numeral")
DERIVATIONS = {
    "lıq": ("lIK", _NOMINAL, "noun"),  # dostluq, gözəllik
    "çı": ("çI", ("noun",), "noun"),  # balıqçı
    "lı": ("lI", ("noun", "name", "numeral"), "adjective"),  # duzlu, bakılı
    "sız": ("sIz", ("noun", "name"), "adjective"),  # duzsuz
    "daş": ("daş", ("noun",), "noun"),  # əməkdaş: -daş ignores the harmony
    "vari": ("vari", ("noun",), "adjective"),  # so does -vari: üzükvari
    "cıq": ("cIK", ("noun",), "noun"),  # evcik
    "mtıl": ("(I)mtIl", ("adjective",), "adjective"),  # sarımtıl
    "mtraq": ("(I)mtraq", ("adjective",), "adjective"),  # göyümtraq: -traq ignores the harmony
    "raq": ("rAK", ("adjective",), "adjective"),  # yaxşıraq
    "ca": ("cA", _NOMINAL, "adverb"),  # rusca, yavaşca
    "casına": ("cAsInA", _NOMINAL, "adverb"),  # dostcasına
    "la": ("lA", ("noun", "adjective"), "verb"),  # duzla(maq)
    "lan": ("lAn", ("noun", "adjective"), "verb"),  # evlən(mək)
    "laş": ("lAş", ("noun", "adjective"), "verb"),  # yaxşılaş(maq)
}
HOME = "gil"  # dayımgil, "my uncle's": ignores the harmony
RELATIVE = "kI"  # of a place or a time: evdəki, axşamkı
UP_TO = {"dək": "dək", "can": "cAn"}  # after a dative: evədək, axşamadək; evəcən
ORDINAL = "(I)ncI"
QUESTION = "mI"
JOINED_PAST = "(y)dI"
JOINED_HEARSAY = "(y)mIş"
JOINED_IF = "(y)sA"
IF = "sA"
