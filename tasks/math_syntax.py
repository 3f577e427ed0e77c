r"""The structure of a mathematical answer: lists, sets, intervals, points, matrices, relations, and the expressions in them.

    latex(parse(r"$x \in [0,\tfrac12)$"))  ->  r"x \in [0, \frac{1}{2})"

Structure decides how two answers are compared (`tasks.math_equality`). What the grammar does not know is `Unreadable`, so nothing but
its nodes can reach a computer algebra system, written anew and never as the text that came in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from tasks.math_nodes import COLLECTIONS, Node, latex, number, walk
from tasks.math_tokens import NUMBER_WORDS, Kind, Token, tokens

__all__ = ["FUNCTIONS", "MAX_CHARS", "Unreadable", "parse"]

MAX_CHARS = 2000
MAX_TOKENS = 600
MAX_DEPTH = 16  # of brackets, groups and arguments
MAX_POSTFIXES = 3  # of one factor: exponents, "!", "%"
MAX_DIGITS = 1000  # of one number

FUNCTIONS = frozenset(
    f"\\{name}" for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp gcd lcm max min".split()
)
_SYMBOLS = frozenset(
    f"\\{name}"
    for name in "pi infty theta alpha beta gamma delta epsilon lambda mu nu xi rho sigma tau phi psi omega eta zeta kappa ell Delta Gamma "
    "Theta Lambda Sigma Phi Psi Omega varnothing ldots angle triangle".split()
)
_STARTS_FACTOR = FUNCTIONS | _SYMBOLS | {"\\frac", "\\binom", "\\sqrt", "\\overline", "\\lfloor", "\\lceil", "\\langle", "\\mathbb", "\\{"}
_RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx")
_CLOSING = {"(": (")", "]"), "[": ("]", ")", "["), "]": ("[", "]", ")"), "\\{": ("\\}",), "\\langle": ("\\rangle",)}
_CLOSERS = (")", "]", "\\}", "\\rangle", "}")
_OPENERS = ("(", "[", "\\{", "\\langle", "{")
_MATRICES = frozenset(("pmatrix", "bmatrix", "matrix", "smallmatrix", "Bmatrix", "array"))
_EQUALS_WORDS = frozenset(("is", "equals", "equal to", "is equal to", "equal"))
_FILLERS = frozenset(("approximately", "about", "exactly", "roughly", "only", "just", "the"))


class Unreadable(ValueError):
    """The text is no answer of the grammar; the message says why."""


class _Mixed(Exception):
    """Words and mathematics stand side by side and are no value with its unit."""


def parse(text: str) -> Node:
    """The structure of `text`. Raises Unreadable, and nothing else, however hostile the text."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"{len(text)} characters, more than {MAX_CHARS}")
    found = _meant(tokens(text))
    if not found:
        raise Unreadable("it is empty")
    if len(found) > MAX_TOKENS:
        raise Unreadable(f"{len(found)} tokens, more than {MAX_TOKENS}")
    return _with_signs_spread(_Parser(found).whole())


def _meant(found: list[Token]) -> list[Token]:
    """Without words that say nothing, with "is" as "=", without punctuation and signs that hang over at the ends."""
    kept: list[Token] = []
    for token in found:
        word = token.text.casefold() if token.kind is Kind.WORD else ""
        if word in _EQUALS_WORDS:
            kept.append(Token(Kind.SIGN, "=", token.spaced))
        elif word not in _FILLERS:
            kept.append(token)
    start, end = 0, len(kept)
    while end > start and kept[end - 1].kind is not Kind.WORD and kept[end - 1].text in (".", ",", ";", ":", "="):
        end -= 1
    while start < end and kept[start].kind is not Kind.WORD and kept[start].text in ("=", ":", ".", ",", ";", "\\approx", "\\Rightarrow"):
        start += 1
    return kept[start:end]


def _with_signs_spread(node: Node) -> Node:
    r"""1 \pm \sqrt{5} as the list of two values; in a list or set, as two of its items. All signs of an item go together."""
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


def _product_of(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("product", tuple(factors))


class _Parser:
    """Recursive descent over a list of tokens. Every loop takes a token, and what recurses goes through `_nested`."""

    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._at = 0
        self._depth = 0

    @property
    def _next(self) -> str:
        """The text of the next token; "" for words, which are no signs, and at the end."""
        return "" if self._kind in (None, Kind.WORD) else self._tokens[self._at].text

    @property
    def _kind(self) -> Kind | None:
        return self._tokens[self._at].kind if self._at < len(self._tokens) else None

    def _take(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _accept(self, *texts: str) -> str | None:
        return self._take().text if self._next in texts else None

    def _expect(self, text: str) -> None:
        if self._accept(text) is None:
            self._fail(f"'{text}' is missing")

    def _fail(self, why: str) -> NoReturn:
        where = f"before '{self._tokens[self._at].text[:20]}'" if self._kind else "at the end"
        raise Unreadable(f"{why} {where}")

    def _nested(self, rule: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable(f"brackets in brackets, more than {MAX_DEPTH}")
        found = rule()
        self._depth -= 1
        return found

    # ---- answers

    def whole(self) -> Node:
        found = self._list()
        if self._at < len(self._tokens):
            self._fail("cannot go on")
        return found

    def _list(self) -> Node:
        """Items joined by commas, semicolons and the like; one item is itself."""
        items = [self._item()]
        while self._accept(",", ";"):
            while self._accept(",", ";"):
                pass
            if self._kind is None or self._next in _CLOSERS:
                break
            items.append(self._item())
        return items[0] if len(items) == 1 else Node("list", tuple(items))

    def _item(self) -> Node:
        """Sides with relations between them; where words and mathematics are mixed, words."""
        start, depth = self._at, self._depth
        try:
            sides, signs = [self._side()], []
            while (sign := self._accept(*_RELATIONS)) is not None:
                signs.append(sign)
                sides.append(self._side())
        except _Mixed:
            self._depth = depth
            return self._words_from(start)
        return Node("relation", tuple(sides), " ".join(signs)) if signs else sides[0]

    def _words_from(self, start: int) -> Node:
        """The whole item as words: up to the next separator, or the bracket that holds it."""
        self._at, opened = start, 0
        while self._kind is not None:
            opened += (self._next in _OPENERS) - (self._next in _CLOSERS)
            if opened < 0 or (opened == 0 and self._next in (",", ";", "&", "\\\\")) or self._kind is Kind.END:
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
        """Also a time of day: 8:34 p.m. Words before a colon are a label."""
        parts = [self._quantity()]
        while self._accept(":"):
            parts = [self._quantity()] if parts[-1].head == "word" else [*parts, self._quantity()]
        if len(parts) == 1:
            return parts[0]
        ratio = Node("ratio", tuple(part.parts[0] if part.head == "quantity" else part for part in parts))
        return Node("quantity", (ratio,), parts[-1].text) if parts[-1].head == "quantity" else ratio

    def _quantity(self) -> Node:
        """A value with its unit, or words alone."""
        if self._kind is Kind.WORD:
            return self._words()
        currency = self._accept("\\$")
        value = self._sum()
        unit = "$" if currency else self._unit()
        if currency:
            self._unit()  # $5 million is no number that is known here, $5 per day is
        if self._kind in (Kind.WORD, Kind.NUMBER, Kind.LETTER, Kind.BASED, Kind.BEGIN) or self._next in ("(", *_STARTS_FACTOR):
            raise _Mixed
        return Node("quantity", (value,), unit) if unit else value

    def _words(self) -> Node:
        r"""Words alone. \text{A5}_{11} is a numeral with its base."""
        words = [self._take().text]
        while self._kind is Kind.WORD:
            words.append(self._take().text)
        text = " ".join(words)
        if self._accept("_"):
            return Node("based", text=f"{text}_{latex(self._argument())}")
        if self._kind not in (None, Kind.SIGN, Kind.COMMAND, Kind.END) or self._next in ("(", "+", "-", "{", *_STARTS_FACTOR, "\\$"):
            raise _Mixed
        known = NUMBER_WORDS.get(text.casefold().strip(" ."))
        return Node("word", text=text) if known is None else number(known)

    def _unit(self) -> str:
        """Words behind a value, with powers and quotients: "cm ^2", "miles / hour"."""
        words: list[str] = []
        while self._kind is Kind.WORD or self._next == "\\$" or (words and self._next in ("^", "/")):
            text = self._take().text
            words.append(f"^{latex(self._argument())}" if text == "^" else text)
        return " ".join(words)

    # ---- expressions

    def _sum(self) -> Node:
        terms = [self._term()]
        while self._next in ("+", "-", "\\pm", "\\mp"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def _term(self) -> Node:
        match self._accept("+", "-", "\\pm", "\\mp"):
            case "-":
                return Node("negative", (self._nested(self._term),))
            case "\\pm":
                return Node("pm", (self._product(),))
            case "\\mp":
                return Node("mp", (self._product(),))
            case _:
                return self._product()

    def _product(self) -> Node:
        factors = [self._factor()]
        num_quotients = 0
        while True:
            if self._accept("*"):
                factors.append(self._signed_factor())
            elif self._next == "/" and num_quotients < MAX_POSTFIXES:
                self._take()
                factors = [Node("quotient", (_product_of(factors), self._signed_factor()))]
                num_quotients += 1
            elif self._starts_factor():
                factors.append(self._factor())
            else:
                return _product_of(factors)

    def _signed_factor(self) -> Node:
        if self._accept("-"):
            return Node("negative", (self._nested(self._signed_factor),))
        return self._factor()

    def _starts_factor(self) -> bool:
        """Whether what comes next is a factor without a sign before it. Of two numbers, the second is not."""
        match self._kind:
            case Kind.LETTER | Kind.BEGIN:
                return True
            case Kind.COMMAND:
                return self._next in _STARTS_FACTOR
            case Kind.SIGN:
                return self._next in ("(", "{") or (self._next == "[" and any(token.text == "]" for token in self._tokens[self._at :]))
        return False

    def _factor(self) -> Node:
        found = self._atom()
        for _ in range(MAX_POSTFIXES + 1):
            if self._accept("^"):
                found = Node("power", (found, self._exponent()))
            elif self._accept("!"):
                found = Node("factorial", (found,))
            elif self._accept("%"):
                found = Node("percent", (found,))
            elif self._accept("°"):
                found = Node("degrees", (found,))
            elif self._next == "_" and found.head == "symbol":
                self._take()
                found = Node("subscripted", (found, self._argument()))
            else:
                return found
        self._fail("exponents upon exponents")

    def _exponent(self) -> Node:
        return Node("negative", (self._argument(),)) if self._accept("-") else self._argument()

    def _atom(self) -> Node:
        match self._kind:
            case Kind.NUMBER:
                return self._number()
            case Kind.LETTER:
                return Node("symbol", text=self._take().text)
            case Kind.BASED:
                return Node("based", text=self._take().text)
            case Kind.BEGIN:
                return self._nested(self._matrix)
            case Kind.WORD:
                raise _Mixed
            case Kind.COMMAND:
                return self._command()
        if self._next in ("(", "[", "]"):
            return self._nested(self._brackets)
        if self._next == "{":
            return self._nested(self._group)
        if self._accept("|"):
            found = self._nested(self._sum)
            self._expect("|")
            return Node("absolute", (found,))
        self._fail("a value is missing")

    def _number(self) -> Node:
        text = self._take().text
        if len(text) > MAX_DIGITS:
            raise Unreadable(f"a number of {len(text)} characters, more than {MAX_DIGITS}")
        if self._next == "." and [token.text for token in self._tokens[self._at + 1 : self._at + 2]] == ["\\overline"]:
            self._take()  # 0.\overline{3}
        if self._next == "\\overline" and ("." in text or self._tokens[self._at - 1].text == "."):
            self._take()
            return Node("repeating", (self._argument(),), text)
        return self._mixed(text) or number(text)

    def _mixed(self, whole: str) -> Node | None:
        r"""6\frac{1}{6} and "6 1/6" are mixed numbers; 6\frac{7}{6} and 6\frac{x}{6} are products."""
        start, held = self._at, list(self._tokens)
        parts: list[Node] = []
        if whole.isdigit() and self._accept("\\frac"):
            parts = [self._argument(single_digit=True), self._argument(single_digit=True)]
        elif whole.isdigit() and self._kind is Kind.NUMBER and self._tokens[self._at].spaced:
            parts = [number(self._take().text)]
            parts += [number(self._take().text)] if self._accept("/") and self._kind is Kind.NUMBER else []
        if len(parts) == 2 and all(part.head == "number" and part.text.isdigit() and len(part.text) < 10 for part in parts):
            if int(parts[0].text) < int(parts[1].text):
                return Node("mixed", (number(whole), *parts))
        self._at, self._tokens = start, held
        return None

    def _command(self) -> Node:
        name = self._next
        if name in _SYMBOLS:
            return Node("symbol", text=self._take().text)
        if name in FUNCTIONS:
            return self._nested(self._function)
        if name in ("\\{", "\\langle"):
            return self._nested(self._brackets)
        if name not in _STARTS_FACTOR:
            self._fail("an unknown command")
        self._take()
        match name:
            case "\\frac" | "\\binom":
                parts = (self._argument(single_digit=True), self._argument(single_digit=True))
                return Node("quotient" if name == "\\frac" else "binomial", parts)
            case "\\sqrt":
                return self._root()
            case "\\mathbb":
                return Node("symbol", text=f"\\mathbb{{{latex(self._argument())}}}")
            case "\\overline":
                return Node("function", (self._argument(),), name)
        found = self._nested(self._sum)  # in \lfloor or \lceil
        self._expect(name.replace("l", "r", 1))
        return Node("function", (found,), name)

    def _root(self) -> Node:
        index = number(2)
        if self._accept("["):
            index = self._nested(self._sum)
            self._expect("]")
        return Node("root", (self._argument(), index))

    def _function(self) -> Node:
        r"""Power and base come before the argument; that is in brackets, or goes on to the next sign or function: \sin^2 5x \cos x."""
        name = self._take().text
        power = base = None
        for _ in range(2):
            if self._accept("^"):
                power = self._exponent()
            elif self._accept("_"):
                base = self._argument()
        arguments = self._arguments()
        if power == Node("negative", (number(1),)) and name in ("\\sin", "\\cos", "\\tan"):
            name, power = f"\\arc{name[1:]}", None
        found = Node("function", arguments if base is None else (*arguments, Node("base", (base,))), name)
        return found if power is None else Node("power", (found, power))

    def _arguments(self) -> tuple[Node, ...]:
        if self._next in ("(", "["):
            argument = self._nested(self._brackets)
            return argument.parts if argument.head in ("point", "interval") else (argument,)
        factors = [self._factor()]
        while self._starts_factor() and self._next not in FUNCTIONS:
            factors.append(self._factor())
        if self._accept("/"):
            factors = [Node("quotient", (_product_of(factors), self._factor()))]
        return (_product_of(factors),)

    def _argument(self, *, single_digit: bool = False) -> Node:
        r"""A group, or one token; of a number all digits, or where TeX is taken at its word, as in \frac12, the first."""
        if self._next == "{":
            return self._nested(self._group)
        if self._kind is not Kind.NUMBER:
            return self._nested(self._atom)
        text = self._take().text
        if single_digit and len(text) > 1:
            self._at -= 1
            self._tokens = [*self._tokens[: self._at], Token(Kind.NUMBER, text[1:]), *self._tokens[self._at + 1 :]]
            text = text[0]
        return number(text)

    def _group(self) -> Node:
        """{...}: brackets that TeX does not show. Several items in them are a set whose braces were not escaped."""
        self._take()
        found = self._list()
        self._expect("}")
        return Node("set", found.parts) if found.head == "list" else found

    def _brackets(self) -> Node:
        r"""What stands in (), [], \{\} or \langle\rangle, also ]a,b[. A single item in round or square brackets is itself."""
        opening = self._take().text
        if opening == "\\{" and self._accept("\\}"):
            return Node("symbol", text="\\varnothing")
        found = self._list()
        if self._next not in _CLOSING[opening]:
            self._fail("a bracket is not closed")
        closing = self._take().text
        items = found.parts if found.head == "list" else (found,)
        if opening == "\\{":
            return Node("set", items)
        if len(items) == 1:
            return found
        brackets = ("(" if opening in ("(", "]", "\\langle") else "[") + ("]" if closing == "]" else ")")
        return Node("point", items) if brackets == "()" or len(items) != 2 else Node("interval", items, brackets)

    def _matrix(self) -> Node:
        name = self._take().text
        if name not in _MATRICES:
            raise Unreadable(f"an unknown environment '{name[:20]}'")
        rows = [[self._sum()]]
        while self._kind is not Kind.END:
            if self._accept("&"):
                rows[-1].append(self._sum())
            elif self._accept("\\\\"):
                if self._kind is not Kind.END:
                    rows.append([self._sum()])
            else:
                self._fail("the matrix does not go on")
        self._take()
        return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
