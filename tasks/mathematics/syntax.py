r"""The structure of a mathematical answer: lists, sets, intervals, points, matrices, relations and their expressions.

    latex(parse(r"$x \in [0,\tfrac12)$"))  ->  r"x \in [0, \frac{1}{2})"

The structure decides how two answers are compared (`tasks.mathematics.equality`). A text outside the grammar is
`Unreadable`. So a computer algebra system only receives LaTeX that is written from nodes, never the original text."""

from tasks.mathematics.expressions import STARTS_FACTOR, Expressions, Mixed, Unreadable
from tasks.mathematics.matrices import computed
from tasks.mathematics.nodes import COLLECTIONS, Node, latex, number, walk
from tasks.mathematics.tokens import Token, TokenKind, tokens
from tasks.mathematics.words import NUMBER_WORDS, ONE_LETTER_UNITS

__all__ = ["MAX_CHARS", "Unreadable", "parse"]

MAX_CHARS = 2000
MAX_TOKENS = 600

_RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx")
_SEPARATORS = (",", ";", "\\\\", "&")
_CLOSERS = (")", "]", "\\}", "\\rangle", "}")
_OPENERS = ("(", "[", "\\{", "\\langle", "{")
_EQUALS_WORDS = frozenset(("is", "equals", "equal to", "is equal to", "equal"))
_LABEL_ENDS = (" is", " are", " equals", " of")
_LOOSE_AT_THE_START = ("=", ":", ".", ",", ";", "\\approx", "\\Rightarrow", "\\\\", "&", "'")
_VALUES = (TokenKind.WORD, TokenKind.NUMBER, TokenKind.LETTER, TokenKind.BASED, TokenKind.BEGIN)
_AFTER_VALUE, _AFTER_WORDS = STARTS_FACTOR | {"("}, STARTS_FACTOR | {"(", "+", "-", "{", "\\$"}  # then the item is words
_FILLERS = frozenset(("approximately", "about", "exactly", "roughly", "only", "just", "the"))


def parse(text: str) -> Node:
    """Return the structure of `text`. Raises Unreadable, and nothing else, however hostile the text."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters, more than {MAX_CHARS}")
    found = _meant(tokens(text))
    if not found:
        raise Unreadable("it is empty")
    if len(found) > MAX_TOKENS:
        raise Unreadable(f"{len(found)} tokens, more than {MAX_TOKENS}")
    return _with_signs_spread(computed(_Parser(found).whole()))


def _meant(found: list[Token]) -> list[Token]:
    """Drop empty words and loose punctuation and signs at the ends, and read "is" as "="."""
    kept: list[Token] = []
    for token in found:
        word = token.text.casefold() if token.kind is TokenKind.WORD else ""
        if word in _EQUALS_WORDS:
            kept.append(Token(TokenKind.SIGN, "=", token.spaced))
        elif word not in _FILLERS:
            kept.append(token)
    start, end = 0, len(kept)
    while end > start and kept[end - 1].kind is not TokenKind.WORD and kept[end - 1].text in (".", ",", ";", ":", "=", "\\\\", "'"):
        end -= 1
    while start < end and kept[start].kind is not TokenKind.WORD and kept[start].text in _LOOSE_AT_THE_START:
        start += 1
    return kept[start:end]


def _with_signs_spread(node: Node) -> Node:
    r"""Return 1 \pm \sqrt{5} as a list of two values, or as two items of a list. Signs of an item go together."""
    if node.head in COLLECTIONS:
        parts = [_with_signs_spread(part) for part in node.parts]
        return Node(node.head, tuple(item for part in parts for item in (part.parts if part.head == "list" else (part,))))
    if not any(part.head in ("pm", "mp") for part in walk(node)):
        return node
    return Node("list", (_with_sign(node, "pm"), _with_sign(node, "mp")))


def _with_sign(node: Node, plus: str) -> Node:
    parts = tuple(_with_sign(part, plus) for part in node.parts)
    if node.head in ("pm", "mp"):
        return parts[0] if node.head == plus else Node("negative", parts)
    return Node(node.head, parts, node.text)


class _Parser(Expressions):
    """The parser of whole answers, which uses that of expressions."""

    def whole(self) -> Node:
        found = self.items()
        if self._at < len(self._tokens):
            self._fail("cannot go on")
        return found

    def items(self) -> Node:
        """Parse items with commas or semicolons between them. A single item stands for itself."""
        items = [self._item()]
        while self._accept(*_SEPARATORS):
            while self._accept(*_SEPARATORS):
                pass
            if self._kind in (None, TokenKind.END) or self._next in _CLOSERS:
                break
            items.append(self._item())
        return items[0] if len(items) == 1 else Node("list", tuple(items))

    def _item(self) -> Node:
        """Parse sides with relations between them. An item that mixes words and mathematics is words."""
        start, depth = self._at, self._depth
        if self._kind is TokenKind.BEGIN and self._is_system():
            return self._nested(self._system)
        try:
            sides, signs = [self._side()], []
            while (sign := self._relation()) is not None:
                signs.append(sign)
                sides.append(self._side())
        except Mixed:
            self._depth = depth
            return self._words_from(start)
        return Node("relation", tuple(sides), " ".join(signs)) if signs else sides[0]

    def _relation(self) -> str | None:
        """Take a sign of relation, and the marks beside it that align the rows of a system."""
        after = self._tokens[self._at + 1 : self._at + 2]
        if self._next == "&" and after and after[0].kind is not TokenKind.WORD and after[0].text in _RELATIONS:
            self._take()
        sign = self._accept(*_RELATIONS)
        if sign is not None:
            self._accept("&")
        return sign

    def _is_system(self) -> bool:
        """Return whether an environment has relations in its rows."""
        texts = [token.text for token in self._tokens[self._at :]]
        is_open = self._tokens[self._at].text in ("cases", "dcases", "rcases", "array", "matrix")
        return is_open and any(text in _RELATIONS for text in texts[: texts.index(texts[0], 1) if texts[0] in texts[1:] else None])

    def _system(self) -> Node:
        """Parse the rows of an environment, each of which is a relation. They are a list."""
        name = self._take().text
        found = self.items()
        rows = found.parts if found.head == "list" else (found,)
        if self._kind is not TokenKind.END or not all(row.head == "relation" for row in rows):
            raise Unreadable(f"an unknown environment '{name[:20]}'")
        self._take()
        return found

    def _words_from(self, start: int) -> Node:
        """Read the whole item as words, up to the next separator or the bracket around it."""
        self._at, opened = start, 0
        while self._kind is not None:
            opened += (self._next in _OPENERS) - (self._next in _CLOSERS)
            if opened < 0 or (opened == 0 and self._next in (",", ";", "&", "\\\\")) or self._kind is TokenKind.END:
                break
            self._at += 1
        return Node("word", text=" ".join(token.text for token in self._tokens[start : self._at]))

    def _side(self) -> Node:
        parts = [self._ratio()]
        while self._accept("\\cup"):
            parts.append(self._ratio())
        found = parts[0] if len(parts) == 1 else Node("union", tuple(parts))
        return Node("difference", (found, self._ratio())) if self._accept("\\setminus") else found

    def _ratio(self) -> Node:
        """Parse a ratio or a time of day, as in 8:34 p.m. Words before a colon are a label."""
        parts = [self._quantity()]
        while self._accept(":"):
            parts = [self._quantity()] if parts[-1].head == "word" else [*parts, self._quantity()]
        if len(parts) == 1:
            return parts[0]
        ratio = Node("ratio", tuple(part.parts[0] if part.head == "quantity" else part for part in parts))
        return Node("quantity", (ratio,), parts[-1].text) if parts[-1].head == "quantity" else ratio

    def _quantity(self) -> Node:
        """Parse a value with its unit, or words alone."""
        if self._kind is TokenKind.WORD:
            return self._words()
        currency = self._accept("\\$")
        value = self._sum()
        unit = "$" if currency else self._unit()
        if currency:
            self._unit()  # as in "$5 per day"; "$5 million" is not understood
        if self._kind in _VALUES or self._next in _AFTER_VALUE:
            raise Mixed
        return Node("quantity", (value,), unit) if unit else value

    def _words(self) -> Node:
        r"""Parse words alone. \text{A5}_{11} is a numeral with its base."""
        words = [self._take().text]
        while self._kind is TokenKind.WORD:
            words.append(self._take().text)
        text = " ".join(words)
        if self._kind is not None and text.casefold().endswith(_LABEL_ENDS):
            return self._quantity()
        if self._accept("_"):
            return Node("based", text=f"{text}_{latex(self._argument())}")
        if self._kind not in (None, TokenKind.SIGN, TokenKind.COMMAND, TokenKind.END) or self._next in _AFTER_WORDS:
            raise Mixed
        known = NUMBER_WORDS.get(text.casefold().strip(" ."))
        return Node("word", text=text) if known is None else number(known)

    def _unit(self) -> str:
        """Parse the words behind a value, with powers, quotients and abbreviations: "cm ^2", "km / h", "sq. ft."."""
        words: list[str] = []
        while self._kind is TokenKind.WORD or self._next == "\\$" or (words and self._continues_unit(words[-1])):
            text = self._take().text
            if text == ".":
                continue
            words.append(f"^{latex(self._argument())}" if text == "^" else text)
        return " ".join(words)

    def _continues_unit(self, last: str) -> bool:
        """Return whether a unit goes on behind its part `last`."""
        if self._next == "." or self._kind is TokenKind.LETTER:
            return last.isalpha() if self._next == "." else last in ("/", "*") and self._next in ONE_LETTER_UNITS
        after = self._tokens[self._at + 1] if self._next == "*" and self._at + 1 < len(self._tokens) else None
        is_unit = after is not None and (after.kind is TokenKind.WORD or after.text in ONE_LETTER_UNITS)
        return self._next in ("^", "/") or is_unit
