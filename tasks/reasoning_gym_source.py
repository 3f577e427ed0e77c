"""A generator of the library reasoning-gym, whose problems are the same in every process.

    generator = Generator("chain_sum", {"max_terms": 3}, seed=7, size=1000)
    generator.require_reproducible()
    entry = generator.entry(0)

Some generators depend on the order of sets, hence on string hashes, which differ between processes: 6 of the 105 of
version 0.1.25 (isomorphic_strings, knight_swap, list_functions, polynomial_multiplication, ransom_note, word_ladder).
So the first problems are made in a second process too, and must be equal.

Whatever goes wrong in the library is a TaskError with its reason: it is the work of a hundred authors.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tasks.base import TaskError

__all__ = ["VERSION", "Entry", "Generator", "print_digests"]

VERSION = "0.1.25"
_NUM_COMPARED = 32
_COMPARE_TIMEOUT_S = 120.0
_MARK = "\ndigests:"  # generators print, too


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A problem as the library makes it."""

    question: str
    answer: str

    def digest(self, num_bytes: int) -> str:
        text = f"{self.question}={self.answer}"
        return blake2b(text.encode(errors="surrogatepass"), digest_size=num_bytes).hexdigest()


class Generator:
    """See the module."""

    def __init__(self, name: str, options: Mapping[str, Any], *, seed: int, size: int) -> None:
        """`size` bounds the index. Raises TaskError where library, generator or an option are not there, or the options
        are refused."""
        self.name = name
        self.size = size
        self._options = dict(options)
        self._seed = seed
        self._dataset = self._make()

    def entry(self, index: int) -> Entry:
        """Problem `index`. Raises TaskError where it has no reference answer: the library then scores by code of its
        own."""
        try:
            entry = self._dataset[index]
        except Exception as error:
            raise self.error(f"problem {index} cannot be made: {_reason(error)}") from None
        question, answer = entry["question"], entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            raise self.error("its problems have no one right answer, and the library's own scorers are not used: choose another generator")
        return Entry(question=question.strip(), answer=answer.strip())

    def require_reproducible(self) -> None:
        """Raises TaskError unless another process, with other string hashes, makes the same first problems within two
        minutes."""
        mine = self.digests()  # first: what goes wrong in any process is told better from here
        theirs = self._digests_of_another_process()
        different = next((index for index, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), None)
        if different is not None:
            raise self.error(
                f"problem {different} is another one in another process: a run could not be resumed, and a test set would be none; "
                "choose another generator"
            )

    def digests(self) -> list[str]:
        """Of the problems that are compared."""
        return [self.entry(index).digest(16) for index in range(min(_NUM_COMPARED, self.size))]

    def error(self, problem: str) -> TaskError:
        return _error(f"generator {self.name}: {problem}")

    def _make(self) -> Any:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise _error(f"{error}: pip install reasoning-gym=={VERSION} (docs/tasks.md)") from None
        if self.name not in DATASETS:
            raise _error(f"there is no generator '{self.name}'{_nearest(self.name, DATASETS)}")
        known = {field.name for field in fields(DATASETS[self.name][1])} - {"seed", "size"}
        for option in sorted(self._options.keys() - known):
            raise self.error(f"it has no option '{option}'{_nearest(option, known)}")
        try:
            return create_dataset(self.name, seed=self._seed, size=self.size, **self._options)
        except Exception as error:
            raise self.error(f"it refuses the options {self._options}: {_reason(error)}") from None

    def _digests_of_another_process(self) -> list[str]:
        request = json.dumps({"name": self.name, "options": self._options, "seed": self._seed, "size": self.size})
        path = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }
        code = f"from {__name__} import print_digests; print_digests()"
        command = [sys.executable, "-c", code]
        try:
            done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True, timeout=_COMPARE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self.error(f"another process did not make {_NUM_COMPARED} problems within {_COMPARE_TIMEOUT_S:g} s") from None
        if done.returncode:
            raise self.error(f"it fails in another process: {done.stderr.strip().rpartition(chr(10))[2]}")
        theirs: list[str] = json.loads(done.stdout.rpartition(_MARK)[2])
        return theirs


def print_digests() -> None:
    """What the other process does: standard input names the generator."""
    generator = Generator(**json.load(sys.stdin))
    print(f"{_MARK}{json.dumps(generator.digests())}")


def _error(problem: str) -> TaskError:
    return TaskError(f"task reasoning-gym: {problem}")


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(sorted(known))}"


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
