"""What each sentence of a story is about, so that a subject that stays the same can be dropped."""

from __future__ import annotations


class Topic:
    """Follows a story as it is written and knows what the last complete sentence was about.

    Only the narrator counts: a quote neither ends a sentence nor changes its topic. Quotes are what
    is between the first and second dash of a line, after the third, and in « ».
    """

    def __init__(self) -> None:
        self.last = ""  # topic of the last complete sentence, "" if unknown
        self._current = ""
        self._quoted = False
        self._empty = True  # the sentence has no word of the narrator's yet

    def mark(self, topic: str) -> None:
        """The sentence being written is about `topic`."""
        if not self._quoted:
            self._current = topic

    def read(self, text: str) -> None:
        """Follow the next piece of the story."""
        for letter in text:
            if letter == "\n":
                self._end()
                self._quoted = False
            elif letter == "—":
                self._quoted = not self._quoted
            elif letter in "«»":
                self._quoted = letter == "«"
            elif not self._quoted:
                if letter in ".!?":
                    self._end()
                elif letter.isalpha():
                    self._empty = False

    def _end(self) -> None:
        if not self._empty:
            self.last = self._current
        self._current = ""
        self._empty = True
