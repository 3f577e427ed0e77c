"""A bonus of this project inside TRL's GRPOTrainer, as a second reward function (docs/library.md).

    PYTHONPATH=. TRL-PYTHON docs/examples/trl_bonus.py MODEL --steps 4       # from the clone; a directory or a hub id

TRL-PYTHON is the interpreter of an environment with trl. `Novelty` is the whole bridge. The rest is a run on sums to
99, on a CPU, in the paper's setting: the bonus counts 0.01 beside the reward, and TRL normalizes the sum by group.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from bonus.config import BonusConfig
from bonus.library import step_of
from bonus.methods import bonus_of
from bonus.projection import sparse_projection

DIM = 32


class Novelty:
    """A reward function of TRL: the elliptical bonus of the hidden states that a frozen copy of the model has."""

    __name__ = "novelty"

    def __init__(self, model: str, group_size: int, is_right: Callable[..., list[float]]) -> None:
        self.encoder = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.group_size, self.is_right = group_size, is_right
        self.bonus = bonus_of(BonusConfig(kind="elliptical", dim=DIM, ridge=0.01))
        self.state, self.step = self.bonus.init_state(), 0

    def __call__(self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """TRL calls this once for each batch of generations, with the K responses to a prompt side by side."""
        self.step += 1
        hidden_NH = torch.stack([self.mean_state(*pair) for pair in zip(prompts, completion_ids, strict=True)])
        features_ND = hidden_NH.double() @ sparse_projection(hidden_NH.shape[1], DIM, seed=self.step)
        step = step_of(
            rewards=np.reshape(self.is_right(completions=completions, **columns), (-1, self.group_size)),
            features=features_ND.view(-1, self.group_size, DIM),
            lengths=np.reshape([len(ids) for ids in completion_ids], (-1, self.group_size)),
            step=self.step,
        )
        scores, self.state = self.bonus.score(step, self.state)
        bonuses: list[float] = scores.bonus_GK.flatten().tolist()
        return bonuses

    @torch.no_grad()
    def mean_state(self, prompt: list[dict[str, str]], response_ids: list[int]) -> torch.Tensor:
        """Return the mean of the last hidden states over the response's own tokens."""
        text = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        prompt_ids = self.tokenizer(text, add_special_tokens=False).input_ids
        states_TH: torch.Tensor = self.encoder(torch.tensor([prompt_ids + list(response_ids)])).last_hidden_state[0]
        return states_TH[len(prompt_ids) :].mean(dim=0)


def is_right(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    """Return 1 for each reply whose last integer is the answer, else 0."""
    found = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
    return [float(bool(numbers) and numbers[-1] == right) for numbers, right in zip(found, answer, strict=True)]


def sums(num: int) -> list[dict[str, Any]]:
    """Return `num` problems as rows of a data set for TRL."""
    pairs = [(random.Random(index).randrange(100), random.Random(-1 - index).randrange(100)) for index in range(num)]
    asked = "What is {} + {}? Answer with the number only."
    return [{"prompt": [{"role": "user", "content": asked.format(a, b)}], "answer": str(a + b)} for a, b in pairs]


def main() -> None:
    """Train for a few steps, and print the mean of both rewards after each."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    parser = argparse.ArgumentParser(description="TRL's GRPOTrainer with the elliptical bonus.")
    parser.add_argument("model", help="a directory or a hub id")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=4, help="per step")
    parser.add_argument("--group-size", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            max_steps=options.steps,
            per_device_train_batch_size=options.prompts * options.group_size,
            num_generations=options.group_size,
            max_completion_length=20,
            temperature=1.0,
            beta=0.0,
            learning_rate=3e-5,
            reward_weights=[1.0, 0.01],
            scale_rewards="group",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            reward_funcs=[is_right, Novelty(options.model, options.group_size, is_right)],
            args=config,
            train_dataset=Dataset.from_list(sums(options.steps * options.prompts)),
            processing_class=AutoTokenizer.from_pretrained(options.model),
        )
        trainer.train()
    for log in trainer.state.log_history:
        named = {name: log[f"rewards/{name}/mean"] for name in ("is_right", "novelty") if f"rewards/{name}/mean" in log}
        if named:
            print(f"step {log['step']}  " + "  ".join(f"{name} {mean:.3f}" for name, mean in named.items()), flush=True)


if __name__ == "__main__":
    main()
