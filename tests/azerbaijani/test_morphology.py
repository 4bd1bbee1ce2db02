"""Forms written by hand, from school grammars, against the rules."""

from __future__ import annotations

import pytest

from azllm_lightning.azerbaijani import morphology as m

# stem, trait: genitive, dative, accusative, locative, ablative
CASES = """
ata: atanın ataya atanı atada atadan
nənə: nənənin nənəyə nənəni nənədə nənədən
bacı: bacının bacıya bacını bacıda bacıdan
tülkü: tülkünün tülküyə tülkünü tülküdə tülküdən
quzu: quzunun quzuya quzunu quzuda quzudan
kirpi: kirpinin kirpiyə kirpini kirpidə kirpidən
radio: radionun radioya radionu radioda radiodan
ev: evin evə evi evdə evdən
göl: gölün gölə gölü göldə göldən
top: topun topa topu topda topdan
qız: qızın qıza qızı qızda qızdan
dəniz: dənizin dənizə dənizi dənizdə dənizdən
kitab: kitabın kitaba kitabı kitabda kitabdan
at: atın ata atı atda atdan
çörək: çörəyin çörəyə çörəyi çörəkdə çörəkdən
inək: inəyin inəyə inəyi inəkdə inəkdən
küçük: küçüyün küçüyə küçüyü küçükdə küçükdən
otaq: otağın otağa otağı otaqda otaqdan
balıq: balığın balığa balığı balıqda balıqdan
yanaq: yanağın yanağa yanağı yanaqda yanaqdan
park: parkın parka parkı parkda parkdan
yük: yükün yükə yükü yükdə yükdən
hüquq keep: hüququn hüquqa hüququ hüquqda hüquqdan
mexanik keep: mexanikin mexanikə mexaniki mexanikdə mexanikdən
Tofiq keep: Tofiqin Tofiqə Tofiqi Tofiqdə Tofiqdən
fikir drop: fikrin fikrə fikri fikirdə fikirdən
burun own: burunun buruna burunu burunda burundan
şəkil drop: şəklin şəklə şəkli şəkildə şəkildən
sinif drop: sinfin sinfə sinfi sinifdə sinifdən
su y: suyun suya suyu suda sudan
nə y: nəyin nəyə nəyi nədə nədən
Aynur: Aynurun Aynura Aynuru Aynurda Aynurdan
Əli: Əlinin Əliyə Əlini Əlidə Əlidən
İlqar: İlqarın İlqara İlqarı İlqarda İlqardan
"""
# stem, trait: my, your, his, our, your, their
POSSESSIVES = """
ana: anam anan anası anamız ananız anaları
dəvə: dəvəm dəvən dəvəsi dəvəmiz dəvəniz dəvələri
dayı: dayım dayın dayısı dayımız dayınız dayıları
əmi: əmim əmin əmisi əmimiz əminiz əmiləri
quzu: quzum quzun quzusu quzumuz quzunuz quzuları
dost: dostum dostun dostu dostumuz dostunuz dostları
göz: gözüm gözün gözü gözümüz gözünüz gözləri
ürək: ürəyim ürəyin ürəyi ürəyimiz ürəyiniz ürəkləri
oyuncaq: oyuncağım oyuncağın oyuncağı oyuncağımız oyuncağınız oyuncaqları
ağız own: ağzım ağzın ağzı ağzımız ağzınız ağızları
oğul own: oğlum oğlun oğlu oğlumuz oğlunuz oğulları
su y: suyum suyun suyu suyumuz suyunuz suları
"""
# stem, trait, number, possessor, case: form
CHAINS = """
ev sg 3sg gen: evinin
ev sg 3sg dat: evinə
ev sg 3sg acc: evini
ev sg 3sg loc: evində
ev sg 3sg abl: evindən
ata sg 3sg acc: atasını
ata sg 3sg loc: atasında
dost sg 3sg gen: dostunun
burun-own sg 3sg dat: burnuna
oğul-own sg 3sg gen: oğlunun
su-y sg 3sg acc: suyunu
ürək sg 3sg loc: ürəyində
ürək sg 1sg loc: ürəyimdə
otaq sg 1pl dat: otağımıza
ev sg 1sg gen: evimin
ev sg 2sg dat: evinə
bacı sg 1sg acc: bacımı
bacı sg 2pl abl: bacınızdan
dost sg 3pl gen: dostlarının
uşaq pl - nom: uşaqlar
uşaq pl - acc: uşaqları
gül pl - dat: güllərə
göz pl 3sg loc: gözlərində
göz pl 1sg abl: gözlərimdən
ağız-own pl - nom: ağızlar
çiçək pl 3sg nom: çiçəkləri
kitab pl 1pl gen: kitablarımızın
şagird pl 3pl acc: şagirdlərini
"""
# infinitive, trait, form, sign: I, you, he, we, you, they
FINITE = """
almaq pres +: alıram alırsan alır alırıq alırsınız alırlar
görmək pres +: görürəm görürsən görür görürük görürsünüz görürlər
oxumaq pres +: oxuyuram oxuyursan oxuyur oxuyuruq oxuyursunuz oxuyurlar
demək pres +: deyirəm deyirsən deyir deyirik deyirsiniz deyirlər
gözləmək pres +: gözləyirəm gözləyirsən gözləyir gözləyirik gözləyirsiniz gözləyirlər
getmək-soften pres +: gedirəm gedirsən gedir gedirik gedirsiniz gedirlər
unutmaq pres +: unuduram unudursan unudur unuduruq unudursunuz unudurlar
tutmaq pres +: tuturam tutursan tutur tuturuq tutursunuz tuturlar
hiss-etmək-soften pres +: hiss-edirəm hiss-edirsən hiss-edir hiss-edirik hiss-edirsiniz hiss-edirlər
almaq pres -: almıram almırsan almır almırıq almırsınız almırlar
gülmək pres -: gülmürəm gülmürsən gülmür gülmürük gülmürsünüz gülmürlər
getmək-soften pres -: getmirəm getmirsən getmir getmirik getmirsiniz getmirlər
qaçmaq past +: qaçdım qaçdın qaçdı qaçdıq qaçdınız qaçdılar
gəlmək past +: gəldim gəldin gəldi gəldik gəldiniz gəldilər
durmaq past +: durdum durdun durdu durduq durdunuz durdular
üzmək past +: üzdüm üzdün üzdü üzdük üzdünüz üzdülər
getmək-soften past +: getdim getdin getdi getdik getdiniz getdilər
gülmək past -: gülmədim gülmədin gülmədi gülmədik gülmədiniz gülmədilər
yazmaq perf +: yazmışam yazmısan yazmış yazmışıq yazmısınız yazmışlar
görmək perf +: görmüşəm görmüsən görmüş görmüşük görmüsünüz görmüşlər
yazmaq perf -: yazmamışam yazmamısan yazmamış yazmamışıq yazmamısınız yazmamışlar
yatmaq fut +: yatacağam yatacaqsan yatacaq yatacağıq yatacaqsınız yatacaqlar
gəlmək fut +: gələcəyəm gələcəksən gələcək gələcəyik gələcəksiniz gələcəklər
oynamaq fut +: oynayacağam oynayacaqsan oynayacaq oynayacağıq oynayacaqsınız oynayacaqlar
etmək-soften fut -: etməyəcəyəm etməyəcəksən etməyəcək etməyəcəyik etməyəcəksiniz etməyəcəklər
baxmaq aor +: baxaram baxarsan baxar baxarıq baxarsınız baxarlar
yemək aor +: yeyərəm yeyərsən yeyər yeyərik yeyərsiniz yeyərlər
baxmaq aor -: baxmaram baxmazsan baxmaz baxmarıq baxmazsınız baxmazlar
bilmək aor -: bilmərəm bilməzsən bilməz bilmərik bilməzsiniz bilməzlər
oturmaq imp +: oturum otur otursun oturaq oturun otursunlar
getmək-soften imp +: gedim get getsin gedək gedin getsinlər
oxumaq imp +: oxuyum oxu oxusun oxuyaq oxuyun oxusunlar
qorxmaq imp -: qorxmayım qorxma qorxmasın qorxmayaq qorxmayın qorxmasınlar
gəlmək opt +: gələm gələsən gələ gələk gələsiniz gələlər
oxumaq opt +: oxuyam oxuyasan oxuya oxuyaq oxuyasınız oxuyalar
tapmaq cond +: tapsam tapsan tapsa tapsaq tapsanız tapsalar
istəmək cond +: istəsəm istəsən istəsə istəsək istəsəniz istəsələr
vermək cond -: verməsəm verməsən verməsə verməsək verməsəniz verməsələr
çalışmaq nec +: çalışmalıyam çalışmalısan çalışmalıdır çalışmalıyıq çalışmalısınız çalışmalıdırlar
bişirmək nec +: bişirməliyəm bişirməlisən bişirməlidir bişirməliyik bişirməlisiniz bişirməlidirlər
sevmək impf +: sevirdim sevirdin sevirdi sevirdik sevirdiniz sevirdilər
eşitmək impf +: eşidirdim eşidirdin eşidirdi eşidirdik eşidirdiniz eşidirdilər
bilmək impf -: bilmirdim bilmirdin bilmirdi bilmirdik bilmirdiniz bilmirdilər
itirmək pluperf +: itirmişdim itirmişdin itirmişdi itirmişdik itirmişdiniz itirmişdilər
gəzmək impf_evid +: gəzirmişəm gəzirmişsən gəzirmiş gəzirmişik gəzirmişsiniz gəzirmişlər
almaq fut_past +: alacaqdım alacaqdın alacaqdı alacaqdıq alacaqdınız alacaqdılar
"""
NONFINITE_FORMS = ("inf", "and", "when", "while", "by", "part", "done")
# infinitive, trait: -maq, -ıb, -anda, -arkən, -araq, -an, -dıq
NONFINITE = """
almaq: almaq alıb alanda alarkən alaraq alan aldıq
gülmək: gülmək gülüb güləndə gülərkən gülərək gülən güldük
oxumaq: oxumaq oxuyub oxuyanda oxuyarkən oxuyaraq oxuyan oxuduq
demək: demək deyib deyəndə deyərkən deyərək deyən dedik
getmək-soften: getmək gedib gedəndə gedərkən gedərək gedən getdik
qayıtmaq: qayıtmaq qayıdıb qayıdanda qayıdarkən qayıdaraq qayıdan qayıtdıq
"""


def _rows(table: str) -> list[tuple[list[str], list[str]]]:
    pairs = (line.split(": ") for line in table.strip().splitlines())
    return [
        (keys.split(), [form.replace("-", " ") for form in forms.split()]) for keys, forms in pairs
    ]


def _verb(key: str) -> m.Stem:
    infinitive, _, trait = key.partition("-soften")
    return m.verb_stem(infinitive.replace("-", " "), "soften" if "-soften" in key else trait)


def test_the_tables_are_not_small() -> None:
    tables = (CASES, POSSESSIVES, CHAINS, FINITE, NONFINITE)
    assert sum(len(forms) for table in tables for _, forms in _rows(table)) > 500


@pytest.mark.parametrize(("keys", "forms"), _rows(CASES), ids=lambda v: v[0])
def test_cases(keys: list[str], forms: list[str]) -> None:
    stem = m.noun_stem(*keys)
    assert [m.noun(stem, case) for case in m.CASES] == [keys[0], *forms]


@pytest.mark.parametrize(("keys", "forms"), _rows(POSSESSIVES), ids=lambda v: v[0])
def test_possessives(keys: list[str], forms: list[str]) -> None:
    stem = m.noun_stem(*keys)
    assert [m.noun(stem, possessor=person) for person in m.PERSONS] == forms


@pytest.mark.parametrize(("keys", "forms"), _rows(CHAINS), ids=lambda v: "-".join(v))
def test_chains(keys: list[str], forms: list[str]) -> None:
    word, number, possessor, case = keys
    stem = m.noun_stem(*word.split("-"))
    made = m.noun(stem, case, number == "pl", None if possessor == "-" else possessor)
    assert made == forms[0]


@pytest.mark.parametrize(("keys", "forms"), _rows(FINITE), ids=lambda v: "-".join(v[:3]))
def test_finite_verbs(keys: list[str], forms: list[str]) -> None:
    infinitive, form, sign = keys
    stem = _verb(infinitive)
    assert [m.verb(stem, form, person, sign == "-") for person in m.PERSONS] == forms


@pytest.mark.parametrize(("keys", "forms"), _rows(NONFINITE), ids=lambda v: v[0])
def test_nonfinite_verbs(keys: list[str], forms: list[str]) -> None:
    assert [m.verb(_verb(keys[0]), form) for form in NONFINITE_FORMS] == forms


@pytest.mark.parametrize(
    ("person", "right"),
    [("2sg", "yazıbsan"), ("3sg", "yazıb"), ("2pl", "yazıbsınız"), ("3pl", "yazıblar")],
)
def test_the_perfect_in_ib(person: str, right: str) -> None:
    assert m.verb(m.verb_stem("yazmaq"), "evid", person) == right


def test_the_perfect_in_ib_has_no_first_person() -> None:
    with pytest.raises(ValueError, match="use perf"):
        m.verb(m.verb_stem("yazmaq"), "evid", "1pl")


@pytest.mark.parametrize(
    ("form", "right"),
    [
        ("inf", "gəlməmək"),
        ("and", "gəlməyib"),
        ("when", "gəlməyəndə"),
        ("part", "gəlməyən"),
        ("done", "gəlmədik"),
    ],
)
def test_negative_nonfinite(form: str, right: str) -> None:
    assert m.verb(m.verb_stem("gəlmək"), form, negative=True) == right


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("həkim", "həkiməm həkimsən həkimdir həkimik həkimsiniz həkimdirlər"),
        ("yorğun", "yorğunam yorğunsan yorğundur yorğunuq yorğunsunuz yorğundurlar"),
        ("balaca", "balacayam balacasan balacadır balacayıq balacasınız balacadırlar"),
        ("uşaq", "uşağam uşaqsan uşaqdır uşağıq uşaqsınız uşaqdırlar"),
        ("evdə", "evdəyəm evdəsən evdədir evdəyik evdəsiniz evdədirlər"),
    ],
)
def test_copula(word: str, forms: str) -> None:
    assert [m.copula(word, person) for person in m.PERSONS] == forms.split()


def test_past_copula() -> None:
    seen = "idim idin idi idik idiniz idilər".split()
    heard = "imişəm imişsən imiş imişik imişsiniz imişlər".split()
    assert [m.past_copula(person) for person in m.PERSONS] == seen
    assert [m.past_copula(person, hearsay=True) for person in m.PERSONS] == heard


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("mən", "mənim mənə məni məndə məndən"),
        ("sən", "sənin sənə səni səndə səndən"),
        ("o", "onun ona onu onda ondan"),
        ("bu", "bunun buna bunu bunda bundan"),
        ("biz", "bizim bizə bizi bizdə bizdən"),
        ("siz", "sizin sizə sizi sizdə sizdən"),
        ("onlar", "onların onlara onları onlarda onlardan"),
    ],
)
def test_pronouns(word: str, right: str) -> None:
    assert [m.pronoun(word, case) for case in m.CASES] == [word, *right.split()]


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("gedirsən", "gedirsənmi"),
        ("aldın", "aldınmı"),
        ("gördün", "gördünmü"),
        ("yorğun", "yorğunmu"),
    ],
)
def test_question(word: str, right: str) -> None:
    assert m.question(word) == right


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("Rəşad", "Rəşadla"),
        ("bülbül", "bülbüllə"),
        ("uşaqlar", "uşaqlarla"),
        ("anam", "anamla"),
        ("Leyla", "Leyla ilə"),
        ("atası", "atası ilə"),
    ],
)
def test_instrumental(word: str, right: str) -> None:
    assert m.instrumental(word) == right


@pytest.mark.parametrize(
    ("word", "right"),
    [("Rəşad", "Rəşad da"), ("Əli", "Əli də"), ("Günəşə", "Günəşə də"), ("dostum", "dostum da")],
)
def test_also_follows_the_harmony(word: str, right: str) -> None:
    assert m.also(word) == right


def test_degrees() -> None:
    assert [m.compare("uca", degree) for degree in m.DEGREES] == ["daha uca", "ən uca", "lap uca"]


@pytest.mark.parametrize(
    ("numeral", "right"),
    [
        ("bir", "birinci"),
        ("iki", "ikinci"),
        ("üç", "üçüncü"),
        ("dörd", "dördüncü"),
        ("altı", "altıncı"),
        ("doqquz", "doqquzuncu"),
        ("on", "onuncu"),
        ("iyirmi", "iyirminci"),
    ],
)
def test_ordinals(numeral: str, right: str) -> None:
    assert m.ordinal(numeral) == right


def test_the_stem_of_a_voice_softens_as_any_other() -> None:
    assert m.voiced(m.verb_stem("oxumaq"), "caus") == m.Stem("oxut", "oxud")
    assert m.voiced(m.verb_stem("hiss etmək", "soften"), "pass").plain == "hiss edil"


def test_capitals_are_azerbaijani() -> None:
    words = ("ilk", "ışıq", "əl", "çay", "oİ", "")
    assert [m.capitalize(word) for word in words] == ["İlk", "Işıq", "Əl", "Çay", "Oİ", ""]


def test_capital_vowels_are_vowels() -> None:
    assert m.attach("Aİ", "(n)In") == "Aİnin"
    assert m.attach("ŞI", "dA") == "ŞIda"
    assert m.attach("Ay", "dA") == "Ayda"


def test_invalid_stems_are_refused() -> None:
    with pytest.raises(ValueError, match="'kitab' is not an infinitive"):
        m.verb_stem("kitab")
    with pytest.raises(ValueError, match="'brr' has no vowel"):
        m.noun(m.noun_stem("brr"), "gen")
