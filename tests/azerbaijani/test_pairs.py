from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import pytest

from azllm_lightning import azerbaijani
from azllm_lightning.azerbaijani.analyser import is_word
from azllm_lightning.azerbaijani.lexicon import lexicon, read_tsv
from azllm_lightning.azerbaijani.pairs import (
    PAIRS_OF_EACH,
    Pair,
    minimal_pairs,
    phenomenon_group,
    phenomenon_name,
    turkish_pairs,
)
from azllm_lightning.azerbaijani.tales import known_words, words, write_tales
from azllm_lightning.azerbaijani.wrong_forms import RULES
from azllm_lightning.config.data import DataConfig
from azllm_lightning.data.pipeline import prepared_folder

TABLE = "pairs_lexicon.tsv"
FUNCTION_WORDS = set(
    "bu o mən sən biz siz onlar mənim sənin bizim sizin onun öz kim bir heç hamı bütün hər başqa "
    "niyə nə indi sabah yenə vaxt sonra əvvəl qədər yeni köhnə çox çoxdan artıq xeyli həmin əgər "
    "qoy ki da də iki altı dəfə gün həftə gələn keçən mənə məndən məni sənə səndən bizə bizdən "
    "sizə sizdən sizi onlara onlardan onları idim idik edir edib atır can sıra bağlandı adı başladı"
    " müzakirə təmir iclas hamımız topladı olub olur alıb cəhd mütləq gecə yenidən "
    "etdi etdilər xatırladı".split()
)

# Pairs of each phenomenon, as a speaker writes them.
KNOWN = """
harmony_plural: Bu müfəttişlər ziyafətə gecikir. *müfəttişlar
harmony_plural: Bu ustalar qurultaya gecikir. *ustalər
harmony_case: Onlar körpüdə görüşdülər. *körpüda
harmony_case: Onlar akademiyada görüşdülər. *akademiyadə
harmony_possessive: Bizim vəkilimiz seminardan ayrıldı. *vəkilımız
harmony_possessive: Bizim həmkarımız sərgidən ayrıldı. *həmkarimiz
harmony_rounding: Bizim professorumuz təcrübəlidir. *professorımız
harmony_rounding: Bizim hüquqşünasımız təcrübəlidir. *hüquqşünasumuz
harmony_verb: Dünən onlar əsəbiləşdilər. *əsəbiləşdılar
harmony_verb: Dünən onlar yubandılar. *yubandilər
k_to_y: İşçi dürüstlüyü xatırladı. *dürüstlükü
k_to_y: Aktyor yükü xatırladı. *yüyü
q_to_gh: Komandan bolluğu xatırladı. *bolluqu
q_to_gh: Gömrükçü hüququ xatırladı. *hüquğu
buffer_consonant: Direktorun bəyannaməsi tamamlandı. *bəyannaməyi
buffer_consonant: Komandan ssenariyə toxundu. *ssenarisə
pronominal_n: Professorun cədvəlində qüsur aşkarlandı. *cədvəlidə
pronominal_n: Mənim müqaviləmdə qüsur aşkarlandı. *müqaviləmndə
vowel_drop: Bu məqalə müğənninin zehnindən bəhs edir. *zehinindən
vowel_drop: Bu məqalə müavinin təbibindən bəhs edir. *təbbindən
t_to_d: O yenə azaldır. *azaltır
t_to_d: O yenə satır. *sadır
question_order: Sən əməliyyatda tərləyirsənmi? *tərləyirmisən
question_order: Siz ziyafətdə küsürsünüzmü? *küsürmüsünüz
person_agreement: Mən dünən yenə duruxdum. *duruxduq
person_agreement: Biz dünən yenə duruxduq. *duruxdum
agreement_of_moods: Əgər sən bu dəfə də gileylənsən, nazir əsəbiləşəcək. *gileylənsəniz
agreement_of_moods: Əgər siz bu dəfə də gileylənsəniz, nazir əsəbiləşəcək. *gileylənsən
copula_agreement: Mən artıq peşəkar zərgərəm. *zərgərsən
copula_agreement: Sən artıq peşəkar zərgərsən. *zərgərəm
past_copula: Mən o vaxt general idim. *idin
past_copula: Sən o vaxt general idin. *idim
possessor_agreement: Mənim yeni prokurorum gecikdi. *prokurorun
possessor_agreement: Sənin yeni prokurorun gecikdi. *prokurorum
reflexive_possessor: Mən öz nümayəndəmi dünən cəzalandırdım. *nümayəndəni
reflexive_possessor: Sən öz nümayəndəni dünən pislədin. *nümayəndəmi
possessive_chain: Universitetin müfəttişinin yeni planı yarımçıqdır. *müfəttişi
possessive_chain: Universitetin müfəttişi yeni sərəncam əsaslandırdı. *müfəttişinin
genitive_subject: Tədqiqatçının dünən nömrələdiyi təlimat mükəmməldir. *tədqiqatçı
genitive_subject: Tədqiqatçı dünən yeni material sadələşdirdi. *tədqiqatçının
genitive_subject: Tərbiyəçinin sabah qısaldacağı göstəriş yarımçıqdır. *tərbiyəçi
genitive_subject: Tərbiyəçi sabah bu protokolu dəqiqləşdirəcək. *tərbiyəçinin
participle_choice: Alıcının dünən dəqiqləşdirdiyi həmin referat mükəmməldir. *dəqiqləşdirən
participle_choice: Dissertasiyanı dünən dəqiqləşdirən həmin çoban gecikir. *dəqiqləşdirdiyi
case_government: Vətəndaş tərbiyəçiyə çoxdan arxalanır. *tərbiyəçidən
case_government: Vətəndaş tərbiyəçidən çoxdan çəkinir. *tərbiyəçiyə
pronoun_case: Nümayəndə mənə çoxdan arxalanır. *məndən
pronoun_case: Nümayəndə məndən çoxdan ehtiyatlanır. *mənə
object_case: Bu köhnə xalçanı dünən oğurladılar. *xalça
object_case: Bu köhnə xalça dünən sığortalandı. *xalçanı
place_case: Mühəndis aptekdə dünən gecələdi. *aptekə
place_case: Mühəndis aptekə dünən yollandı. *aptekdə
postposition_case: Premyeradan bir ay sonra direktor mürgülədi. *premyeraya
postposition_case: Premyeraya bir ay qalmış direktor mürgülədi. *premyeradan
infinitive_case: Müfəttiş arıqlamağı yenə planlaşdırır. *arıqlamağa
infinitive_case: Müfəttiş arıqlamağa yenə cəhd edir. *arıqlamağı
time_converb: General duruxduqdan bir ay sonra zəlzələ başladı. *duruxmamışdan
time_converb: General duruxmamışdan bir ay əvvəl zəlzələ başladı. *duruxduqdan
comparative: Müğənni hüquqşünasdan xeyli təcrübəlidir. *hüquqşünasa
comparative: Müğənni hüquqşünasa xeyli bənzəyir. *hüquqşünasdan
negation: Heç bir zərgər, heç bir tarixçi dünən susamadı. *susadı
negation: Nə üzgüçü, nə də sənətkar dünən susadı. *susamadı
numeral_singular: Dünən iyirmi yeni bəstəkar gecikdi. *bəstəkarlar
numeral_singular: Dünən bir sıra yeni bəstəkarlar gecikdi. *bəstəkar
quantifier_number: Hər yeni sənətkar bir gün gecikir. *sənətkarlar
quantifier_number: Bütün yeni sənətkarlar bir gün gecikir. *sənətkar
tense_adverb: Dünən həmin rəis yenə susadı. *susayacaq
tense_adverb: Sabah həmin rəis yenə susayacaq. *susadı
conditional_mood: Əgər müğənni bu dəfə də küssə, iclas təxirə salınacaq. *küsdü
conditional_mood: Madam ki müğənni bu dəfə də küsdü, iclas təxirə salınacaq. *küssə
subjunctive: Qoy həmin nazir də vuruşsun. *vuruşdu
subjunctive: Dünən həmin nazir də vuruşdu. *vuruşsun
passive: Prokuror bəyannaməni dünən gecə arxivləşdirdi. *arxivləşdirildi
passive: Bu bülleten dünən gecə arxivləşdirildi. *arxivləşdirdi
causative: Bu hökm tarixçini dünən yenə təəccübləndirdi. *təəccübləndi
causative: Proqramçı bu iddiadan dünən yenə təəccübləndi. *təəccübləndirdi
"""


def by_phenomenon() -> dict[str, list[Pair]]:
    found = defaultdict(list)
    for pair in minimal_pairs():
        found[pair.phenomenon].append(pair)
    return found


def lower(text: str) -> str:
    return text.replace("İ", "i").replace("I", "ı").lower()


def test_two_hundred_pairs_of_each_phenomenon() -> None:
    pairs = minimal_pairs()
    counts = Counter(pair.phenomenon for pair in pairs)
    groups = Counter(map(phenomenon_group, counts))
    assert groups["grammar"] >= 24
    assert groups.keys() == {"grammar", "spelling"}
    assert set(counts.values()) == {PAIRS_OF_EACH}
    for group in by_phenomenon().values():
        assert len({pair.right for pair in group}) == PAIRS_OF_EACH


def test_phenomena_have_a_name_in_both_languages() -> None:
    names = [phenomenon_name(key, lang) for key in by_phenomenon() for lang in ("en", "az")]
    assert all(names)
    assert len(names) == len(set(names))
    assert phenomenon_name("comparative") == "comparison"
    assert phenomenon_name("comparative", "az") == "müqayisə"
    rows = read_tsv("pairs_phenomena.tsv")
    turkish = dict.fromkeys(pair.phenomenon for pair in turkish_pairs())
    assert [row["phenomenon"] for row in rows] == [*by_phenomenon(), *turkish]


def test_pairs_are_right_and_wrong_as_a_speaker_says() -> None:
    found = {f"{pair.phenomenon}: {pair.right} *{pair.wrong_form}" for pair in minimal_pairs()}
    known = KNOWN.split("\n")[1:-1]
    assert set(known) <= found
    assert {line.partition(":")[0] for line in known} == by_phenomenon().keys()


def test_wrong_spellings_are_no_words_and_right_ones_are() -> None:
    for pair in minimal_pairs()[::7]:
        if phenomenon_group(pair.phenomenon) == "spelling":
            assert is_word(pair.right_form), pair
            assert not is_word(pair.wrong_form), pair


def test_turkish_is_as_a_mixed_text_has_it() -> None:
    pairs = turkish_pairs()
    assert Counter(pair.phenomenon for pair in pairs) == {
        f"turkish_{kind}": PAIRS_OF_EACH for kind in ("words", "spelling", "suffixes")
    }
    assert len({pair.right for pair in pairs}) == len(pairs)
    forms = {(pair.right_form, pair.wrong_form) for pair in pairs}
    known = (
        "danışdı konuşdu, indi şimdi, müəllimi öğretməni, qapını kapını, üçün için, "
        "ruhlanırlar ruhlanıyorlar, kökəlir kökəliyor, uduzuram uduzurum, bezəcəyik bezəcəyiz, "
        "məqaləni məqaləyi, bankdan banktan"
    )
    expected = {tuple(item.split()) for item in known.split(", ")}
    assert expected <= forms
    # para, küçük and yedi are Azerbaijani words of another meaning, and so no Turkish ones here.
    exceptions = {"için"}
    for pair in pairs:
        if pair.phenomenon != "turkish_suffixes" and pair.wrong_form not in exceptions:
            assert not is_word(pair.wrong_form), pair


def test_sentences_differ_in_one_word_only() -> None:
    for pair in minimal_pairs():
        words_of_both = zip(pair.right.split(), pair.wrong.split(), strict=True)
        ((right, wrong),) = [(a, b) for a, b in words_of_both if a != b]
        assert lower(right).strip(".?!,") == pair.right_form
        assert lower(wrong).strip(".?!,") == pair.wrong_form


def context(sentence: str, form: str) -> tuple[str, str]:
    """The words around a form, without what is further away."""
    words_of_it = ["^", *lower(sentence).split(), "$"]
    at = next(i for i, word in enumerate(words_of_it) if word.strip(".,?!") == form)
    return words_of_it[at - 1], words_of_it[at].removeprefix(form) + words_of_it[at + 1]


def couples(group: str) -> Iterator[tuple[Pair, Pair]]:
    for phenomenon, pairs in by_phenomenon().items():
        if phenomenon_group(phenomenon) == group:
            yield from zip(pairs[::2], pairs[1::2], strict=True)


def test_crossed_couples_have_the_same_two_words_between_the_same_neighbors() -> None:
    """So that a word, its length, and its neighbors decide one pair of two, whatever the text that
    a model of them was trained on.
    """
    for one, other in couples("grammar"):
        assert (one.right_form, one.wrong_form) == (other.wrong_form, other.right_form)
        assert one.right != other.wrong
        contexts = {context(pair.right, pair.right_form) for pair in (one, other)}
        contexts |= {context(pair.wrong, pair.wrong_form) for pair in (one, other)}
        assert len(contexts) == 1, contexts


class Grams:
    """A bigram model of sequences with back-off to unigrams, or unigrams alone."""

    def __init__(self, sequences: Iterable[Sequence[str]], order: int) -> None:
        self.order = order
        self.singles: Counter[str] = Counter()
        self.doubles: Counter[tuple[str, str]] = Counter()
        for sequence in sequences:
            self.singles.update(sequence)
            self.doubles.update(pairwise(sequence))
        self.total = self.singles.total() + len(self.singles)

    def score(self, sequence: Sequence[str]) -> float:
        logs = [math.log((self.singles[item] + 1) / self.total) for item in sequence]
        if self.order == 1:
            return sum(logs)
        found = zip(pairwise(sequence), logs[1:], strict=True)
        return sum(
            math.log((self.doubles[pair] + 2 * math.exp(log)) / (self.singles[pair[0]] + 2))
            for pair, log in found
        )


def letters(text: str) -> list[str]:
    return ["^", *lower(text), "$"]


def whole_words(text: str) -> list[str]:
    return ["^", *re.findall(r"\w+|[^\w\s]", lower(text)), "$"]


def shares(prefers: Callable[[Pair], float]) -> dict[str, float]:
    """The accuracy on each phenomenon of a preference above 0 for the right sentence; ties count
    half.
    """
    found = defaultdict(list)
    for pair in minimal_pairs():
        value = prefers(pair)
        found[pair.phenomenon].append(0.5 if abs(value) < 1e-9 else float(value > 0))
    return {name: sum(values) / len(values) for name, values in found.items()}


def test_length_alone_is_right_in_half_of_the_pairs() -> None:
    by_bytes = shares(lambda pair: len(pair.wrong.encode()) - len(pair.right.encode()))
    by_letters = shares(lambda pair: len(pair.wrong) - len(pair.right))
    for name, share in [*by_bytes.items(), *by_letters.items()]:
        assert 0.48 <= share <= 0.52, (name, share)
    for pair in minimal_pairs():
        assert len(pair.right.split()) == len(pair.wrong.split())


@pytest.mark.parametrize(
    ("split", "order"),
    [
        (letters, 1),
        pytest.param(whole_words, 1, marks=pytest.mark.slow),
        pytest.param(whole_words, 2, marks=pytest.mark.slow),
    ],
)
def test_frequent_letters_words_and_neighbors_are_right_in_half_of_the_pairs(
    split: Callable[[str], list[str]], order: int
) -> None:
    """Models of the tales, none of whose words tells the sentences of a pair apart."""
    grams = Grams((split(text) for text in write_tales(30_000, seed=0)), order)
    found = shares(lambda pair: grams.score(split(pair.right)) - grams.score(split(pair.wrong)))
    for name, share in found.items():
        assert 0.47 <= share <= 0.53, (name, share)


@pytest.mark.slow
def test_letters_next_to_each_other_do_not_give_grammar_away() -> None:
    """They do give some spelling away: a model of letters knows that words end in -ların."""
    grams = Grams((letters(text) for text in write_tales(30_000, seed=0)), 2)
    found = shares(lambda pair: grams.score(letters(pair.right)) - grams.score(letters(pair.wrong)))
    grammar = {name: share for name, share in found.items() if phenomenon_group(name) == "grammar"}
    assert set(grammar.values()) == {0.5}


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


@pytest.mark.slow
def test_stems_do_not_occur_in_the_tales() -> None:
    tales = {lower(word) for word in known_words()}
    assert lexicon(TABLE).keys() & lexicon().keys() == set()
    literal = {
        form for row in read_tsv("pairs.tsv") for form in re.findall(r"<(.+?)>", row["frame"])
    }
    function_words = {form for forms in literal for form in forms.split("|")}
    for pair in minimal_pairs():
        assert {pair.right_form, pair.wrong_form} & tales <= function_words, pair
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


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs_turkish.tsv", "pairs_phenomena.tsv", TABLE])
def test_tables_are_well_formed(name: str) -> None:
    text = (Path(azerbaijani.__file__).parent / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert {line.count("\t") for line in lines} == {lines[0].count("\t")}
    assert unicodedata.normalize("NFC", text) == text
    assert len({line if "frame" in lines[0] else line.split("\t")[0] for line in lines}) == len(
        lines
    )


def test_every_stem_and_every_rule_has_a_use() -> None:
    tables = ("pairs.tsv", "pairs_turkish.tsv")
    frames = " ".join(row["frame"] for name in tables for row in read_tsv(name))
    for entry in lexicon(TABLE).values():
        assert entry.classes
        assert all(f"{{{name}" in frames for name in entry.classes), entry
        assert entry.pos in ("noun", "numeral", "verb")
    assert all(f"|{rule}}}" in frames for rule in RULES)
