"""Tokens a second of a whole training step (forward, backward, optimiser) against a plain padded transformers loop.

    python -m benchmarks.learner                                          # the embedded model, all shapes, one thread
    python -m benchmarks.learner --shape ragged --repeats 5
    python -m benchmarks.learner --device cuda --model qwen-1.5b --groups 32 --tokens-per-micro-batch 32768

Needs neither Ray nor vLLM. Shapes, of groups of 8 responses to one prompt:

    quickstart   8 groups, 37-token prompts, responses of 1 to 20 tokens
    uniform      2 groups, 40-token prompts, responses of 112 to 144 tokens
    ragged       2 groups, prompts of 30 to 200 tokens, responses of 20 to 200

`benchmarks.padded_loop` is what it is compared with: same model, same dtype, same token budget a forward pass, same
masters. First both compute the gradient of one batch from the same weights, which must agree. Then they take training
steps in turns; a ratio is that of one pair, and the one printed the median over the pairs. Tokens are those of all
responses, and of each group's prompt once, whatever is computed.

Prints one JSON object a shape. Beside tokens and seconds, it has

    model_gflops   the operations that the step requires (3 × those of a forward pass that computes what responses have
                   in common once) over its seconds
    machine        GFLOP/s of torch.mm here, in the same dtype and with as many threads: "square" of large square
                   matrices, measured beside each pair of steps, and "of_step" of the matrix products that our step
                   computes, each alone, on operands of the same shape and layout; these take "of_step_s" together
    share          model_gflops over "square", the median over the pairs
    utilisation    on a CUDA device: model_gflops over its dense peak (model-FLOPs utilisation)
    matrix_share   the share of a step's time in matrix products and attention (torch.profiler)
    peak_gib       the peak of memory while a gradient is computed, beyond what is held before: activations, logits and
                   the gradient itself"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.padded_loop import PaddedLoop
from benchmarks.products import Products, square_gflops
from benchmarks.synthetic import GROUP_SIZE, Shape, make_group, num_tokens
from buffers.records import Verdict, VerdictStatus
from buffers.schema import concat_groups, with_scores, with_verdicts
from learners.batches import read_groups
from learners.config import LearnerConfig
from learners.models import resolve_model
from learners.packing import prefix_tree
from learners.policy_learner import PolicyLearner
from learners.precision import Dtype, resolve_dtype

SHAPES = (
    Shape(name="quickstart", num_groups=8, prompt_tokens=(37, 37), response_tokens=(1, 20)),
    Shape(name="uniform", num_groups=2, prompt_tokens=(40, 40), response_tokens=(112, 144)),
    Shape(name="ragged", num_groups=2, prompt_tokens=(30, 200), response_tokens=(20, 200)),
)
RANDOM_MODELS = {
    "qwen-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "qwen-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "qwen-tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512},
}
"""Shapes of Qwen2.5 with random weights, the last one of no use but to try this file."""
DENSE_PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0, "L4": 121.0, "L40S": 362.0}
"""bfloat16 without sparsity, by a word of the device's name."""
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest relative difference of the two gradients (norm of the difference over norm)."""
MATRIX_OPERATIONS = (
    "aten::mm",
    "aten::addmm",
    "aten::addmm_",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product",
    "aten::_flash_attention",
)
TEMPERATURE = 0.9
T = TypeVar("T")


def random_model(name: str, directory: Path) -> str:
    """Write a model of `RANDOM_MODELS` into `directory`; returns its path."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**{"num_key_value_heads": 2, "tie_word_embeddings": True, **RANDOM_MODELS[name]})
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)


def make_batch(shape: Shape, *, vocabulary: int) -> pa.RecordBatch:
    """A scored batch: half of each group's responses are right."""
    rng = np.random.default_rng(0)
    verdicts = [Verdict(status=VerdictStatus.CORRECT if k % 2 else VerdictStatus.INCORRECT, reward=float(k % 2)) for k in range(GROUP_SIZE)]
    groups = [make_group(number, shape, rng, token_ids=(10, vocabulary)) for number in range(shape.num_groups)]
    return concat_groups([with_scores(with_verdicts(group, verdicts), [0.0] * GROUP_SIZE) for group in groups])


def gradient_of(learner: PolicyLearner, batch: pa.RecordBatch) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """The gradient of a step that is not applied, and the advantages."""
    optimiser: Any = learner._optimiser
    found: dict[str, Tensor] = {}

    def record(share: float = 1.0) -> float:
        found.update(
            {name: master.grad for name, master in zip(optimiser._names, optimiser._masters, strict=True) if master.grad is not None}
        )
        optimiser.clear()
        return 0.0

    optimiser.step = record
    try:
        report = learner.step(batch)
    finally:
        del optimiser.step
    return found, report.advantages


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    if found.keys() != expected.keys():
        raise SystemExit(f"gradients of different tensors: {sorted(found.keys() ^ expected.keys())}")
    squares = [(float((found[n] - e).double().square().sum()), float(e.double().square().sum())) for n, e in expected.items()]
    return float((sum(d for d, _ in squares) / sum(e for _, e in squares)) ** 0.5)


def timed(step: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_share(step: Callable[[], Any], device: str) -> float:
    """Share of a step's time inside matrix products and attention kernels."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities) as profiled:
        timed(step, device)
    events = profiled.key_averages()

    def own_time(event: Any) -> float:
        return float(event.self_cpu_time_total if device == "cpu" else event.self_device_time_total)

    inside = sum(own_time(event) for event in events if event.key.startswith(MATRIX_OPERATIONS))
    return inside / sum(own_time(event) for event in events)


def with_peak_gib(compute: Callable[[], T], device: str) -> tuple[T, float]:
    """What `compute` returns, and the memory that it takes at most beyond what is held before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = compute()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**30
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, so that it is not taken for free of charge
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident_kib("VmRSS")
    result = compute()
    return result, (_resident_kib("VmHWM") - before) / 2**20


def _resident_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def required_operations(learner: PolicyLearner, batch: pa.RecordBatch) -> float:
    """Of a training step that computes what responses have in common once, and nothing twice."""
    return 3 * learner._cost.of_pass(prefix_tree(read_groups(batch, GROUP_SIZE)))


def speeds(seconds: dict[str, list[float]], tokens: int, operations: float, device: str) -> dict[str, object]:
    typical = {name: median(values) for name, values in seconds.items()}
    found: dict[str, object] = {
        "tokens_per_s": {name: round(tokens / value) for name, value in typical.items()},
        "ratio": round(median(p / o for p, o in zip(seconds["padded"], seconds["ours"], strict=True)), 2),
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "model_gflops": {name: round(operations / value / 1e9, 1) for name, value in typical.items()},
    }
    peaks = [] if device == "cpu" else [peak for word, peak in DENSE_PEAK_TFLOPS.items() if word in torch.cuda.get_device_name().split()]
    if peaks:
        found["utilisation"] = {name: round(operations / value / 1e12 / peaks[0], 3) for name, value in typical.items()}
    return found


def products_of(step: Callable[[], Any]) -> dict[str, float]:
    """The matrix products of a step, each alone."""
    with torch.compiler.set_stance("force_eager"), Products() as products:
        step()
    seconds = products.seconds()
    return {"of_step": round(products.operations / seconds / 1e9, 1), "of_step_s": round(seconds, 3)}


def measure(model: str, shape: Shape, config: LearnerConfig, options: argparse.Namespace) -> dict[str, object]:
    device = options.device
    learner = PolicyLearner(model, config, temperature=TEMPERATURE, group_size=GROUP_SIZE, device=device)
    loop = PaddedLoop(model, config, temperature=TEMPERATURE, device=device)
    batch = make_batch(shape, vocabulary=learner._model.config.vocab_size)
    dtype = resolve_dtype(config.dtype, on_gpu=device != "cpu")
    (found, advantages), our_peak = with_peak_gib(lambda: gradient_of(learner, batch), device)
    expected, padded_peak = with_peak_gib(lambda: loop.gradient(batch, advantages), device)
    difference = relative_difference(found, expected)
    if not difference < AGREEMENT[dtype]:
        raise SystemExit(f"{shape.name}: the gradients differ by {difference:.1e} (relative): not the same computation")
    del found, expected
    steps: dict[str, Callable[[], Any]] = {"ours": lambda: learner.step(batch), "padded": lambda: loop.step(batch, advantages)}
    shares = {name: round(matrix_share(step, device), 3) for name, step in steps.items()}  # the first steps, in which moments are made
    of_step = products_of(steps["ours"])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    squares: list[float] = []
    for _ in range(options.repeats):
        squares.append(square_gflops(getattr(torch, dtype), device))
        for name, step in steps.items():
            seconds[name].append(timed(step, device))
    operations = required_operations(learner, batch)
    return {
        "shape": shape.name,
        "groups": shape.num_groups,
        "device": torch.cuda.get_device_name() if device != "cpu" else f"cpu, {options.threads} threads",
        "dtype": dtype,
        "tokens": num_tokens(batch),
        "gradient_difference": float(f"{difference:.1e}"),
        **speeds(seconds, num_tokens(batch), operations, device),
        "machine": {"square": round(median(squares), 1), **of_step},
        "share": {
            name: round(median(operations / value / square / 1e9 for value, square in zip(values, squares, strict=True)), 3)
            for name, values in seconds.items()
        },
        "matrix_share": shares,
        "peak_gib": {"ours": round(our_peak, 2), "padded": round(padded_peak, 2)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="smollm2-135m", help=f"an alias, a directory, a hub id, or random weights: {', '.join(RANDOM_MODELS)}"
    )
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="only this one")
    parser.add_argument("--groups", type=int, help="instead of the shape's own number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens-per-micro-batch", type=int, default=LearnerConfig().tokens_per_micro_batch)
    parser.add_argument("--activation-checkpointing", action="store_true", help="of ours; the padded loop keeps all activations")
    parser.add_argument("--compile", action="store_true", help="of ours; the first step is not timed")
    parser.add_argument("--dtype", choices=get_args(Dtype), default=LearnerConfig().dtype)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    config = LearnerConfig(
        lr=1e-6,
        threads=options.threads,
        dtype=options.dtype,
        tokens_per_micro_batch=options.tokens_per_micro_batch,
        activation_checkpointing=options.activation_checkpointing,
        compile=options.compile,
    )
    with tempfile.TemporaryDirectory() as directory:
        named = options.model in RANDOM_MODELS
        model = random_model(options.model, Path(directory)) if named else resolve_model(options.model)
        for shape in SHAPES:
            if options.shape in (None, shape.name):
                chosen = Shape(**{**vars(shape), "num_groups": options.groups or shape.num_groups})
                print(json.dumps({"model": options.model, **measure(model, chosen, config, options)}), flush=True)


if __name__ == "__main__":
    main()
