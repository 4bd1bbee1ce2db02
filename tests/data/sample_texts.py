"""Made-up Azerbaijani text for the tests of the data."""

from __future__ import annotations

import random

WORDS = (
    "Bakı şəhər kitab oxu gəl göz üçün və ilə nənə ağac günəş dəniz yol uşaq məktəb ev su çörək "
    "alma İlqar Ələkbər qırmızı böyük kiçik gözəl yaxşı bir iki üç dörd beş sabah axşam gecə "
    "gündüz yağış qar külək bulud ulduz ay"
).split()
SUFFIXES = ("", *"lar lər da də dan dən ın in un nın ımız iniz 'dan -nın".split())


def make_texts(count: int, seed: int = 0) -> list[str]:
    """`count` different documents of a few sentences each."""
    rng = random.Random(seed)
    return [
        f"{number}. " + " ".join(_sentence(rng) for _ in range(rng.randint(2, 6)))
        for number in range(count)
    ]


def _sentence(rng: random.Random) -> str:
    words = [rng.choice(WORDS) + rng.choice(SUFFIXES) for _ in range(rng.randint(4, 12))]
    return " ".join(words) + "."
