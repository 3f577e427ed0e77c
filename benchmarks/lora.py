"""What adapters save and cost beside full weights, and what publishing only the changed weights would save.

    python -m benchmarks.lora                  # the embedded model, float32, one thread: seconds, bytes
    python -m benchmarks.lora --rounding       # in bfloat16: how much of a small step rounding takes back
    python -m benchmarks.lora --engine         # what a vLLM engine holds after it was sent only the changed weights

Kinds take turns within a round, so that a disturbance meets them all, and the first round does not count. Medians are
printed: seconds of CPU, and for the engine seconds. Ray is not needed, and vLLM only with --engine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ranks import make_batch

LORA = {"enabled": True, "rank": 16}
FEW = {**LORA, "targets": ("q_proj", "v_proj")}
KINDS: dict[str, dict[str, Any]] = {"full": {}, "all-linear": {"lora": LORA}, "q and v": {"lora": FEW}}
GROUP_SIZE = 4
MIB = 2**20


def cpu_seconds(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def changed(learner: Any) -> list[Any]:
    """Return the part of what is published that training can change."""
    from learners.sharding import Deferred

    named, _ = learner.named_weights()
    return named if learner._adapters is None else [(name, weight) for name, weight in named if isinstance(weight, Deferred)]


def file_mib(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / MIB


def costs(model: str, rounds: int) -> None:
    """Print the costs of a step, of a publication whole and in part, and of a checkpoint."""
    from transformers import AutoConfig

    from learners.config import LearnerConfig
    from learners.forward import causal_lm_shapes
    from learners.policy_learner import PolicyLearner

    def learner(values: dict[str, Any]) -> PolicyLearner:
        config = LearnerConfig.model_validate({"dtype": "float32", **values})
        return PolicyLearner(model, config, temperature=1.0, group_size=GROUP_SIZE, reuse_snapshot_buffer=True)

    learners = {name: learner(values) for name, values in KINDS.items()}
    learners["peft's pass"] = learner(KINDS["all-linear"])
    for layer in learners["peft's pass"]._adapters._layers.values():  # type: ignore[union-attr]
        del layer.forward  # ours, which hides that of its class
    batch, shapes = make_batch(AutoConfig.from_pretrained(model).vocab_size), causal_lm_shapes(model)
    rows = [{name: measured(one, batch, shapes) for name, one in learners.items()} for _ in range(1 + rounds)][1:]
    print(f"{'':22}" + "".join(f"{name:>12}" for name in learners))
    for what in rows[0]["full"]:
        print(f"{what:22}" + "".join(f"{statistics.median(row[name][what] for row in rows):12.2f}" for name in learners))


def measured(learner: Any, batch: Any, shapes: Any) -> dict[str, float]:
    """Return the costs of one round of one learner."""
    from learners.weight_check import check_snapshot
    from learners.weights import checksums, take_snapshot

    step_s = cpu_seconds(lambda: learner.step(batch))
    whole, part = learner.snapshot(), take_snapshot(changed(learner), version=1)
    with tempfile.TemporaryDirectory() as directory:
        return {
            "step, s": step_s,
            "trained weights, M": sum(weight.numel() for weight in learner._model.parameters() if weight.requires_grad) / 1e6,
            "publish all, MiB": whole.nbytes / MIB,
            "publish all, s": cpu_seconds(learner.snapshot),
            "check all, s": cpu_seconds(lambda: check_snapshot(whole, shapes=shapes, dtype="float32")),
            "publish changed, MiB": part.nbytes / MIB,
            "publish changed, s": cpu_seconds(lambda: take_snapshot(changed(learner), version=1, into=part.buffer)),
            "check changed, s": cpu_seconds(lambda: checksums(part.buffer, part.index)),
            "save, s": cpu_seconds(lambda: learner.save(Path(directory))),
            "save, MiB": file_mib(Path(directory)),
        }


def rounding(model: str) -> None:
    """Compare how far adapters move the log-probs of 192 sampled tokens, and how far merged weights do that are rounded
    to bfloat16."""
    import torch

    from learners.config import LoraConfig
    from learners.forward import load_causal_lm
    from learners.lora import Adapters, merged

    policy = load_causal_lm(model, dtype="float32")
    prompt = torch.arange(100, 120)[None]
    torch.manual_seed(0)
    ids = policy.generate(prompt, max_new_tokens=48, min_new_tokens=48, do_sample=True, num_return_sequences=4)

    @torch.no_grad()
    def logprobs(of: Any = policy) -> Any:
        logprob = of(ids).logits[:, 19:-1].float().log_softmax(-1)
        return logprob.gather(-1, ids[:, 20:, None]).squeeze(-1)

    base = logprobs()
    noise = (logprobs(load_causal_lm(model, dtype="bfloat16")) - base).abs().mean()
    print(f"between bfloat16 and float32 passes of the model itself: {noise:.4f} nats a token")
    adapters = Adapters.attach(policy, LoraConfig(enabled=True), base=model)
    for scale in (1e-4, 3e-4, 1e-3, 3e-3):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for layer in adapters._layers.values():
                weight = layer.lora_B["default"].weight
                weight.copy_(scale * torch.randn(weight.shape, generator=generator).sign())  # about as after scale / lr steps of Adam
        moved = logprobs() - base
        kept, same, count = {}, 0, 0
        with torch.no_grad(), adapters.off():
            for name, layer in adapters._layers.items():
                weight = layer.base_layer.weight
                kept[name] = weight.clone()
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                weight.copy_(merged(weight.bfloat16(), a, b, layer.scaling["default"]).float())
                same, count = same + int((weight == kept[name]).sum()), count + weight.numel()
            rounded = logprobs() - base
            for name, layer in adapters._layers.items():
                layer.base_layer.weight.copy_(kept[name])
        both = torch.corrcoef(torch.stack([moved.flatten(), rounded.flatten()]))[0, 1]
        print(
            f"B = ±{scale:g}: adapters move {moved.abs().mean():.4f}, merged and rounded {rounded.abs().mean():.4f}, difference "
            f"{(moved - rounded).abs().mean():.4f}, correlation {both:.2f}; {same / count:.0%} of the merged weights round to the old ones"
        )


def engine(model: str, rounds: int) -> None:
    """Print the seconds in which a vLLM engine loads all weights and the changed ones, and whether it then holds what
    was published."""
    from transformers import AutoConfig

    from actors.config import RolloutConfig, SamplingConfig
    from actors.engine import EngineSetup
    from actors.vllm_engine import VllmEngine
    from learners.config import LearnerConfig
    from learners.policy_learner import PolicyLearner
    from learners.weights import first_mismatch_of_ranks, take_snapshot

    running = VllmEngine()
    rollout = RolloutConfig(engine="vllm", dtype="float32", kv_cache_gib=1)
    running.start(EngineSetup(model=model, config=rollout, sampling=SamplingConfig(), seed=0))
    batch = make_batch(AutoConfig.from_pretrained(model).vocab_size)
    for name, values in KINDS.items():
        config = LearnerConfig.model_validate({"dtype": "float32", "lr": 1e-3, **values})
        learner = PolicyLearner(model, config, temperature=1.0, group_size=GROUP_SIZE)
        running.load(learner.snapshot())
        learner.step(batch)
        whole, part = learner.snapshot(), take_snapshot(changed(learner), version=1)
        shapes = {spec.name: spec.shape for spec in whole.index}

        def load(snapshot: Any) -> float:
            began = time.monotonic()
            running._engine.collective_rpc("load_weights_from", args=(snapshot,))
            return time.monotonic() - began

        part_s = statistics.median(load(part) for _ in range(rounds))
        wrong = first_mismatch_of_ranks(whole.fingerprint, running._engine.collective_rpc("held_weights", args=(shapes, True, 1)))
        all_s = statistics.median(load(whole) for _ in range(rounds))
        print(
            f"{name}: all {whole.nbytes / MIB:.0f} MiB in {all_s:.2f} s; changed {part.nbytes / MIB:.0f} MiB in {part_s:.2f} s, then it "
            + ("holds what was published" if wrong is None else f"does not hold {wrong[0]}")
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rounding", action="store_true", help="only that")
    parser.add_argument("--engine", action="store_true", help="only that")
    options = parser.parse_args(arguments)

    from learners.models import resolve_model

    model = resolve_model(options.model)
    if options.rounding:
        rounding(model)
    elif options.engine:
        engine(model, options.rounds)
    else:
        costs(model, options.rounds)


if __name__ == "__main__":
    main()
