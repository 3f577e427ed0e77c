r"""The expressions in a mathematical answer: sums, products, powers, roots, functions, matrices, values in brackets.

`Expressions` only asks for the `items` between two brackets, which `tasks.mathematics.syntax` reads."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NoReturn

from tasks.mathematics.nodes import Node, latex, number
from tasks.mathematics.series import SERIES, expanded
from tasks.mathematics.tokens import Token, TokenKind
from tasks.mathematics.words import FUNCTIONS, GREEK, words

__all__ = ["STARTS_FACTOR", "Expressions", "Mixed", "Unreadable"]

MAX_DEPTH = 16  # of nested brackets, groups and arguments
MAX_POSTFIXES = 3  # exponents, "!" and "%" behind one factor
MAX_DIGITS = 1000  # in one number

_SYMBOLS = GREEK | words(r"\pi \infty \varnothing \ldots \angle \triangle")
STARTS_FACTOR = FUNCTIONS | _SYMBOLS | SERIES.keys() | words(r"\frac \binom \sqrt \overline \lfloor \lceil \langle \mathbb \{")
_CLOSING = {"(": (")", "]"), "[": ("]", ")", "["), "]": ("[", "]", ")"), "\\{": ("\\}",), "\\langle": ("\\rangle",)}
_POSTFIXES = {"!": "factorial", "%": "percent", "°": "degrees"}
_INFIX = {"\\choose": "binomial", "\\over": "quotient"}
_MATRICES = words("pmatrix bmatrix matrix smallmatrix Bmatrix array")


class Unreadable(ValueError):
    """The text is not an answer in the grammar. The message says why."""


class Mixed(Exception):
    """Words and mathematics stand side by side but are not a value with its unit."""


class Expressions(ABC):
    """Recursive descent over a list of tokens. Every loop takes a token, and every recursion goes through `_nested`."""

    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._at = 0
        self._depth = 0

    @property
    def _next(self) -> str:
        """The text of the next token, or "" for a word and at the end."""
        return "" if self._kind in (None, TokenKind.WORD) else self._tokens[self._at].text

    @property
    def _kind(self) -> TokenKind | None:
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

    @abstractmethod
    def items(self) -> Node:
        """Parse what stands between two brackets: one answer, or a list of them."""

    # ---- expressions
    def _sum(self) -> Node:
        terms = [self._term()]
        while self._next in ("+", "-", "\\pm", "\\mp"):
            terms.append(self._term())
        found = terms[0] if len(terms) == 1 else Node("sum", tuple(terms))
        infix = self._accept(*_INFIX)  # as in {5 \\choose 2}
        return found if infix is None else Node(_INFIX[infix], (found, self._nested(self._sum)))

    def _term(self) -> Node:
        match self._accept("+", "-", "\\pm", "\\mp"):
            case "+" if self._next in ("+", "-"):
                return self._nested(self._term)
            case "-":
                return Node("negative", (self._nested(self._term),))
            case "\\pm" | "\\mp" as sign:
                return Node(sign[1:], (self._product(),))
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
        """Return whether a factor follows without a sign before it. A second number does not count."""
        match self._kind:
            case TokenKind.LETTER | TokenKind.BEGIN:
                return True
            case TokenKind.COMMAND:
                return self._next in STARTS_FACTOR
            case TokenKind.SIGN:
                return self._next in ("(", "{") or (self._next == "[" and any(token.text == "]" for token in self._tokens[self._at :]))
        return False

    def _factor(self) -> Node:
        found = self._atom()
        for _ in range(MAX_POSTFIXES + 1):
            if self._accept("^"):
                found = Node("power", (found, self._exponent()))
            elif (sign := self._accept(*_POSTFIXES)) is not None:
                found = Node(_POSTFIXES[sign], (found,))
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
            case TokenKind.NUMBER:
                return self._number()
            case TokenKind.LETTER:
                return Node("symbol", text=self._take().text)
            case TokenKind.BASED:
                return Node("based", text=self._take().text)
            case TokenKind.BEGIN:
                return self._nested(self._matrix)
            case TokenKind.WORD:
                raise Mixed
            case TokenKind.COMMAND:
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
        after = [token.text for token in self._tokens[self._at + 1 : self._at + 4]]
        if self._next == "." and (after[:1] in (["\\overline"], ["\\dot"]) or (after[:1] == ["("] and after[2:] == [")"])):
            self._take()  # 0.\overline{3}, 0.\dot{3}, 0.(3)
        if "." in text or self._tokens[self._at - 1].text == ".":
            if self._accept("\\overline"):
                return Node("repeating", (self._argument(),), text)
            if self._next == "\\dot":
                return Node("repeating", (number(self._dotted()),), text)
            if self._tokens[self._at - 1].text == ".":
                return Node("repeating", (self._nested(self._brackets),), text)
        return self._mixed(text) or number(text)

    def _dotted(self) -> str:
        r"""Parse the period of 0.\dot{1}4285\dot{7}, whose first and last digits have dots."""
        digits = ""
        while self._accept("\\dot"):
            digits += self._argument().text
            middle = self._tokens[self._at : self._at + 2]
            if [token.kind for token in middle] == [TokenKind.NUMBER, TokenKind.COMMAND] and middle[1].text == "\\dot":
                digits += self._take().text
        return digits

    def _mixed(self, whole: str) -> Node | None:
        r"""Parse the fraction of a mixed number, as in 6\frac{1}{6} and "6 1/6". In 6\frac{7}{6} it is a factor."""
        start, held = self._at, list(self._tokens)
        parts: list[Node] = []
        if whole.isdigit() and self._accept("\\frac"):
            parts = [self._argument(single_digit=True), self._argument(single_digit=True)]
        elif whole.isdigit() and self._kind is TokenKind.NUMBER and self._tokens[self._at].spaced:
            parts = [number(self._take().text)]
            parts += [number(self._take().text)] if self._accept("/") and self._kind is TokenKind.NUMBER else []
        is_whole = len(parts) == 2 and all(part.head == "number" and part.text.isdigit() and len(part.text) < 10 for part in parts)
        if is_whole and int(parts[0].text) < int(parts[1].text):
            return Node("mixed", (number(whole), *parts))
        self._at, self._tokens = start, held
        return None

    def _command(self) -> Node:
        name = self._next
        if name in _SYMBOLS:
            return Node("symbol", text=self._take().text)
        if name in FUNCTIONS:
            return self._nested(self._function)
        if name in SERIES:
            return self._nested(self._series)
        if name in ("\\{", "\\langle"):
            return self._nested(self._brackets)
        if name not in STARTS_FACTOR:
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

    def _series(self) -> Node:
        """Parse a sum or product with bounds, which is written out: nothing later knows of it."""
        command = self._take().text
        bounds: dict[str, Node] = {}
        while len(bounds) < 2 and (sign := self._accept("_", "^")) is not None:
            bounds[sign] = self._argument()
        term = self._product()
        found = expanded(command, bounds["_"], bounds["^"], term) if len(bounds) == 2 else None
        if found is None:
            self._fail(f"an unknown command {command} with such bounds")
        return found

    def _root(self) -> Node:
        index = number(2)
        if self._accept("["):
            index = self._nested(self._sum)
            self._expect("]")
        return Node("root", (self._argument(), index))

    def _function(self) -> Node:
        r"""Parse a function and its argument: \sin^2 5x \cos x is the product of \sin^2(5x) and \cos(x)."""
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
        r"""Parse a group or one token. Of a number, take all digits or only the first, as TeX does in \frac12."""
        if self._next == "{":
            return self._nested(self._group)
        if self._kind is not TokenKind.NUMBER:
            return self._nested(self._atom)
        text = self._take().text
        if single_digit and len(text) > 1:
            self._at -= 1
            self._tokens = [*self._tokens[: self._at], Token(TokenKind.NUMBER, text[1:]), *self._tokens[self._at + 1 :]]
            text = text[0]
        return number(text)

    def _group(self) -> Node:
        """Parse {...}, which TeX does not show. Several items in it are a set whose braces are not escaped."""
        self._take()
        found = self.items()
        self._expect("}")
        return Node("set", found.parts) if found.head == "list" else found

    def _brackets(self) -> Node:
        r"""Parse (), [], \{\}, \langle\rangle or ]a,b[. A single item in round or square brackets stands for itself."""
        opening = self._take().text
        if opening == "\\{" and self._accept("\\}"):
            return Node("symbol", text="\\varnothing")
        found = self.items()
        if self._next not in _CLOSING[opening]:
            self._fail("a bracket is not closed")
        closing = self._take().text
        items = found.parts if found.head == "list" else (found,)
        if opening == "\\{":
            return Node("set", items)
        if len(items) == 1:
            return found
        if len(items) > 2 and closing not in _CLOSING[opening][:1]:
            self._fail("brackets of two kinds")
        brackets = ("(" if opening in ("(", "]", "\\langle") else "[") + ("]" if closing == "]" else ")")
        return Node("point", items) if brackets == "()" or len(items) != 2 else Node("interval", items, brackets)

    def _matrix(self) -> Node:
        name = self._take().text
        if name not in _MATRICES:
            raise Unreadable(f"an unknown environment '{name[:20]}'")
        rows = [[self._sum()]]
        while self._accept("&", "\\\\") is not None:
            if self._tokens[self._at - 1].text == "&":
                rows[-1].append(self._sum())
            elif self._kind is not TokenKind.END:
                rows.append([self._sum()])
        if self._kind is not TokenKind.END:
            self._fail("the matrix does not go on")
        self._take()
        return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))


def _product_of(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("product", tuple(factors))
