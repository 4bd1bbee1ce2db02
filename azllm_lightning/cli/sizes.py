"""Bytes as text."""

from __future__ import annotations


def size_text(num_bytes: float) -> str:
    """Bytes in units of 10^9, 10^6 or 10^3, with the digits that they need."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:,.1f} GB"
    if num_bytes >= 1e7:
        return f"{num_bytes / 1e6:,.0f} MB"
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:,.1f} MB"
    return f"{num_bytes / 1e3:,.0f} kB" if num_bytes >= 1e4 else f"{num_bytes / 1e3:,.1f} kB"
