"""What the encoder adds to a forward pass, and what packing saves.

    python -m benchmarks.encoder                  # the embedded model on one thread
    python -m benchmarks.encoder --groups 512 --device cuda

Three ways compute the same groups of synthetic tokens, one after the other in every repeat:

    encoder   HiddenStateEncoder.encode, `--concurrent` groups at a time as in training: Arrow in, features out
    packed    a bare forward pass over exactly the rows and masks that the encoder has just computed
    repeated  a bare forward pass over one row per response with its prompt, sorted by length, same token budget

The output is one JSON object a shape, with medians over the repeats. Tokens are those of all responses, and of each
group's prompt once, whatever a way computes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch

from actors.config import EncoderConfig
from actors.encoder import HiddenStateEncoder
from benchmarks.synthetic import GROUP_SIZE, Shape, make_group, num_tokens
from bonus.config import BonusConfig
from learners.models import resolve_model
from learners.precision import Dtype

Inputs = dict[str, Any]
"""Arguments of one forward pass of a decoder."""


SHAPES = (
    Shape(name="quickstart", num_groups=32, prompt_tokens=(37, 37), response_tokens=(1, 20)),
    Shape(name="ragged", num_groups=8, prompt_tokens=(30, 200), response_tokens=(20, 200)),
)


async def encode_all(encoder: HiddenStateEncoder, groups: Sequence[pa.RecordBatch], concurrent: int) -> None:
    """Encode every group by a call of its own, `concurrent` at a time. A lane takes the next group when it is free."""
    remaining = iter(groups)

    async def lane() -> None:
        for group in remaining:
            await encoder.encode(group)

    await asyncio.gather(*(lane() for _ in range(concurrent)))


def repeated_prompts(groups: Sequence[pa.RecordBatch], *, max_tokens: int, device: str) -> Iterator[Inputs]:
    """Return one row per response, padded on the right."""
    rows = [row["prompt_ids"] + row["response_ids"] for group in groups for row in group.select(["prompt_ids", "response_ids"]).to_pylist()]
    batch: list[list[int]] = []
    for row in [*sorted(rows, key=len), None]:
        if batch and (row is None or (len(batch) + 1) * len(row) > max_tokens):
            lengths = torch.tensor([len(ids) for ids in batch])
            input_ids = torch.zeros(len(batch), len(batch[-1]), dtype=torch.int64)
            mask = torch.arange(len(batch[-1])) < lengths[:, None]
            input_ids[mask] = torch.tensor([token for ids in batch for token in ids])
            yield {"input_ids": input_ids.to(device), "attention_mask": mask.long().to(device), "use_cache": False}
            batch = []
        if row is not None:
            batch.append(row)


@torch.inference_mode()
def forward_all(decoder: Any, passes: Sequence[Inputs], device: str) -> float:
    """Return the seconds of the passes alone."""
    started = time.monotonic()
    for inputs in passes:
        decoder(**inputs)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.monotonic() - started


def measure(encoder: HiddenStateEncoder, shape: Shape, options: argparse.Namespace, config: EncoderConfig) -> dict[str, object]:
    rng = np.random.default_rng(0)
    groups = [make_group(number, shape, rng) for number in range(options.groups or shape.num_groups)]
    tokens = sum(map(num_tokens, groups))
    decoder = encoder._model.get_decoder()
    repeated = list(repeated_prompts(groups, max_tokens=config.tokens_per_batch, device=options.device))
    seconds: dict[str, list[float]] = {"encoder": [], "packed": [], "repeated": []}
    for _ in range(1 + options.repeats):  # the first repeat warms up
        packed: list[Inputs] = []
        watch = decoder.register_forward_pre_hook(lambda module, args, inputs, seen=packed: seen.append(inputs), with_kwargs=True)
        started = time.monotonic()
        asyncio.run(encode_all(encoder, groups, options.concurrent))
        seconds["encoder"].append(time.monotonic() - started)
        watch.remove()
        seconds["packed"].append(forward_all(decoder, packed, options.device))
        seconds["repeated"].append(forward_all(decoder, repeated, options.device))
    measured = {name: values[1:] for name, values in seconds.items()}

    def ratio(name: str) -> float:
        return round(median(e / s for e, s in zip(measured["encoder"], measured[name], strict=True)), 3)

    return {
        "shape": shape.name,
        "groups": len(groups),
        "tokens": tokens,
        "computed_tokens": {
            name: sum(inputs["input_ids"].numel() for inputs in passes) for name, passes in (("packed", packed), ("repeated", repeated))
        },
        "passes": {"packed": len(packed), "repeated": len(repeated)},
        "tokens_per_s": {name: round(tokens / median(values)) for name, values in measured.items()},
        "seconds": {name: [round(value, 3) for value in values] for name, values in measured.items()},
        "encoder_over_packed": ratio("packed"),
        "encoder_over_repeated": ratio("repeated"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="only this one")
    parser.add_argument("--groups", type=int, help="groups of 8 responses, instead of the shape's own number")
    parser.add_argument("--concurrent", type=int, default=8, help="groups that wait for the encoder at once: prompts_per_step in training")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens-per-batch", type=int, default=EncoderConfig().tokens_per_batch)
    parser.add_argument("--dtype", choices=get_args(Dtype), default=EncoderConfig().dtype)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    config = EncoderConfig(threads=options.threads, tokens_per_batch=options.tokens_per_batch, dtype=options.dtype)
    encoder = HiddenStateEncoder(
        model=resolve_model(options.model), config=config, group_size=GROUP_SIZE, bonus=BonusConfig(), device=options.device
    )
    for shape in SHAPES:
        if options.shape not in (None, shape.name):
            continue
        print(json.dumps(measure(encoder, shape, options, config)), flush=True)


if __name__ == "__main__":
    main()
