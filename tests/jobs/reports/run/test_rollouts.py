from __future__ import annotations

import gzip
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from buffers.rollout_log import RolloutLog
from jobs.reports.run.rollouts import PackedRollouts, pack_rollouts
from jobs.reports.run.tokens import TokenPieces
from tests.buffers.schema_1 import as_schema_1
from tests.jobs.reports.run.run_fixture import END, HOSTILE, byte_tokenizer, write_step

PLENTY = 10**7


def log_of(directory: Path) -> RolloutLog:
    return RolloutLog(fs.LocalFileSystem(), str(directory / "rollouts"))


def unpacked(packed: PackedRollouts) -> dict[str, Any]:
    """The columns, as the page's script makes them."""
    found = json.loads(gzip.decompress(b64decode(packed.texts)))
    numbers, at = gzip.decompress(b64decode(packed.numbers)), 0
    for name, kind, length in found["arrays"]:
        found[name] = np.frombuffer(numbers, kind, length, at)
        at += -(-found[name].nbytes // 4) * 4
    assert at == len(numbers)
    return found


def packed_run(
    directory: Path, *, steps: int = 2, texts: tuple[str, ...] = ("It is 3.", "It is 4.", "3"), **options: Any
) -> dict[str, Any]:
    for step in range(1, steps + 1):
        write_step(directory, step, texts)
    return unpacked(pack_rollouts(log_of(directory), TokenPieces(byte_tokenizer()), max_bytes=PLENTY, **options))


def texts_of(found: dict[str, Any]) -> list[str]:
    ends = zip(found["token_start"], found["token_start"][1:], strict=False)
    return ["".join(found["pieces"][token] for token in found["token"][begin:end]) for begin, end in ends]


def test_the_page_carries_every_column_of_the_log(tmp_path: Path) -> None:
    found, rows = packed_run(tmp_path), log_of(tmp_path).read()
    assert found["response_text"] == rows["response_text"].to_pylist()
    for name in ("reward", "bonus", "advantage"):
        np.testing.assert_allclose(found[name], rows[name].to_numpy())
    assert np.isnan(found["reward_format"]).all()
    assert [found["verdict_status"][place] for place in found["verdict_status_index"]] == rows["verdict_status"].to_pylist()
    assert [found["question"][group] for group in found["group"]] == rows["question"].to_pylist()
    assert found["step"].tolist() == [1, 1, 2, 2] and found["group_id"].tolist() == [0, 1, 2, 3]
    assert found["verdict_detail"][:3] == [None, "It is 3.", "It is 3."]


def test_tokens_log_probs_and_versions_stand_beside_each_other(tmp_path: Path) -> None:
    found = packed_run(tmp_path)
    assert texts_of(found)[:3] == [f"It is 3.{END}", f"It is 4.{END}", "3"]
    assert found["logprob"][:3].tolist() == [0, 125, 250]  # thousandths of a nat
    last = found["run_start"][-2]
    assert found["run_version"][last:].tolist() == [0, 1] and found["run_token"][last:].tolist() == [0, 0]
    assert [found["pieces"][token] for token in found["prompt"][: found["prompt_start"][1]]] == list("Sum?\n")
    assert found["pieces"][found["special"][0]] == END


def test_a_character_of_several_tokens_is_shown_once(tmp_path: Path) -> None:
    texts = texts_of(packed_run(tmp_path, steps=1, texts=("naïve 😀 x", "日本")))
    assert texts[:2] == [f"naïve 😀 x{END}", "日本"]


def test_hostile_text_can_neither_end_the_script_nor_steer_the_screen(tmp_path: Path) -> None:
    write_step(tmp_path, 1, [HOSTILE, "3"])
    packed = pack_rollouts(log_of(tmp_path), TokenPieces(byte_tokenizer()), max_bytes=PLENTY)
    assert not {"<", ">", "&"} & set(packed.texts + packed.numbers)
    assert "\\u{202e}" in unpacked(packed)["response_text"][0] and "\u202e" not in texts_of(unpacked(packed))[0]


def test_the_newest_groups_are_kept_and_the_page_says_which_are_not(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_step(tmp_path, step, ["x" * 1000, "y" * 1000])
    packed = pack_rollouts(log_of(tmp_path), TokenPieces(byte_tokenizer()), max_bytes=24_000)
    assert unpacked(packed)["step"].tolist() == [2, 3, 3] and packed.num_responses == 6
    assert len(packed.notes) == 1 and "all 3 steps: 2 of 4 responses of step 2 and all later ones are here" in packed.notes[0]
    least = pack_rollouts(log_of(tmp_path), None, max_bytes=1)
    assert unpacked(least)["group_id"].tolist() == [4]


def test_without_a_tokenizer_and_with_another_models_text_is_shown_whole(tmp_path: Path) -> None:
    write_step(tmp_path, 1)
    other = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    for pieces, told in ((None, "No tokenizer"), (TokenPieces(other), "not the run's")):
        packed = pack_rollouts(log_of(tmp_path), pieces, max_bytes=PLENTY)
        assert unpacked(packed)["pieces"] == [] and told in packed.notes[0]
        assert unpacked(packed)["response_text"][0] == "It is 3."


def test_a_run_without_rollouts_has_an_empty_browser(tmp_path: Path) -> None:
    packed = pack_rollouts(log_of(tmp_path), TokenPieces(byte_tokenizer()), max_bytes=PLENTY)
    assert packed.num_responses == 0 and "no rollouts" in packed.notes[0]
    assert unpacked(packed)["task"] == []


def test_a_damaged_step_is_named_and_an_old_one_is_read(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_step(tmp_path, step)
    (tmp_path / "rollouts/step_000002.parquet").write_bytes(b"PAR1 half")
    (tmp_path / "rollouts/step_000004.parquet.partial").write_bytes(b"PAR1")
    old = as_schema_1(log_of(tmp_path).read([1]))
    pq.write_table(old, tmp_path / "rollouts/step_000001.parquet")
    packed = pack_rollouts(log_of(tmp_path), TokenPieces(byte_tokenizer()), max_bytes=PLENTY)
    assert unpacked(packed)["step"].tolist() == [1, 1, 3, 3] and unpacked(packed)["details"] == []
    assert len(packed.notes) == 1 and packed.notes[0].startswith("Step 2 cannot be read")


def test_a_space_before_a_word_belongs_to_its_token() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "▁word": 1, "a": 2}))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert tokenizer.decode([1]) == "word"
    assert TokenPieces(tokenizer).text([1, 0]) == [" word", " a"]


def test_the_tokenizer_is_that_of_the_exported_policy_or_of_the_model(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    for place in (run / "policy", model):
        place.mkdir(parents=True)
    assert TokenPieces.of_run(run, str(model)) is None and TokenPieces.of_run(run, "no/such-model") is None
    byte_tokenizer().save(str(model / "tokenizer.json"))
    assert TokenPieces.of_run(run, None) is None
    (run / "policy/tokenizer.json").write_text("{")
    pieces = TokenPieces.of_run(run, str(model))
    assert pieces is not None and pieces.text(byte_tokenizer().encode("ab").ids) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "a", "\u00e9"])
def test_pieces_of_short_texts_join_to_the_text(text: str) -> None:
    assert "".join(TokenPieces(byte_tokenizer()).text(byte_tokenizer().encode(text).ids)) == text
