r"""The nodes of a mathematical answer, and writing them as LaTeX.

    node = Node("quotient", (Node("number", text="1"), Node("number", text="2")))
    latex(node)  ->  r"\frac{1}{2}"

Equal nodes are answers of equal spelling. `tasks.mathematics.equality` says which other answers are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["COLLECTIONS", "Node", "latex", "number", "walk"]

COLLECTIONS = frozenset(("list", "set"))


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an answer. `head` says what `parts` and `text` are:

    | head                             | parts                        | text                                 |
    |----------------------------------|------------------------------|--------------------------------------|
    | number                           |                              | digits, maybe with a decimal point   |
    | repeating                        | the period                   | what comes before it, as "0.1"       |
    | mixed                            | whole, numerator, denominator|                                      |
    | based                            |                              | "digits_base"                        |
    | symbol, word                     |                              | a letter or command; words           |
    | sum, product                     | terms; factors               |                                      |
    | quotient, power, binomial        | two                          |                                      |
    | root                             | radicand, index              |                                      |
    | function                         | arguments, then any "base"   | the command                          |
    | negative, factorial, absolute    | one                          |                                      |
    | percent, degrees                 | one                          |                                      |
    | pm, mp                           | a term; `parse` leaves none  |                                      |
    | subscripted                      | symbol, index                |                                      |
    | quantity                         | value                        | its unit                             |
    | relation                         | sides                        | the signs, joined by blanks          |
    | list, set, point, ratio          | items                        |                                      |
    | union, difference                | regions                      |                                      |
    | interval                         | two                          | its brackets, not both round         |
    | matrix                           | nodes of head row            |                                      |
    """

    head: str
    parts: tuple[Node, ...] = ()
    text: str = ""


def number(value: int | str) -> Node:
    return Node("number", text=str(value))


def walk(node: Node) -> Iterator[Node]:
    """Yield `node` and all nodes below it."""
    yield node
    for part in node.parts:
        yield from walk(part)


def latex(node: Node) -> str:
    """Return `node` as LaTeX, with every product and bracket written out."""
    return _WRITERS[node.head](node)


def _joined(separator: str, opening: str = "", closing: str = "") -> Callable[[Node], str]:
    return lambda node: opening + separator.join(map(latex, node.parts)) + closing


_UNBRACKETED = frozenset(("number", "symbol", "subscripted", "absolute", "quotient", "root", "function", "repeating", "binomial", "point"))


def _factor(node: Node) -> str:
    return latex(node) if node.head in (*_UNBRACKETED, "power", "factorial") else f"({latex(node)})"


def _base(node: Node) -> str:
    return latex(node) if node.head in ("number", "symbol", "subscripted", "absolute", "point") else f"({latex(node)})"


def _sum(node: Node) -> str:
    """Write a sum. The sign of a term becomes the sign before it."""
    parts: list[str] = []
    for term in node.parts:
        negative = term.head == "negative"
        parts.append(("-" if negative else "+" if parts else "") + (_factor(term.parts[0]) if negative else latex(term)))
    return "".join(parts)


def _function(node: Node) -> str:
    if node.text in ("\\lfloor", "\\lceil"):
        return f"{node.text} {latex(node.parts[0])} {node.text.replace('l', 'r', 1)}"
    if node.text == "\\overline":
        return f"\\overline{{{latex(node.parts[0])}}}"
    arguments = [part for part in node.parts if part.head != "base"]
    base = "".join(f"_{{{latex(part.parts[0])}}}" for part in node.parts if part.head == "base")
    return f"{node.text}{base}({', '.join(map(latex, arguments))})"


def _relation(node: Node) -> str:
    parts = [latex(node.parts[0])]
    for sign, side in zip(node.text.split(), node.parts[1:], strict=True):
        parts += [sign, latex(side)]
    return " ".join(parts)


_WRITERS: Mapping[str, Callable[[Node], str]] = {
    **dict.fromkeys(("number", "symbol", "based"), lambda node: node.text),
    "repeating": lambda node: f"{node.text}{'' if '.' in node.text else '.'}\\overline{{{latex(node.parts[0])}}}",
    "mixed": lambda node: f"{latex(node.parts[0])}\\frac{{{latex(node.parts[1])}}}{{{latex(node.parts[2])}}}",
    "word": lambda node: f"\\text{{{node.text}}}",
    "sum": _sum,
    "product": lambda node: "\\cdot ".join(map(_factor, node.parts)),
    "quotient": lambda node: f"\\frac{{{latex(node.parts[0])}}}{{{latex(node.parts[1])}}}",
    "power": lambda node: f"{_base(node.parts[0])}^{{{latex(node.parts[1])}}}",
    "binomial": lambda node: f"\\binom{{{latex(node.parts[0])}}}{{{latex(node.parts[1])}}}",
    "root": lambda node: f"\\sqrt{'' if node.parts[1] == number(2) else f'[{latex(node.parts[1])}]'}{{{latex(node.parts[0])}}}",
    "function": _function,
    "negative": lambda node: f"-{_factor(node.parts[0])}",
    "factorial": lambda node: f"{_base(node.parts[0])}!",
    "absolute": lambda node: f"|{latex(node.parts[0])}|",
    "percent": lambda node: f"{_factor(node.parts[0])}\\%",
    "degrees": lambda node: f"{_base(node.parts[0])}^{{\\circ}}",
    "pm": lambda node: f"\\pm {latex(node.parts[0])}",
    "mp": lambda node: f"\\mp {latex(node.parts[0])}",
    "subscripted": lambda node: f"{latex(node.parts[0])}_{{{latex(node.parts[1])}}}",
    "quantity": lambda node: f"{latex(node.parts[0])}\\text{{ {node.text}}}",
    "ratio": _joined(":"),
    "relation": _relation,
    "list": _joined(", "),
    "set": _joined(", ", "\\{", "\\}"),
    "point": _joined(", ", "(", ")"),
    "interval": lambda node: node.text[0] + ", ".join(map(latex, node.parts)) + node.text[1],
    "union": _joined(" \\cup "),
    "difference": _joined(" \\setminus "),
    "row": _joined(" & "),
    "matrix": lambda node: "\\begin{pmatrix}" + " \\\\ ".join(map(latex, node.parts)) + "\\end{pmatrix}",
}
