r"""Sums, products and multiples of matrices, computed entry by entry.

computed(parse(r"2\begin{pmatrix}1\\x\end{pmatrix}"))  ->  the node of the matrix of 2*1 and 2*x"""

from collections.abc import Callable, Sequence

from tasks.mathematics.exact import rational_value
from tasks.mathematics.nodes import Node, walk

__all__ = ["computed"]

MAX_ENTRIES = 64
MAX_POWER = 8
MAX_NODES = 4000


def computed(node: Node) -> Node:
    """Return `node` with the matrices in it added and multiplied. What has no value, or a large one, stays as it is."""
    if not any(part.head == "matrix" for part in walk(node)):
        return node
    parts = tuple(map(computed, node.parts))
    value = _value(Node(node.head, parts, node.text))
    if value is None or sum(1 for _ in walk(value)) > MAX_NODES:
        return Node(node.head, parts, node.text)
    return value


def _value(node: Node) -> Node | None:
    match node.head:
        case "sum" if all(_shape(part) == _shape(node.parts[0]) != (0, 0) for part in node.parts):
            rows = zip(*(_rows(part) for part in node.parts), strict=True)
            return _matrix([[Node("sum", entries) for entries in zip(*row, strict=True)] for row in rows])
        case "product":
            found: Node | None = node.parts[0]
            for factor in node.parts[1:]:
                found = None if found is None else _product(found, factor)
            return found
        case "negative":
            return _each(node.parts[0], lambda entry: Node("negative", (entry,)))
        case "quotient" if node.parts[1].head != "matrix":
            return _each(node.parts[0], lambda entry: Node("quotient", (entry, node.parts[1])))
        case "power":
            exponent = rational_value(node.parts[1])
            if exponent is not None and exponent.denominator == 1 and 1 <= exponent <= MAX_POWER:
                return _value(Node("product", node.parts[:1] * int(exponent)))
    return None


def _product(left: Node, right: Node) -> Node | None:
    if left.head != "matrix":
        return _each(right, lambda entry: Node("product", (left, entry))) or Node("product", (left, right))
    if right.head != "matrix":
        return _each(left, lambda entry: Node("product", (right, entry)))
    (height, width), (other_height, other_width) = _shape(left), _shape(right)
    if width != other_height or width == 0 or height * other_width > MAX_ENTRIES or sum(1 for _ in walk(left)) * other_width > MAX_NODES:
        return None
    columns = list(zip(*_rows(right), strict=True))
    rows = [
        [Node("sum", tuple(Node("product", pair) for pair in zip(row, column, strict=True))) for column in columns] for row in _rows(left)
    ]
    return rows[0][0] if len(rows) == len(rows[0]) == 1 else _matrix(rows)


def _each(matrix: Node, rule: Callable[[Node], Node]) -> Node | None:
    return _matrix([[rule(entry) for entry in row] for row in _rows(matrix)]) if matrix.head == "matrix" else None


def _rows(matrix: Node) -> list[tuple[Node, ...]]:
    return [row.parts for row in matrix.parts]


def _shape(node: Node) -> tuple[int, int]:
    """Return height and width. It is (0, 0) for what is no matrix, or has rows of different lengths."""
    widths = {len(row) for row in _rows(node)} if node.head == "matrix" else set()
    return (len(node.parts), widths.pop()) if len(widths) == 1 else (0, 0)


def _matrix(rows: Sequence[Sequence[Node]]) -> Node:
    return Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
