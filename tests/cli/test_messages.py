"""Everything that people read is there in both languages."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import azllm_lightning
from azllm_lightning.__main__ import VERBS
from azllm_lightning.cli.composition import conf_dir
from azllm_lightning.cli.messages import language, tr, translations, trn, use_language
from azllm_lightning.cli.reference import choices, description, read_settings
from azllm_lightning.data.corpus import describe_cleaning

PACKAGE = Path(azllm_lightning.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
DOCS = [PACKAGE.parent / "docs" / "settings.py"]
SPEAKING = {"info", "warning", "error", "print", "ValueError", "OSError"}
"""Calls whose first argument a person reads."""


def calls(source: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def name_of(call: ast.Call) -> str:
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def literals(source: Path) -> Iterator[str]:
    """The texts that a file gives to tr and trn."""
    for call in calls(source):
        count = {"tr": 1, "trn": 2}.get(name_of(call), 0)
        for argument in call.args[:count]:
            if isinstance(argument, ast.Constant):
                yield argument.value


def texts() -> set[str]:
    """Every text of the code and of conf/."""
    found = {text for source in SOURCES for text in literals(source)} | set(VERBS.values())
    found |= {text for source in DOCS for text in literals(source)}
    for file in conf_dir().glob("*.yaml"):
        found.add(description(file))
    for folder in conf_dir().iterdir():
        if folder.is_dir() and folder.name != "hydra":
            found |= set(choices(folder.name).values())
    for file in conf_dir().rglob("*.yaml"):
        if file.parent.name not in ("experiment", "hydra"):
            found |= {setting.meaning for setting in read_settings(file) if setting.meaning}
    return found


def fields(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


def test_every_text_has_its_translation_and_every_translation_its_text() -> None:
    missing = sorted(texts() - translations().keys())
    assert not missing, "add to cli/messages.tsv:\n" + "\n".join(map(repr, missing))
    stale = sorted(translations().keys() - texts())
    assert not stale, "remove from cli/messages.tsv:\n" + "\n".join(map(repr, stale))


# The grammar's own errors are for those who edit its tables; no setting of a user leads to them.
SPOKEN = [source for source in SOURCES if source.parent.name != "azerbaijani"]


@pytest.mark.parametrize("source", SPOKEN, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_text_reaches_people_untranslated(source: Path) -> None:
    for call in calls(source):
        if name_of(call) not in SPEAKING or not call.args:
            continue
        argument = call.args[0]
        parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
        written = [part.value for part in parts if isinstance(part, ast.Constant)]
        assert not any(letter.isalpha() for text in written for letter in str(text)), (
            f"{source}:{call.lineno} {written}"
        )


def test_translations_have_the_fields_of_their_texts() -> None:
    spoken = {text for source in SOURCES for text in literals(source)}
    for english in spoken & translations().keys():
        assert fields(translations()[english]) == fields(english), english


def test_a_text_is_given_in_the_language_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZLLM_LANG", raising=False)
    text = "lang={lang} is not one of {choices}"
    english = tr(text, lang="de", choices="en, az")
    assert english == "lang=de is not one of en, az"
    use_language("az")
    try:
        azerbaijani = tr(text, lang="de", choices="en, az")
        assert azerbaijani != english
        assert "lang=de" in azerbaijani
        with pytest.raises(ValueError, match="lang=de"):
            use_language("de")
    finally:
        use_language(None)


def test_an_ordinal_in_azerbaijani_has_the_suffix_of_its_last_word() -> None:
    expected = (
        "0-cı 1-ci 2-ci 3-cü 4-cü 5-ci 6-cı 7-ci 8-ci 9-cu 10-cu 20-ci 30-cu 40-cı 50-ci 60-cı "
        "70-ci 80-ci 90-cı 100-cü 101-ci 110-cu 400-cü 1,000-ci 1,200-cü 10,000-ci 100,000-ci "
        "1,000,000-cu 2,000,000,000-cı"
    )
    use_language("az")
    try:
        for written in expected.split():
            step = int(written.rpartition("-")[0].replace(",", ""))
            assert tr("at step {step:,}", step=step) == f"{written} addımda"
    finally:
        use_language(None)


def test_no_number_stands_before_a_word_that_has_the_suffix_of_one() -> None:
    """{step}-cI addımda, not {step} addımında; {share}-i, not {share} hissəsi; no {n}-ə."""
    wrong = re.compile(
        r"(step|last|first|newest|resumed|best)(:,)?\} addımı"
        r"|%\} (hissəsi|həcmi)|[^%]\}-(?!cI\b)[aəıiuü]"
    )
    found = [text for text in translations().values() if wrong.search(text)]
    assert not found


def test_the_list_of_verbs_is_in_one_form() -> None:
    azerbaijani = [translations()[text] for text in VERBS.values()]
    assert all(re.search(r"m[aə][qk](:|$)", text) for text in azerbaijani), azerbaijani


def test_what_was_cleaned_is_told_in_one_tense() -> None:
    class OfEach(dict[str, int]):
        def get(self, kind: str, default: object = None) -> int:  # type: ignore[override]
            return 2

    use_language("az")
    try:
        phrases = describe_cleaning(OfEach())
    finally:
        use_language(None)
    assert len(phrases) > 10
    told = [phrase for phrase in phrases if re.search(r"[dt][ıiuü](:|$)", phrase)]
    assert not told


def test_large_numbers_have_separators() -> None:
    """Of tokens and bytes, in both languages."""
    bare = re.compile(r"\{(tokens|found|needed|context|vocab_size|size|expected)\} (tokens|bytes)")
    wrong = [text for text in texts() if bare.search(text)]
    assert not wrong


def test_the_environment_decides_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    use_language(None)
    monkeypatch.setenv("AZLLM_LANG", "az")
    assert language() == "az"
    monkeypatch.setenv("AZLLM_LANG", "xx")
    assert language() == "en"


def test_one_thing_is_singular() -> None:
    use_language("en")
    try:
        sentences = [trn("{count} of it", "{count} of them", count) for count in (0, 1, 2)]
    finally:
        use_language(None)
    assert sentences == ["0 of them", "1 of it", "2 of them"]
