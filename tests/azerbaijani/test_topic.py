from __future__ import annotations

from azllm_lightning.azerbaijani.topic import Topic


def after(*pieces: str) -> str:
    """The topic of the last sentence; a piece in capitals names the topic of its sentence."""
    topic = Topic()
    for piece in pieces:
        if piece.isupper():
            topic.mark(piece)
        else:
            topic.read(piece)
    return topic.last


def test_a_sentence_has_the_topic_that_was_named_last() -> None:
    assert after("A", "Anar parka getdi.") == "A"
    assert after("Atası gəldi, ", "A", "Anar isə getdi.") == "A"
    assert after("A", "Anar getdi.", " ", "B", "Atası gəldi!") == "B"


def test_a_sentence_about_nothing_known_ends_the_topic() -> None:
    assert after("A", "Anar parka getdi. Hava soyuq idi.") == ""


def test_an_unfinished_sentence_does_not_count() -> None:
    assert after("A", "Anar parka getdi. ", "B", "Atası") == "A"


def test_a_line_ends_a_sentence_and_an_empty_one_is_none() -> None:
    assert after("A", "Anar dedi:\n") == "A"
    assert after("A", "Anar getdi.", "\n", " ") == "A"


def test_quotes_do_not_count() -> None:
    assert after("A", "Anar gəldi.\n— Salam! ", "F", "Fərid haradadır?\n") == "A"
    assert after("— Salam! — dedi ", "A", "Anar", ". — Fərid haradadır? Yoxdur.\n") == "A"
    assert after("A", "Anar yazdı: «Əziz baba! ", "B", "Gəl.»") == ""
    assert after("A", "Anar yazdı: «Əziz baba! ", "B", "Gəl.» ", "A", "Sonra getdi.") == "A"
