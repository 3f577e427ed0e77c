"""The texts of tokens, for a page that shows one token after the other.

    pieces = TokenPieces.of_run(directory, config)     # None where no tokenizer can be had on this machine
    pieces.text(ids)                                   # one text for each token

A character may take several tokens: the first of them then gets its text, and the others none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
INCOMPLETE = "\ufffd"


class TokenPieces:
    """A tokenizer that is asked about each token once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._anchor = tokenizer.token_to_id("a") or 0

    @classmethod
    def of_run(cls, directory: Path, model: str | None) -> TokenPieces | None:
        """Return the tokenizer of the exported policy, else of the model that the run began with, if it is here."""
        from tokenizers import Tokenizer

        for find in (lambda: directory / "policy", lambda: _model_here(model)):
            place = find()
            if place is not None and (place / TOKENIZER).is_file():
                with suppress(Exception):  # a seam: the library raises bare Exceptions for a file that it cannot read
                    return cls(Tokenizer.from_file(str(place / TOKENIZER)))
        return None

    def text(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; special tokens are written out."""
        pieces = [self._piece(one) for one in ids]
        begin = 0
        while begin < len(pieces):
            end = begin + 1
            if INCOMPLETE in pieces[begin]:
                while end < len(pieces) and INCOMPLETE in pieces[end]:
                    end += 1
                pieces[begin:end] = [self._decoded(ids[begin:end]), *[""] * (end - begin - 1)]
            begin = end
        return pieces

    def is_special(self, token: int) -> bool:
        """Return whether the token is a mark of the chat format and no text."""
        return token in self._special

    def explains(self, ids: Sequence[int], text: str) -> bool:
        """Return whether `ids` are `text` for this tokenizer. It is another model's otherwise."""
        return bool(self._tokenizer.decode(list(ids), skip_special_tokens=True) == text)

    def _piece(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decoded([token])
        return self._known[token]

    def _decoded(self, ids: Sequence[int]) -> str:
        """Decode behind a token that is a word of its own: some tokenizers drop a space at the beginning of a text."""
        before: str = self._tokenizer.decode([self._anchor], skip_special_tokens=False)
        whole: str = self._tokenizer.decode([self._anchor, *ids], skip_special_tokens=False)
        return whole[len(before) :]


def _model_here(name: str | None) -> Path | None:
    """Return the directory of a model, if neither fetching nor unpacking is needed."""
    if name is None:
        return None
    from huggingface_hub import snapshot_download

    from learners.models import model_here

    if (found := model_here(name)) is not None:
        return Path(found)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
