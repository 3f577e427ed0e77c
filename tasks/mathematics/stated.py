r"""Where the mathematical answer stands in a response.

Of its answer part (`tasks.judging`), a response states (`stated_answer`) the first of these that exists:
1. its last closed \boxed{...} or \fbox{...} that is not blank, the innermost if they nest. Boxes with nothing but
   "and", "or" or a comma between them are one list, or two forms of one answer, of which the last counts;
2. what follows the last "answer is", "Answer:" or "####" on its line. If words come first, it is what follows the last
   "is" or "=" of the sentence: "Answer: The largest $n$ is 17." states 17;
3. the last mathematics between dollar signs, \(...\) or \[...\] of its last line that is not blank, as a list with
   what "and" or "or" joins to it under the same name: "$x = 3$ or $x = 5$";
4. the whole response, if it is one line of up to MAX_BARE_CHARS characters and MAX_BARE_WORDS words;
5. the last number (`tasks.answers.final_number`).
In 2 and 3, mathematics that is only a name, such as $n$, is no answer where a number follows."""

import re

from tasks.answers import final_number, reference_number
from tasks.base import DEFAULT_JUDGING, JudgingConfig
from tasks.mathematics.words import NAMES

__all__ = ["last_box", "opens_a_box", "stated_answer", "stated_in"]

MAX_BARE_CHARS = 80
MAX_BARE_WORDS = 3
_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)\s*+\{|\\[{}\\]|[{}]")
_BOX_START = re.compile(r"\\(?:f?boxed|fbox)(?![A-Za-z])")
_BOXED_TOKEN = re.compile(r"\\f?boxed\s*+([^\s{}\\])")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;:&.}*]|\([a-h]\)|\\[()\[\],;:! ]|\\q?quad|\\text\s*\{|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|[A-Za-z](?:_[0-9])?\s*="
    r"|(?:for|in)\s+(?:part|case)\s*\(?[a-z]\)?)*"
)
_LINK = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_MARKS = (
    re.compile(r"####[ \t]*+"),
    re.compile(r"answer[ \t*_]*+(?:is\b|[:=])[ \t]*+:?", re.IGNORECASE),
    re.compile(r"(?:correct|right|best) (?:option|choice)[ \t*_]*+(?:is\b|:)[ \t]*+:?", re.IGNORECASE),
)
_MATHEMATICS = re.compile(r"(?<!\\)\$\$?([^$]{1,400})(?:(?<!\\)|(?<=\\\\))\$\$?|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_NAME = re.compile(
    r"(?:[A-Za-z]|[A-Z]{2,4}|\\(?!pi|infty|emptyset|varnothing)[A-Za-z]+)(?:_(?:\w|\{\w{1,9}\}))?'*(?:\([a-z](?:,\s*[a-z]){0,3}\))?"
)
_DIGIT = re.compile(r"\d")
_MAX_NAME_CHARS = 40
_MAX_SENTENCE_CHARS = 2000
_SHORT_FIRST_WORDS = frozenset(["a", "an", "as", "at", "by", "he", "if", "in", "it", "my", "of", "on", "so", "to", "we"])
_SAYS = re.compile(r"(?<![\\A-Za-z])(?:is|are|equals?)(?![A-Za-z])|(?<![<>=!:])=", re.IGNORECASE)
_FIRST_WORD = re.compile(r"[^\w\\$]*([^\W\d_]+)[\s,]")
_NAME_BEFORE = re.compile(r"(?:\$|\\[)\]]|[^\W\d_]{2}|(?<![^\s$])[A-Za-z])[\s*_]*\Z")
_BEGINS_WITH_VALUE = re.compile(
    r"[\s*_:`\"']*(?:(?:equal to|exactly|just|only|about|approximately|simply|thus|therefore|either)\s+)*[*_`\"']*"
    r"(?:[-+\u2212]\s*)?(?:\$|\\[(\[A-Za-z{]|\d|\.\d|[(\[{√π∞]|[^\w\s]?\d)",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE_END = re.compile(r"(?<=[\w)}\]$])[.!?](?=\s+[A-Z]|\s*$)")


def stated_answer(response: str, judging: JudgingConfig = DEFAULT_JUDGING) -> str | None:
    """Return the text that the response states as its answer, by the rules at the head of the module, or None."""
    return stated_in(judging.answer_part(response))


def last_box(text: str) -> str | None:
    """Return the content of the last box alone, where the published solutions of MATH have their answer."""
    boxes = _last_boxes(text)
    return boxes[-1].strip() if boxes else None


def opens_a_box(text: str) -> bool:
    """Return whether a box begins, closed or not."""
    return _BOX_START.search(text) is not None


def stated_in(text: str) -> str | None:
    """Return what the answer part of a response states, or None."""
    boxes = _last_boxes(text)
    if boxes:
        return ", ".join(boxes)
    for found in (_marked(text), _last_mathematics(text), _bare(text)):
        if found:
            return found
    return None if _BOX_START.search(text) else final_number(text)


def _last_boxes(text: str) -> list[str]:
    """Return the contents of the last closed boxes that are not blank and follow one another directly."""
    opened: list[tuple[int, int] | None] = []  # starts of command and content, for each open brace of a box
    found: list[tuple[int, int, int]] = []  # the same, and the end of the content
    for match in _BOX.finditer(text):
        brace = match.group()
        if brace == "}":
            box = opened.pop() if opened else None
            is_outer = box is not None and bool(found) and found[-1][1] > box[1]
            if box is not None and not is_outer and text[box[1] : match.start()].strip():
                found.append((*box, match.start()))
        elif brace not in (r"\{", r"\}", r"\\"):
            opened.append((match.start(), match.end()) if len(brace) > 1 else None)
    last: list[str] = []
    for number in range(len(found) - 1, -1, -1):
        last.insert(0, text[found[number][1] : found[number][2]])
        if number and not _BETWEEN_BOXES.fullmatch(text, found[number - 1][2] + 1, found[number][0]):
            break
    return last or [match[1] for match in list(_BOXED_TOKEN.finditer(text))[-1:]]


def _marked(text: str) -> str | None:
    """Return what the line behind the last mark states. It is the first mathematics, if only words come before it, and
    otherwise the line up to the end of its sentence, or the only number in many words."""
    for mark in _MARKS:
        matches = list(mark.finditer(text))
        if not matches:
            continue
        line = _said(text[matches[-1].end() :].lstrip(" \t\r\n*_:").partition("\n")[0])
        mathematics = _MATHEMATICS.search(line)
        if mathematics is not None and not _DIGIT.search(line, 0, mathematics.start()):
            return _whole_expression(line, mathematics)
        sentence = _SENTENCE_END.split(line)[0].strip(" \t*_`'\"")
        if sentence:
            return (reference_number(sentence) if len(_WORD.findall(sentence)) > MAX_BARE_WORDS else None) or sentence
    return None


def _said(line: str) -> str:
    """Return what follows the last "is" of the first sentence, or the last "=" behind a name, if a value does, and if
    the line begins with words or with a name. Any other line is returned as it is."""
    name, first = _MATHEMATICS.match(line), _FIRST_WORD.match(line)
    is_sentence = first is not None and (len(first[1]) > 2 or first[1].casefold() in _SHORT_FIRST_WORDS) and first[1] not in NAMES
    if not (_is_only_a_name(name) or _is_named(line, name) if name else is_sentence):
        return line
    sentence = _SENTENCE_END.split(line)[0][:_MAX_SENTENCE_CHARS]
    within = [match.span() for match in _MATHEMATICS.finditer(sentence)]
    for word in reversed(list(_SAYS.finditer(sentence))):
        is_apart = not any(start < word.start() < end for start, end in within)
        is_apart = is_apart and (
            word.group() != "=" or _NAME_BEFORE.search(sentence[max(0, word.start() - _MAX_NAME_CHARS) : word.start()]) is not None
        )
        if is_apart and _BEGINS_WITH_VALUE.match(sentence, word.end()):
            return line[word.end() :].lstrip(" \t*_:")
    if name and _DIGIT.search(sentence, name.end()):
        return final_number(sentence[name.end() :]) or line
    return line


def _is_named(line: str, mathematics: re.Match[str]) -> bool:
    """Return whether "is" follows mathematics with a letter, as in "$a + b$ is 5"."""
    says = _SAYS.match(line, len(line) - len(line[mathematics.end() :].lstrip(" *_")))
    return says is not None and says.group() != "=" and any(character.isalpha() for character in _content(mathematics))


def _is_only_a_name(mathematics: re.Match[str] | None) -> bool:
    return mathematics is not None and _NAME.fullmatch(_content(mathematics)) is not None


def _whole_expression(line: str, first: re.Match[str]) -> str:
    """Join stretches of mathematics that have nothing but "and", "or" or a comma between them to one list."""
    parts = [_content(first)]
    end = first.end()
    for match in _MATHEMATICS.finditer(line, first.end()):
        if not _BETWEEN_BOXES.fullmatch(line, end, match.start()):
            break
        parts.append(_content(match))
        end = match.end()
    return ", ".join(parts)


def _last_mathematics(text: str) -> str | None:
    line = text.rstrip().rpartition("\n")[2]
    matches = list(_MATHEMATICS.finditer(line))
    if not matches:
        return None
    is_only_a_name = _is_only_a_name(matches[-1]) and _DIGIT.search(line, matches[-1].end())
    if is_only_a_name:
        return final_number(line[matches[-1].end() :])
    parts, end = [_content(matches[-1])], matches[-1].start()
    for match in reversed(matches[:-1]):
        link = line[match.end() : end]
        is_linked = _LINK.search(link) is not None or len(parts) > 1
        if not (is_linked and _BETWEEN_BOXES.fullmatch(link) and _name_of(_content(match)) == _name_of(parts[0])):
            break
        parts.insert(0, _content(match))
        end = match.start()
    return ", ".join(parts)


def _name_of(mathematics: str) -> str:
    """Return the left side of an equation, or ""."""
    name, equals, _ = mathematics.rpartition("=")
    return name.strip() if equals else ""


def _content(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _bare(text: str) -> str | None:
    line = text.strip().strip("*")
    is_bare = line and "\n" not in line and len(line) <= MAX_BARE_CHARS and not _BOX_START.search(line)
    return line if is_bare and len(_WORD.findall(line)) <= MAX_BARE_WORDS else None
