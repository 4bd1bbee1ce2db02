"""The suffix of Azerbaijani ordinals written in digits: 1-ci, 6-cı, 9-cu, 100-cü."""

from __future__ import annotations

ONES = ("", "ci", "ci", "cü", "cü", "ci", "cı", "ci", "ci", "cu")
TENS = ("", "cu", "ci", "cu", "cı", "ci", "cı", "ci", "ci", "cı")
ZERO = "cı"  # sıfır
HUNDRED = "cü"  # yüz
THOUSAND = "ci"  # min
MILLIONS = "cu"  # milyon; milyard has the other vowel
BILLIONS = "cı"


def ordinal_suffix(number: int) -> str:
    """By the last vowel of the last word of `number` as it is read."""
    if number % 10:
        return ONES[number % 10]
    if number % 100:
        return TENS[number % 100 // 10]
    powers = ((1000, HUNDRED), (10**6, THOUSAND), (10**9, MILLIONS))
    if number == 0:
        return ZERO
    return next((suffix for power, suffix in powers if number % power), BILLIONS)
