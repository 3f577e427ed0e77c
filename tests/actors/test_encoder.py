from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from actors.config import EncoderConfig
from actors.encoder import HiddenStateEncoder
from bonus.config import BonusConfig
from bonus.covariance import init_state
from bonus.projection import sparse_projection
from bonus.scoring import score_step
from buffers.schema import concat_groups, list_column_arrays, split_groups
from learners.checkpoint import CheckpointManager
from learners.forward import load_causal_lm
from tests.learners.samples import make_group, plain_hidden_states, ragged_batch, ragged_groups

GROUP_SIZE, HIDDEN, DIM = 4, 32, 6


def make_encoder(model: str, *, seed: int = 11, tokens_per_batch: int = 2048, **bonus: Any) -> HiddenStateEncoder:
    return HiddenStateEncoder(
        model=model,
        config=EncoderConfig(dtype="float32", tokens_per_batch=tokens_per_batch),
        bonus=BonusConfig(**{"dim": DIM, "gate": "always", **bonus}),
        group_size=GROUP_SIZE,
        seed=seed,
    )


def encode(encoder: HiddenStateEncoder, batch: pa.RecordBatch) -> pa.RecordBatch:
    encoded, seconds = encoder.encode(batch)
    assert seconds > 0
    return encoded


def features_of(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) with zeros for null features, and which are not null."""
    rows = batch.column("feature").to_pylist()
    valid = np.array([row is not None for row in rows])
    return np.array([row if row is not None else [0.0] * DIM for row in rows]), valid


def expected_features(model_path: str, batch: pa.RecordBatch, projection_HD: Tensor) -> np.ndarray:
    """Mean last hidden state over the response's own tokens, by unpadded rows in float64, times the projection."""
    model = load_causal_lm(model_path, dtype="float64")
    rows = batch.select(["prompt_ids", "response_ids"]).to_pylist()
    with torch.no_grad():
        means = [
            plain_hidden_states(model, row["prompt_ids"], row["response_ids"]).mean(0)
            if row["response_ids"]
            else torch.zeros(HIDDEN).double()
            for row in rows
        ]
    return (torch.stack(means) @ projection_HD).numpy()


def bonuses_of(batch: pa.RecordBatch) -> list[float]:
    return batch.column("bonus").to_pylist()


def test_features_are_projected_means_of_the_responses_own_hidden_states(tiny_model: str) -> None:
    batch = ragged_batch(3)
    found, valid = features_of(encode(make_encoder(tiny_model), batch))
    expected = expected_features(tiny_model, batch, sparse_projection(HIDDEN, DIM, seed=11))
    assert np.abs(expected[valid]).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=2e-5)


def test_an_empty_response_has_a_null_feature_and_no_bonus(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model)
    encoded = encode(encoder, ragged_batch(2))
    lengths = [len(ids) for ids in encoded.column("response_ids").to_pylist()]
    assert lengths.count(0) == 2
    assert features_of(encoded)[1].tolist() == [length > 0 for length in lengths]
    scored, metrics = encoder.score(encoded)
    assert [bonus != 0 for bonus in bonuses_of(scored)] == [length > 0 for length in lengths]
    assert metrics["bonus/num_empty"] == 2


def test_a_group_of_empty_responses_is_survived(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model, memory="run")
    encoded = encode(encoder, make_group(0, [5, 6], [[], [], [], []], [0.0] * 4))
    scored, _ = encoder.score(encoded)
    assert bonuses_of(scored) == [0.0] * 4


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 2048])
def test_a_group_is_encoded_independently_of_its_company_and_the_token_budget(tiny_model: str, tokens_per_batch: int) -> None:
    groups = ragged_groups(4)
    together, _ = features_of(encode(make_encoder(tiny_model), concat_groups(groups)))
    encoder = make_encoder(tiny_model, tokens_per_batch=tokens_per_batch)
    alone = np.concatenate([features_of(encode(encoder, group))[0] for group in reversed(groups)][::-1])
    np.testing.assert_allclose(alone, together, rtol=0.0, atol=1e-5)


def test_a_slice_is_encoded_and_scored_as_its_rows(tiny_model: str) -> None:
    batch = ragged_batch(4)
    encoder = make_encoder(tiny_model)
    encoded = encode(encoder, batch)
    np.testing.assert_allclose(features_of(encode(encoder, split_groups(batch)[2]))[0], features_of(encoded)[0][8:12], rtol=0.0, atol=1e-5)
    found, _ = make_encoder(tiny_model).score(split_groups(encoded)[2])
    expected, _ = make_encoder(tiny_model).score(concat_groups([split_groups(encoded)[2]]))
    assert bonuses_of(found) == bonuses_of(expected)


def test_nothing_else_of_the_batch_is_changed(tiny_model: str) -> None:
    batch = ragged_batch(2)
    encoder = make_encoder(tiny_model)
    scored, _ = encoder.score(encode(encoder, batch))
    kept = [name for name in batch.schema.names if name not in ("feature", "bonus")]
    assert scored.select(kept).equals(batch.select(kept))
    assert scored.schema.equals(batch.schema)


@pytest.mark.parametrize(
    "bonus",
    [
        {"memory": "none", "ridge": 0.5},
        {"memory": "run", "forgetting": 0.9, "gate": "group_has_correct"},
        {"memory": "run", "ridge": 2.0, "gate": "correct_only", "estimator": "leave_one_out"},
    ],
    ids=str,
)
def test_bonuses_of_a_run_are_those_of_score_step(tiny_model: str, bonus: dict[str, Any]) -> None:
    encoder = make_encoder(tiny_model, **bonus)
    config = BonusConfig(**{"dim": DIM, "gate": "always", **bonus})
    state = init_state(DIM)
    for step in range(3):
        encoded = encode(encoder, ragged_batch(2, seed=step))
        rows, valid = features_of(encoded)
        correct = np.array([status == "correct" for status in encoded.column("verdict_status").to_pylist()])
        lengths = np.array([len(ids) for ids in encoded.column("response_ids").to_pylist()])
        expected, state = score_step(
            torch.from_numpy(rows).view(2, GROUP_SIZE, DIM),
            torch.from_numpy(correct).view(2, GROUP_SIZE),
            torch.from_numpy(valid).view(2, GROUP_SIZE),
            state,
            config,
            lengths_GK=torch.from_numpy(lengths).view(2, GROUP_SIZE),
        )
        scored, metrics = encoder.score(encoded)
        assert any(bonuses_of(scored))
        assert bonuses_of(scored) == expected.bonus_GK.flatten().tolist()
        assert metrics["bonus/ridge"] == expected.ridge
        assert metrics["bonus/spread"] == expected.diagnostics.spread
        assert all(math.isfinite(value) for value in metrics.values())
        assert encoder.ready() == step + 1


def test_a_covariance_saved_and_restored_gives_the_same_next_bonuses(tiny_model: str, tmp_path: Path) -> None:
    straight = make_encoder(tiny_model, memory="run", forgetting=0.9)
    for step in range(3):
        straight.score(encode(straight, ragged_batch(2, seed=step)))
    manager = CheckpointManager(str(tmp_path), keep=1)
    manager.commit(3, straight.save_part(manager, 3, "encoder"), {})
    restored, fresh = (make_encoder(tiny_model, memory="run", forgetting=0.9) for _ in range(2))
    restored.load_part(manager, 3, "encoder")
    assert restored.ready() == 3
    for step in range(3, 6):
        batch = ragged_batch(2, seed=step)
        found, found_metrics = restored.score(encode(restored, batch))
        expected, expected_metrics = straight.score(encode(straight, batch))
        assert bonuses_of(found) == bonuses_of(expected)
        assert found_metrics == expected_metrics
        assert bonuses_of(fresh.score(encode(fresh, batch))[0]) != bonuses_of(expected)


def test_a_covariance_made_with_another_projection_is_refused(tiny_model: str, tmp_path: Path) -> None:
    make_encoder(tiny_model, seed=11).save(tmp_path)
    with pytest.raises(ValueError, match="projection seed 11, this run has 12"):
        make_encoder(tiny_model, seed=12).load(tmp_path)


def test_the_warning_of_a_bonus_without_signal_is_given_once_also_across_a_restart(tiny_model: str, tmp_path: Path) -> None:
    """A ridge far above the features' energy flattens every leverage to nearly 0."""
    encoder = make_encoder(tiny_model, ridge=1e9)
    warned = [encoder.score(encode(encoder, ragged_batch(1)))[1].get("bonus/no_signal_warning") for _ in range(2)]
    assert warned == [1.0, None]
    encoder.save(tmp_path)
    assert json.loads((tmp_path / "covariance.json").read_text())["warned"] is True
    restored = make_encoder(tiny_model, ridge=1e9)
    restored.load(tmp_path)
    assert "bonus/no_signal_warning" not in restored.score(encode(restored, ragged_batch(1)))[1]


def test_a_redrawn_projection_differs_by_group_and_is_reproducible(tiny_model: str) -> None:
    prompt, responses = [5, 6], [[7, 8], [9], [10, 11, 12], [13]]
    twice = concat_groups([make_group(group_id, prompt, responses, [0.0] * 4) for group_id in (0, 1)])  # problems p0 and p1
    redrawn = features_of(encode(make_encoder(tiny_model, redraw_projection=True), twice))[0]
    again = features_of(encode(make_encoder(tiny_model, redraw_projection=True), twice))[0]
    fixed = features_of(encode(make_encoder(tiny_model), twice))[0]
    np.testing.assert_allclose(fixed[:4], fixed[4:], rtol=0.0, atol=1e-5)
    assert np.abs(redrawn[:4] - redrawn[4:]).max() > 0.1
    assert np.array_equal(redrawn, again)
    other_seed = features_of(encode(make_encoder(tiny_model, redraw_projection=True, seed=12), twice))[0]
    assert np.abs(redrawn - other_seed).max() > 0.1


def test_a_redrawn_projection_does_not_depend_on_the_rest_of_the_batch(tiny_model: str) -> None:
    groups = ragged_groups(3)
    encoder = make_encoder(tiny_model, redraw_projection=True)
    together = features_of(encode(encoder, concat_groups(groups)))[0]
    np.testing.assert_allclose(features_of(encode(encoder, groups[2]))[0], together[8:], rtol=0.0, atol=1e-5)


def test_features_are_kept_as_float32(tiny_model: str) -> None:
    values, _ = list_column_arrays(encode(make_encoder(tiny_model), ragged_batch(1)), "feature")
    assert values.dtype == np.float32
