"""Splits by a hash of the question. They share no question, whatever the seeds that questions are drawn with."""

from hashlib import blake2b

from tasks.base import TaskError

__all__ = ["SPLITS", "require_split", "split_of"]

SPLITS = ("train", "dev", "test")


def split_of(question: str, held_out_share: float) -> str:
    """Return the split that `question` belongs to. "test" and "dev" get a share of `held_out_share` each."""
    place = int.from_bytes(blake2b(question.encode(errors="surrogatepass"), digest_size=8).digest(), "big") / 2**64
    return "test" if place < held_out_share else "dev" if place < 2 * held_out_share else "train"


def require_split(task: str, split: str) -> None:
    """Raise TaskError for a split that is not one of SPLITS."""
    if split not in SPLITS:
        raise TaskError(f"task {task}: no split '{split}', only {', '.join(SPLITS)}")
