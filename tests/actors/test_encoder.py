from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from actors.config import EncoderConfig
from actors.encoder import HiddenStateEncoder, keep_layers
from bonus.config import BonusConfig
from bonus.projection import sparse_projection
from buffers.schema import concat_groups, list_column_arrays, split_groups
from learners.forward import load_causal_lm
from tests.actors.coroutines import WAIT_S, begin, run
from tests.learners.samples import make_group, plain_hidden_states, ragged_batch, ragged_groups

GROUP_SIZE, HIDDEN, LAYERS, DIM = 4, 32, 2, 6
UNKNOWN_TOKEN = 5000


def make_encoder(
    model: str, *, seed: int = 11, group_size: int | None = GROUP_SIZE, bonus: dict[str, Any] | None = None, **config: Any
) -> HiddenStateEncoder:
    return HiddenStateEncoder(
        model=model,
        config=EncoderConfig(dtype="float32", **config),
        group_size=group_size,
        seed=seed,
        bonus=BonusConfig(**{"dim": DIM, **(bonus or {})}),
    )


def make_raw_encoder(model: str, *, group_size: int | None = GROUP_SIZE, **config: Any) -> HiddenStateEncoder:
    """Without a bonus config: its features are the states themselves."""
    return HiddenStateEncoder(model=model, config=EncoderConfig(dtype="float32", **config), group_size=group_size)


async def encode_all(encoder: HiddenStateEncoder, batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Each batch by a call of its own, all at once."""
    return [encoded for encoded, _ in await asyncio.gather(*(encoder.encode(batch) for batch in batches))]


def encode(encoder: HiddenStateEncoder, batch: pa.RecordBatch) -> pa.RecordBatch:
    encoded, seconds = run(encoder.encode(batch))
    assert seconds > 0
    return encoded


def features_of(*batches: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) with zeros for null features, and which are not null."""
    rows = [row for batch in batches for row in batch.column("feature").to_pylist()]
    valid = np.array([row is not None for row in rows])
    dim = next((len(row) for row in rows if row is not None), 0)
    return np.array([row if row is not None else [0.0] * dim for row in rows]), valid


def own_states(model_path: str, batch: pa.RecordBatch) -> list[Tensor]:
    """The last hidden states of each response's own tokens, (T, H), by unpadded rows in float64."""
    model = load_causal_lm(model_path, dtype="float64")
    rows = batch.select(["prompt_ids", "response_ids"]).to_pylist()
    with torch.no_grad():
        return [plain_hidden_states(model, row["prompt_ids"], row["response_ids"]) for row in rows]


def expected_means(states: Sequence[Tensor]) -> Tensor:
    """(N, H), zeros for empty responses."""
    return torch.stack([states_TH.mean(0) if len(states_TH) else states_TH.new_zeros(HIDDEN) for states_TH in states])


class Passes:
    """Watches an encoder's forward passes and holds the first until it is opened: (prompts, tokens) of each.

    A prompt counts where its first token does, so groups must begin differently, as those of `ragged_groups` here do.
    """

    def __init__(self, encoder: HiddenStateEncoder, *, held: bool = False) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._reached, self._opened = threading.Event(), threading.Event()
        if not held:
            self.open()
        encoder._model.get_decoder().register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: Any, args: Any, options: dict[str, Any]) -> None:
        assert options["input_ids"].shape[0] == 1
        self.shapes.append((int((options["position_ids"] == 0).sum()), options["input_ids"].numel()))
        self._reached.set()
        assert self._opened.wait(WAIT_S), "the pass was never let go"

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, WAIT_S), "no pass was begun"

    def open(self) -> None:
        self._opened.set()


# --- what features are ------------------------------------------------------------------------------------------------


def test_features_are_projected_means_of_the_responses_own_hidden_states(tiny_model: str) -> None:
    batch = ragged_batch(3)
    found, valid = features_of(encode(make_encoder(tiny_model), batch))
    expected = (expected_means(own_states(tiny_model, batch)) @ sparse_projection(HIDDEN, DIM, seed=11)).numpy()
    assert np.abs(expected[valid]).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=2e-5)


def test_without_a_bonus_config_features_are_the_means_themselves(tiny_model: str) -> None:
    batch = ragged_batch(3)
    found, _ = features_of(encode(make_raw_encoder(tiny_model), batch))
    np.testing.assert_allclose(found, expected_means(own_states(tiny_model, batch)).numpy(), rtol=0.0, atol=1e-5)


def test_pooling_last_takes_the_state_of_the_last_token(tiny_model: str) -> None:
    batch = ragged_batch(3)
    found, valid = features_of(encode(make_raw_encoder(tiny_model, pooling="last"), batch))
    states = own_states(tiny_model, batch)
    assert valid.tolist() == [len(states_TH) > 0 for states_TH in states]
    expected = torch.stack([states_TH[-1] if len(states_TH) else torch.zeros(HIDDEN).double() for states_TH in states])
    np.testing.assert_allclose(found, expected.numpy(), rtol=0.0, atol=1e-5)
    means, _ = features_of(encode(make_raw_encoder(tiny_model), batch))
    assert np.abs(found - means).max() > 0.5


@pytest.mark.parametrize("layer", [0, 1, LAYERS, -1, -2, -3])
def test_a_layer_is_that_of_output_hidden_states(tiny_model: str, layer: int) -> None:
    """Embeddings first, then the states after each layer, the last of them after the final norm."""
    batch = ragged_batch(2)
    model = load_causal_lm(tiny_model, dtype="float64")
    expected = []
    for row in batch.select(["prompt_ids", "response_ids"]).to_pylist():
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row["prompt_ids"] + row["response_ids"]]), output_hidden_states=True, use_cache=False)
        assert len(output.hidden_states) == LAYERS + 1
        expected.append(output.hidden_states[layer][0, len(row["prompt_ids"]) :])
    found, _ = features_of(encode(make_raw_encoder(tiny_model, layer=layer), batch))
    np.testing.assert_allclose(found, expected_means(expected).numpy(), rtol=0.0, atol=1e-5)


def tiny_config(kind: str) -> Any:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return AutoConfig.for_model(kind, **sizes, **({} if kind == "gpt2" else {"intermediate_size": 32, "num_key_value_heads": 2}))


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "qwen2"])
def test_a_model_is_cut_before_its_final_norm_whatever_that_is_called(kind: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(kind)).eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[2]
        keep_layers(model, 2)
        found = model.get_decoder()(ids).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_a_model_that_cannot_be_cut_gives_its_last_layer_or_a_reason() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("gpt2"))
    keep_layers(model, -1)
    keep_layers(model, 3)
    with pytest.raises(ValueError, match=r"encoder.layer = 2: GPT2Model cannot be cut there; −1, the last layer, goes with any model"):
        keep_layers(model, 2)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_model_has_not_is_refused_with_the_range(tiny_model: str, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"encoder.layer = {layer}: the model has layers 0 \(embeddings\) to 2, or −1 to −3 from the end"):
        make_raw_encoder(tiny_model, layer=layer)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_empty_response_has_a_null_feature(tiny_model: str, pooling: str) -> None:
    encoded = encode(make_encoder(tiny_model, pooling=pooling), ragged_batch(2))
    lengths = [len(ids) for ids in encoded.column("response_ids").to_pylist()]
    assert lengths.count(0) == 2
    assert features_of(encoded)[1].tolist() == [length > 0 for length in lengths]


def test_a_group_of_empty_responses_is_survived(tiny_model: str) -> None:
    encoded = encode(make_encoder(tiny_model), make_group(0, [5, 6], [[], [], [], []], [0.0] * 4))
    assert encoded.column("feature").null_count == GROUP_SIZE


def test_nothing_else_of_the_batch_is_changed(tiny_model: str) -> None:
    batch = ragged_batch(2)
    encoded = encode(make_encoder(tiny_model), batch)
    kept = [name for name in batch.schema.names if name != "feature"]
    assert encoded.select(kept).equals(batch.select(kept))
    assert encoded.schema.equals(batch.schema)


def test_features_are_kept_as_float32(tiny_model: str) -> None:
    values, _ = list_column_arrays(encode(make_encoder(tiny_model), ragged_batch(1)), "feature")
    assert values.dtype == np.float32


def test_a_redrawn_projection_differs_by_group_and_is_reproducible(tiny_model: str) -> None:
    prompt, responses = [5, 6], [[7, 8], [9], [10, 11, 12], [13]]
    twice = concat_groups([make_group(group_id, prompt, responses, [0.0] * 4) for group_id in (0, 1)])  # problems p0 and p1
    fixed, redrawn, again, other_seed = (
        features_of(encode(make_encoder(tiny_model, seed=seed, bonus={"redraw_projection": redraw}), twice))[0]
        for redraw, seed in ((False, 11), (True, 11), (True, 11), (True, 12))
    )
    np.testing.assert_allclose(fixed[:4], fixed[4:], rtol=0.0, atol=1e-5)
    assert np.abs(redrawn[:4] - redrawn[4:]).max() > 0.1
    assert np.array_equal(redrawn, again)
    assert np.abs(redrawn - other_seed).max() > 0.1


def test_a_redrawn_projection_does_not_depend_on_the_rest_of_the_batch(tiny_model: str) -> None:
    groups = ragged_groups(3)
    encoder = make_encoder(tiny_model, bonus={"redraw_projection": True})
    together = features_of(encode(encoder, concat_groups(groups)))[0]
    np.testing.assert_allclose(features_of(encode(encoder, groups[2]))[0], together[8:], rtol=0.0, atol=1e-5)


# --- what features do not depend on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 2048])
def test_a_group_is_encoded_independently_of_its_company_and_the_token_budget(tiny_model: str, tokens_per_batch: int) -> None:
    groups = ragged_groups(4)
    together, _ = features_of(encode(make_encoder(tiny_model), concat_groups(groups)))
    encoder = make_encoder(tiny_model, tokens_per_batch=tokens_per_batch)
    alone = np.concatenate([features_of(encode(encoder, group))[0] for group in reversed(groups)][::-1])
    np.testing.assert_allclose(alone, together, rtol=0.0, atol=1e-5)


def test_a_slice_is_encoded_as_its_rows(tiny_model: str) -> None:
    batch = ragged_batch(4)
    encoder = make_encoder(tiny_model)
    expected, _ = features_of(encode(encoder, batch))
    np.testing.assert_allclose(features_of(encode(encoder, split_groups(batch)[2]))[0], expected[8:12], rtol=0.0, atol=1e-5)


def test_concurrent_calls_get_their_own_features_in_whatever_order_they_come(tiny_model: str) -> None:
    groups = ragged_groups(6)
    expected, _ = features_of(encode(make_encoder(tiny_model), concat_groups(groups)))
    for order in (range(6), reversed(range(6)), (3, 0, 5, 1, 4, 2)):
        positions = list(order)
        encoded = run(encode_all(make_encoder(tiny_model, tokens_per_batch=100), [groups[position] for position in positions]))
        for position, batch in zip(positions, encoded, strict=True):
            assert batch.column("group_id").to_pylist() == [position] * GROUP_SIZE
            np.testing.assert_allclose(features_of(batch)[0], expected[4 * position : 4 * position + 4], rtol=0.0, atol=1e-5)


def test_features_do_not_depend_on_the_number_of_encoders(tiny_model: str) -> None:
    groups = ragged_groups(6)

    async def encode_by(replicas: Sequence[HiddenStateEncoder]) -> np.ndarray:
        results = await asyncio.gather(*(replicas[n % len(replicas)].encode(group) for n, group in enumerate(groups)))
        return features_of(*(batch for batch, _ in results))[0]

    one, three = (run(encode_by([make_encoder(tiny_model) for _ in range(number)])) for number in (1, 3))
    np.testing.assert_allclose(three, one, rtol=0.0, atol=1e-5)


def test_without_a_group_size_every_call_is_one_group_of_any_size(tiny_model: str) -> None:
    groups = [ragged_groups(1, group_size=size, seed=size)[0] for size in (2, 7, 3)]
    encoded = run(encode_all(make_raw_encoder(tiny_model, group_size=None), groups))
    for group, batch in zip(groups, encoded, strict=True):
        np.testing.assert_allclose(features_of(batch)[0], expected_means(own_states(tiny_model, group)).numpy(), rtol=0.0, atol=1e-5)


# --- how calls share forward passes -----------------------------------------------------------------------------------


def test_concurrent_calls_share_forward_passes(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model)
    passes = Passes(encoder)
    run(encode_all(encoder, ragged_groups(8)))
    assert [num_prompts for num_prompts, _ in passes.shapes] == [8]  # each computed once


def test_calls_that_come_during_a_pass_share_the_next(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model)
    passes = Passes(encoder, held=True)

    async def main() -> None:
        first = await begin(encoder.encode(ragged_groups(1)[0]))
        await passes.reached()
        others = [await begin(encoder.encode(group)) for group in ragged_groups(5, seed=1)]
        passes.open()
        await asyncio.gather(first, *others)

    run(main())
    assert [num_prompts for num_prompts, _ in passes.shapes] == [1, 5]


@pytest.mark.parametrize("tokens_per_batch", [70, 120, 400])
def test_no_pass_has_more_tokens_than_the_budget(tiny_model: str, tokens_per_batch: int) -> None:
    encoder = make_encoder(tiny_model, tokens_per_batch=tokens_per_batch)
    passes = Passes(encoder)
    groups = ragged_groups(16)
    run(encode_all(encoder, groups))
    assert len(passes.shapes) < len(groups)
    assert max(num_tokens for _, num_tokens in passes.shapes) <= tokens_per_batch


def test_a_response_longer_than_the_budget_goes_alone(tiny_model: str) -> None:
    """It has 1 + 80 tokens with its prompt, the others at most 1 + 4 · 2."""
    short, long = [[7, 8]] * 4, [[7, 8], list(range(10, 90)), [9], [9, 9]]
    groups = [make_group(number, [5], responses, [0.0] * 4) for number, responses in enumerate((short, long, short, short))]
    encoder = make_encoder(tiny_model, tokens_per_batch=40)
    passes = Passes(encoder)
    encoded = run(encode_all(encoder, groups))
    assert (1, 81) in passes.shapes
    assert all(num_tokens <= 40 for _, num_tokens in passes.shapes if num_tokens != 81)
    assert all(batch.column("feature").null_count == 0 for batch in encoded)


def test_at_most_max_waiting_calls_are_inside(tiny_model: str) -> None:
    """A pass cannot have more prompts than there are calls inside, and the others are served all the same."""
    encoder = make_encoder(tiny_model, max_waiting=3)
    passes = Passes(encoder)
    encoded = run(encode_all(encoder, ragged_groups(8)))
    assert sum(num_prompts for num_prompts, _ in passes.shapes) == 8
    assert max(num_prompts for num_prompts, _ in passes.shapes) <= 3
    assert [batch.column("group_id")[0].as_py() for batch in encoded] == list(range(8))


def test_the_seconds_of_calls_encoded_together_add_up_to_no_more_than_the_time_passed(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model)

    async def main() -> None:
        started = time.monotonic()
        results = await asyncio.gather(*(encoder.encode(group) for group in ragged_groups(8)))
        assert 0 < sum(seconds for _, seconds in results) <= time.monotonic() - started

    run(main())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_error_reaches_every_caller_of_its_pass_and_no_other(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model, max_waiting=2)  # so the first two calls share a pass
    good = ragged_groups(3)
    bad = make_group(9, [5], [[UNKNOWN_TOKEN]] * 4, [0.0] * 4)

    async def main() -> None:
        calls = (encoder.encode(batch) for batch in (good[0], bad, good[1], good[2]))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, IndexError) for result in results] == [True, True, False, False]
        again, _ = await encoder.encode(good[0])
        assert again.column("feature").null_count == 1

    run(main())


def test_a_caller_that_gives_up_neither_loses_nor_repeats_the_work_of_others(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model)
    passes = Passes(encoder, held=True)
    groups = ragged_groups(5)
    expected, _ = features_of(encode(make_encoder(tiny_model), concat_groups(groups)))

    async def main() -> None:
        given_up, beside = [asyncio.create_task(encoder.encode(group)) for group in groups[:2]]
        await passes.reached()
        behind, given_up_behind, last = [await begin(encoder.encode(group)) for group in groups[2:]]
        for task in (given_up, given_up_behind):
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        passes.open()
        encoded = [batch for batch, _ in await asyncio.gather(beside, behind, last)]
        np.testing.assert_allclose(features_of(*encoded)[0], expected[[*range(4, 12), *range(16, 20)]], rtol=0.0, atol=1e-5)
        assert [num_prompts for num_prompts, _ in passes.shapes] == [2, 2]  # the one that gave up while waiting was never computed
        assert (await encoder.encode(groups[0]))[0].column("feature").null_count == 1

    run(main())


def test_an_encoder_serves_one_event_loop_after_another(tiny_model: str) -> None:
    encoder = make_encoder(tiny_model)
    passes = Passes(encoder, held=True)

    async def give_up() -> None:
        task = asyncio.create_task(encoder.encode(ragged_batch(1)))
        await passes.reached()
        task.cancel()
        passes.open()

    run(give_up())
    assert encode(encoder, ragged_batch(1)).column("feature").null_count == 1


def test_it_says_its_hidden_size_once_it_is_loaded(tiny_model: str) -> None:
    assert make_encoder(tiny_model).ready() == HIDDEN
