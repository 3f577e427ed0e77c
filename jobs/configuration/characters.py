"""Characters that steer a screen: text from outside is shown with their codes in their place.

    spelled_out("a\x1b[31mb")     # "a\\u{1b}[31mb"

The module imports the standard library only, so that every refusal can use it."""

from __future__ import annotations

import unicodedata

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional controls, with which text can be made to look like other text."""


def spelled_out(text: str) -> str:
    """Return `text` with every character that steers a screen written as its code. Lines and tabs stay."""
    return "".join(char if char in "\n\t" or not _steers(char) else f"\\u{{{ord(char):x}}}" for char in text)


def _steers(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in REORDERING
