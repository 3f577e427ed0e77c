"""Characters that steer a screen: text from outside is shown with their codes in their place.

    spelled_out("a\x1b[31mb")     # "a\\u{1b}[31mb"

The module imports the standard library only, so that every refusal can use it."""

from __future__ import annotations

import re

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters but lines and tabs, lone surrogates, and the bidirectional controls, with which text can be made
to look like other text."""


def spelled_out(text: str) -> str:
    """Return `text` with every character that steers a screen written as its code. Lines and tabs stay."""
    return _STEERING.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", text)
