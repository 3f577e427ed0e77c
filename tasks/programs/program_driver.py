"""The driver of a program in the sandbox: it evaluates calls in the program's namespace and reports what they give.

The source of this file is what the sandbox runs; its standard input is {"program": text, "calls": [expression, ...]}.
It prints one JSON line a call, in order, and nothing after the first failure:

    {"value": ...}                     what the expression gave, encoded by `encode`
    {"error": "ValueError: ..."}       what it raised, or that its value is not plain
    {"malformed": "SyntaxError: ..."}  in the first line: the program does not compile

The driver receives no expected result, so a program has none to find. A line that the program forges is an answer like
any other, right or wrong. `decode` is for the other side: it makes plain values, never objects of a class that the data
name. This file uses the standard library only."""

import json
import math
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

__all__ = ["Written", "decode", "encode"]

_ATOMS = frozenset([int, float, str, bool, type(None)])
_BY_TEXT = frozenset(["Decimal", "Fraction", "date", "datetime", "range", "time", "timedelta"])  # compared by their repr
_LONG_INT_BITS = 10_000  # writing decimal digits takes quadratic time, and reading them is limited
_MAX_DEPTH = 100
_COLLECTIONS: dict[type[Any], str | None] = {list: None, tuple: "tuple", set: "set", frozenset: "set"}
_MAX_ERROR_CHARS = 200


@dataclass(frozen=True, slots=True)
class Written:
    """A value of a standard library type, represented by its repr."""

    type_name: str
    text: str


def encode(value: Any, depth: int = 0) -> Any:
    """Return `value` in terms of JSON. Numbers, strings, None and lists stand for themselves, and anything else is an
    object whose one key names it. Raises TypeError for a generator, a match, or an object of a class of the program."""
    kind = type(value)
    if kind in _ATOMS:
        return {"int": hex(value)} if kind is int and value.bit_length() > _LONG_INT_BITS else value
    if depth >= _MAX_DEPTH:
        raise TypeError("gave a value nested too deep")
    if isinstance(value, int | float | complex | str | bytes | bytearray):
        return _encode_scalar(value)
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in dict.items(value)]}
    for plain, name in _COLLECTIONS.items():
        if isinstance(value, plain):
            items = list(plain.__iter__(value))
            if not (_ATOMS.issuperset(map(type, items)) and all(_is_short(item) for item in items)):
                items = [encode(item, depth + 1) for item in items]
            return items if name is None else {name: items}
    if kind.__name__ in _BY_TEXT:
        return {"written": [kind.__name__, repr(value)]}
    raise TypeError(f"gave no plain value but {kind.__name__}")


def _encode_scalar(value: Any) -> Any:
    """Encode a value of a subclass of a plain type, or of a plain type that JSON lacks."""
    if isinstance(value, int):
        return encode(int.__add__(value, 0))
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__add__(value, "")
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"bytes": bytes(value).decode("latin-1")}


def _is_short(item: Any) -> bool:
    return type(item) is not int or item.bit_length() <= _LONG_INT_BITS


def decode(data: Any) -> Any:
    """Invert `encode`, with plain values for subclasses and frozen sets. Raises ValueError for data it never makes."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError("an object with other than one key")
    ((name, held),) = data.items()
    try:
        return _DECODERS[name](held)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be read: {error}") from None


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda held: int(held, 16),
    "complex": lambda held: complex(*held),
    "bytes": lambda held: held.encode("latin-1"),
    "tuple": lambda held: tuple(decode(item) for item in held),
    "set": lambda held: frozenset(decode(item) for item in held),
    "dict": lambda held: {decode(key): decode(item) for key, item in held},
    "written": lambda held: Written(*map(str, held)),
}


def _main() -> None:
    request = json.load(sys.stdin)
    with open(os.dup(1), "w", encoding="utf-8") as said, open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)  # drop what the program prints, which may be endless
        _answer(request["program"], request["calls"], said)
        said.flush()
        os._exit(0)  # without running the exit handlers of the program


def _answer(program: str, calls: list[str], said: IO[str]) -> None:
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        print(json.dumps({"malformed": _describe(error)}), file=said)
        return
    module = types.ModuleType("program")  # not __main__, so that its `if __name__ == "__main__"` block does not run
    sys.modules["program"] = module
    namespace = module.__dict__
    try:
        exec(code, namespace)
    except BaseException as error:
        print(json.dumps({"error": _describe(error)}), file=said)
        return
    for name in ("inf", "nan"):
        namespace.setdefault(name, getattr(math, name))  # the calls may write these numbers
    for call in calls:
        try:
            line = json.dumps({"value": encode(eval(call, namespace))})
        except BaseException as error:
            print(json.dumps({"error": _describe(error)}), file=said)
            return
        print(line, file=said, flush=True)


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
    except BaseException:  # even `str` of an exception class of the program may raise
        return "an exception that cannot be shown"


if __name__ == "__main__":
    _main()
