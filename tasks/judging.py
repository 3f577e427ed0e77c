"""Where the answer stands in a response, and how exact it must be: one rule for all tasks.

judging = JudgingConfig()                                          # the keys of [verifier]
judging.answer_part("<think>I get 7, but wait.</think> It is 9.")  # " It is 9."
"""

import re

from pydantic import Field

from tasks.section import Section

__all__ = ["DEFAULT_JUDGING", "JudgingConfig"]

_MARKER = r"<\|[A-Za-z0-9_]{1,40}\|>|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_turn>|</s>|<eos>|\[/?INST\]"
_CHAT_MARKER = re.compile(_MARKER)
_HEADER = re.compile(rf"(?:\s*+(?:{_MARKER})(?:assistant|model)?)*+")


class JudgingConfig(Section):
    """Which part of a response is its answer, and how exact the answer must be, for all tasks alike."""

    reasoning_tags: tuple[str, str] = ("<think>", "</think>")
    """What opens and what closes a model's reasoning. Only what follows the last closing tag is read. A response whose
    reasoning never closes was cut off, so it states no answer. ["", ""]: the whole response is read."""
    reasoning_from_start: bool = False
    """Whether the prompt already opens the reasoning, as some chat templates do. A response without a closing tag then
    was cut off while it reasoned, and states no answer."""
    rounding: int | None = Field(default=None, ge=0, le=15)
    """N: a decimal also equals a value that it differs from by at most half a unit of its N-th decimal place, so 0.33
    is 1/3 with N = 2. It holds for mathematics and stated numbers. None: only exact values are equal."""

    def answer_part(self, response: str) -> str:
        """Return what follows the reasoning, up to the chat marker that ends the turn. It is empty if the reasoning
        does not end."""
        opening, closing = self.reasoning_tags
        first = response.find(closing) if closing else -1
        start, end = _turn(response, first + len(closing) if first >= 0 else 0)
        last = response.rfind(closing, 0, end) if closing else -1
        if last < 0 and closing and self.reasoning_from_start:
            return ""
        closed = last + len(closing) if last >= 0 else 0
        opened = response.find(opening, closed) if opening else -1
        return response[max(start, closed) : end] if opened < 0 or opened >= end else ""

    def shortened(self, response: str, num_chars: int) -> str:
        """Return the end of a response, whose answer part is the end of that of the whole. If the cut would hide where
        the reasoning begins or ends, a closing tag comes first."""
        if len(response) <= num_chars:
            return response
        end, part = response[-num_chars:], self.answer_part(response)[-num_chars:]
        return end if self.answer_part(end) == part else self.reasoning_tags[1] + part


DEFAULT_JUDGING = JudgingConfig()


def _turn(response: str, start: int) -> tuple[int, int]:
    """Return where the text from `start` begins, behind the markers that open a turn, and the marker that ends it."""
    header = _HEADER.match(response, start)
    start = header.end() if header else start
    marker = _CHAT_MARKER.search(response, start)
    return start, marker.start() if marker else len(response)
