r"""Sums and products with bounds, written out term by term if they are small.

expanded(r"\sum", parse("k=1"), number(3), parse("k^2"))  ->  the node of 1^2 + 2^2 + 3^2"""

from tasks.mathematics.exact import rational_value
from tasks.mathematics.nodes import Node, number, walk

__all__ = ["SERIES", "expanded"]

SERIES = {"\\sum": ("sum", 0), "\\prod": ("product", 1)}
"""What each command makes of its terms, and its value without any."""

MAX_TERMS = 200
MAX_NODES = 4000


def expanded(command: str, lower: Node, upper: Node, term: Node) -> Node | None:
    """Return the sum or product of `term` from `lower`, as in k = 1, to `upper`. The result is None if the bounds are
    not whole numbers, or if it is too large."""
    if lower.head != "relation" or lower.text != "=" or lower.parts[0].head != "symbol":
        return None
    first, last = rational_value(lower.parts[1]), rational_value(upper)
    if first is None or last is None or first.denominator > 1 or last.denominator > 1:
        return None
    num_terms = max(0, int(last - first) + 1)
    if num_terms > MAX_TERMS or num_terms * sum(1 for _ in walk(term)) > MAX_NODES:
        return None
    head, empty = SERIES[command]
    terms = tuple(_with_value(term, lower.parts[0], int(first) + place) for place in range(num_terms))
    return Node(head, terms) if len(terms) > 1 else (*terms, number(empty))[0]


def _with_value(node: Node, symbol: Node, value: int) -> Node:
    if node == symbol:
        return number(value) if value >= 0 else Node("negative", (number(-value),))
    return Node(node.head, tuple(_with_value(part, symbol, value) for part in node.parts), node.text)
