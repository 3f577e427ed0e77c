"""The quick start's training in Hugging Face TRL, for `benchmarks.end_to_end`.

    TRL-PYTHON benchmarks/trl_grpo.py settings.json        # prints one JSON object

This file runs in an environment of TRL's own, without this project. settings.json has model, prompts ([{"prompt":
messages, "answer": "7"}, ...]), steps, prompts_per_step, group_size, max_tokens, lr, dtype, threads and rows_per_pass.
The reward is that of the quick start's task: the last integer of the reply is the answer.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
os.environ["OMP_NUM_THREADS"] = str(settings["threads"])

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

_INTEGER = re.compile(r"-?\d+")


def last_integer_is_right(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    found = [_INTEGER.findall(completion[0]["content"]) for completion in completions]
    return [float(bool(numbers) and numbers[-1] == right) for numbers, right in zip(found, answer, strict=True)]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *args: Any, **_: Any) -> None:
        self.ends.append(time.monotonic())

    def on_step_end(self, *args: Any, **_: Any) -> None:
        self.ends.append(time.monotonic())


def main() -> None:
    torch.set_num_threads(settings["threads"])
    rows = settings["prompts_per_step"] * settings["group_size"]
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["rows_per_pass"],
            gradient_accumulation_steps=rows // settings["rows_per_pass"],
            num_generations=settings["group_size"],
            max_completion_length=settings["max_tokens"],
            learning_rate=settings["lr"],
            temperature=1.0,
            beta=0.0,
            bf16=settings["dtype"] == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=last_integer_is_right,
            args=config,
            train_dataset=Dataset.from_list(settings["prompts"]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    step_s = [later - earlier for earlier, later in zip(clock.ends, clock.ends[1:], strict=False)]
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(json.dumps({"step_s": step_s, "reward": rewards}))


if __name__ == "__main__":
    main()
