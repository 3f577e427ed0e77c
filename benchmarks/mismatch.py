"""What the mismatch alarm says about known faults.

    python -m benchmarks.mismatch                     # the embedded model; 5 to 10 minutes on two cores
    python -m benchmarks.mismatch --faults temperature,tensor

An engine of plain transformers samples with one fault, and the learner's rules look at the result. Every fault is real:
the engine samples from the changed model or temperature and records its own log-probs, and re-tokenized responses are
decoded and encoded again. Weights become stale by one or more gradient steps of the learner on responses of the same
kind. The floor of earlier steps is that of an engine without a fault.

The output is one line for each fault: its name, tokens, mean |d|, the divergence in nats, and the cause found.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from learners.forward import load_causal_lm
from learners.mismatch import Floor, MismatchTokens, diagnose
from learners.models import resolve_model
from tasks.arithmetic import Arithmetic
from tasks.config import TaskConfig

Response = tuple[list[int], list[int], list[float]]
"""Prompt, ids and recorded log-probs."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The learner's model and the prompts."""

    model: Any
    tokenizer: Any
    prompts: Sequence[list[int]]
    responses: int
    tokens: int

    @torch.no_grad()
    def sample(self, model: Any, *, temperature: float = 1.0, seed: int = 0) -> list[Response]:
        """Sample with `model`, and record its log-probs at that temperature."""
        generator = torch.Generator().manual_seed(seed)
        found: list[Response] = []
        for prompt in self.prompts:
            new_K1, past, steps = torch.tensor([prompt] * self.responses), None, []
            for _ in range(self.tokens):
                output = model(input_ids=new_K1, past_key_values=past, use_cache=True)
                past = output.past_key_values
                logprobs_KV = (output.logits[:, -1].double() / temperature).log_softmax(-1)
                new_K1 = torch.multinomial(logprobs_KV.exp(), 1, generator=generator)
                steps.append((new_K1, logprobs_KV.gather(-1, new_K1)))
            ids_KT, logprobs_KT = (torch.cat(column, dim=1).tolist() for column in zip(*steps, strict=True))
            found += [(prompt, *self._ended(ids, logprobs)) for ids, logprobs in zip(ids_KT, logprobs_KT, strict=True)]
        return found

    def _ended(self, ids: list[int], logprobs: list[float]) -> tuple[list[int], list[float]]:
        end = ids.index(self.tokenizer.eos_token_id) + 1 if self.tokenizer.eos_token_id in ids else len(ids)
        return ids[:end], logprobs[:end]

    @torch.no_grad()
    def compare(self, model: Any, responses: Sequence[Response]) -> MismatchTokens:
        """Return what a learner that holds `model` sees of `responses`, which it takes for its own."""
        logprobs, entropies = [], []
        for prompt, ids, _ in responses:
            logprobs_TV = logprobs_of(model, prompt, ids)
            logprobs.append(logprobs_TV.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1).numpy())
            entropies.append(-(logprobs_TV.exp() * logprobs_TV).sum(-1).numpy())
        logprob_N = np.concatenate(logprobs)
        recorded_N = np.concatenate([recorded for _, _, recorded in responses])
        lag_N = np.zeros_like(logprob_N)
        return MismatchTokens(
            logprob_N=logprob_N,
            difference_N=logprob_N - recorded_N,
            entropy_N=np.concatenate(entropies),
            lag_N=lag_N,
            oldest_lag_N=lag_N,
        )

    def moved(self, *, lr: float, steps: int) -> Any:
        """Return the model after gradient steps on samples of its own, half of which count as good."""
        model = copy.deepcopy(self.model)
        optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
        for step in range(steps):
            responses = self.sample(model, seed=100 + step)[::2]
            loss = sum(
                (1 - 2 * (i % 2)) * logprobs_of(model, prompt, ids).gather(-1, torch.tensor(ids)[:, None]).sum()
                for i, (prompt, ids, _) in enumerate(responses)
            )
            (loss / sum(len(ids) for _, ids, _ in responses)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        return model

    def encoded_again(self, responses: Sequence[Response]) -> list[Response]:
        """Return responses decoded and encoded again, with the recorded log-probs cut or left as they are."""
        again = []
        for prompt, ids, recorded in responses:
            new = self.tokenizer(self.tokenizer.decode(ids), add_special_tokens=False)["input_ids"]
            length = min(len(new), len(recorded))
            again.append((prompt, new[:length], recorded[:length]))
        return again


def logprobs_of(model: Any, prompt: list[int], ids: list[int]) -> Tensor:
    """Return (T, V): the log-probs of what follows each token but the last."""
    return model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def merged(responses: Sequence[Response], share: float, vocabulary: int) -> list[Response]:
    """Replace two tokens by one in a share of the responses, so that the log-probs behind it belong to other tokens."""
    rng = np.random.default_rng(0)

    def changed(prompt: list[int], ids: list[int], recorded: list[float]) -> Response:
        if rng.random() >= share or len(ids) < 5:
            return prompt, ids, recorded
        at = int(rng.integers(0, len(ids) - 2))
        return prompt, [*ids[:at], int(rng.integers(vocabulary)), *ids[at + 2 :]], recorded[:-1]

    return [changed(*response) for response in responses]


def rounded(model: Any, bits: int) -> Any:
    """Return the model with its matrices rounded to `bits` bits, with one scale per row."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            scale = parameter.data.abs().amax(1, keepdim=True).clamp(min=1e-9) / (2 ** (bits - 1) - 1)
            parameter.data = (parameter.data / scale).round() * scale
    return model


def with_tensor(model: Any, name: str, change: Callable[[Tensor], Tensor]) -> Any:
    model = copy.deepcopy(model)
    parameter = dict(model.named_parameters())[name]
    parameter.data = change(parameter.data)
    return model


def faults(bench: Bench, wanted: set[str]) -> Iterator[tuple[str, MismatchTokens, bool]]:
    """Yield each fault: its name, its tokens, and whether steps without a fault came before."""
    model, layers = bench.model, bench.model.config.num_hidden_layers
    clean = bench.sample(model)
    yield "none (float32)", bench.compare(model, clean), False
    if "noise" in wanted:
        yield "none (bfloat16 engine)", bench.compare(model, bench.sample(copy.deepcopy(model).to(torch.bfloat16))), False
        for bits in (8, 4):
            yield f"noise: an engine of {bits} bits", bench.compare(model, bench.sample(rounded(model, bits))), False
    if "temperature" in wanted:
        for temperature in (0.6, 0.8, 0.95, 1.1, 1.3):
            yield f"temperature {temperature}", bench.compare(model, bench.sample(model, temperature=temperature)), False
    if "tensor" in wanted:
        random = torch.Generator().manual_seed(0)
        for name, change in {
            f"model.layers.{layers // 2}.mlp.down_proj.weight": torch.zeros_like,
            "model.layers.0.self_attn.o_proj.weight": torch.zeros_like,
            f"model.layers.{layers - 1}.mlp.up_proj.weight": lambda w: torch.randn(w.shape, generator=random) * w.std(),
        }.items():
            yield f"tensor {name}", bench.compare(model, bench.sample(with_tensor(model, name, change))), True
    if "stale" in wanted:
        for lr, steps in ((1e-5, 1), (3e-5, 1)):
            yield f"stale by {steps} step of {lr:.0e}", bench.compare(bench.moved(lr=lr, steps=steps), clean), True
    if "tokens" in wanted:
        yield "decoded and encoded again", bench.compare(model, bench.encoded_again(clean)), False
        for share in (0.1, 0.3, 1.0):
            tokens = bench.compare(model, merged(clean, share, model.config.vocab_size))
            yield f"two tokens merged in {share:.0%} of responses", tokens, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--faults", default="noise,temperature,tensor,stale,tokens")
    options = parser.parse_args()
    path = resolve_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = TaskConfig()
    task = Arithmetic(config.arithmetic, config.seed)
    problems = islice(task.problems("train"), options.problems)
    prompts = [tokenizer.apply_chat_template(task.prompt(p), add_generation_prompt=True, return_dict=True)["input_ids"] for p in problems]
    bench = Bench(
        model=load_causal_lm(path, dtype="float32"),
        tokenizer=tokenizer,
        prompts=prompts,
        responses=options.responses,
        tokens=options.tokens,
    )
    for name, tokens, in_order_before in faults(bench, set(options.faults.split(","))):
        difference_N = tokens.difference_N
        found = diagnose(tokens, Floor(level=1e-5) if in_order_before else Floor())
        said = found.cause or "no alarm"
        if found.engine_temperature is not None:
            said = f"{said}, {found.engine_temperature:.2f}"
        level, divergence = np.abs(difference_N).mean(), (np.expm1(difference_N) - difference_N).mean()
        print(f"{name:45s} {len(tokens):5d} tokens  |d| {level:.2g}  divergence {divergence:.2g}  -> {said}", flush=True)


if __name__ == "__main__":
    main()
