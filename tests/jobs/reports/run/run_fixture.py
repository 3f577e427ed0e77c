"""A run's directory, written by the classes that runs write it with. Its model has a token for each byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from buffers.records import FinishReason, GroupOutcome, GroupRequest, Problem, Rollout, Verdict, VerdictStatus
from buffers.rollout_log import RolloutLog
from buffers.schema import to_record_batch, with_outcome, with_scores, with_verdicts
from jobs.directory.events import EventKind, EventLog
from jobs.directory.metrics import MetricsWriter
from tests.jobs.runs_fixture import run_directory

HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> \u202eevil {{ 7 * 7 }} é😀"
"""Markup, an order to reverse the text, a template, and characters of several bytes."""
END = "<|end|>"


def byte_tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


def rollout(text: str, tokenizer: Tokenizer, *, versions: Sequence[int] = (0,), whole: bool = True) -> Rollout:
    """A response whose tokens are of `versions`, in equal parts. One that is not whole was cut off."""
    ids = tokenizer.encode(text + (END if whole else "")).ids
    return Rollout(
        prompt_ids=tuple(tokenizer.encode("Sum?\n").ids),
        response_ids=tuple(ids),
        behavior_logprobs=tuple(-place / 8 for place in range(len(ids))),
        version_starts=tuple(place * len(ids) // len(versions) for place in range(len(versions))),
        version_values=tuple(versions),
        finish_reason=FinishReason.STOP if whole else FinishReason.LENGTH,
        response_text=text,
    )


def write_step(directory: Path, step: int, texts: Sequence[str] = ("It is 3.", "It is 4.", "3")) -> None:
    """Add a step of two groups to the rollouts: the first response is right, the second is wrong, the last cut off."""
    tokenizer, groups = byte_tokenizer(), []
    for group_id in (2 * step - 2, 2 * step - 1):
        problem = Problem(task="sums", problem_id=f"sums/{group_id}", question=f"What is {group_id} + 1?", answer=str(group_id + 1))
        request = GroupRequest(group_id=group_id, problem=problem, num_responses=len(texts), admitted_version=max(0, step - 2))
        versions = [step - 2, step - 1] if step > 1 else [0]
        rollouts = [rollout(text, tokenizer, versions=versions, whole=place + 1 < len(texts)) for place, text in enumerate(texts)]
        verdicts = [Verdict(status=VerdictStatus.CORRECT, reward=1.0, answer="3")]
        verdicts += [Verdict(status=VerdictStatus.INCORRECT, reward=0.0, answer="4", detail=texts[0])] * (len(texts) - 1)
        batch = with_verdicts(to_record_batch("run", request, rollouts, worker_id="rollout-0"), verdicts)
        scored = with_scores(batch, [0.5] * len(texts), [1.0, *[-0.5] * (len(texts) - 1)])
        groups.append(with_outcome(scored, step, GroupOutcome.TRAINED))
    RolloutLog(fs.LocalFileSystem(), str(directory / "rollouts")).append(step, groups)


def written_run(parent: Path, *, name: str = "mine", steps: int = 3, texts: Sequence[str] = ("It is 3.", "It is 4.", "3")) -> Path:
    """A run of `steps` steps with a fault."""
    directory = run_directory(parent, name, step=steps, steps=40, tokens={"generated": 1000, "trained": 900, "in_flight": 100})
    (directory / "config.json").write_text(json.dumps({"model": "no/where", "seed": 7}))
    (directory / "policy").mkdir()
    byte_tokenizer().save(str(directory / "policy/tokenizer.json"))
    events = EventLog(directory / "events.jsonl")
    metrics = MetricsWriter(directory / "metrics.jsonl")
    for step in range(1, steps + 1):
        events.write(EventKind.BATCH, step=step, group_ids=[2 * step - 2, 2 * step - 1])
        events.write(EventKind.TRAINED, step=step, version=step)
        metrics.write(step, {"reward/mean": step / 10, "bonus/of_my_own": 2.0, "tokens/generated": 10.0, "tokens/trained": 9.0})
        write_step(directory, step, texts)
    metrics.write_evaluation(steps, {"eval/pass@1": 0.5})
    events.write(EventKind.FAULT, role="encoder", name="encoder-0", kind="infrastructure", error=f"\ud800 {texts[0]}")
    events.close()
    _ten_seconds_apart(directory / "events.jsonl")
    return directory


def _ten_seconds_apart(events: Path) -> None:
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    events.write_text("".join(json.dumps(line | {"time": 1000.0 + 10 * line["seq"]}) + "\n" for line in lines))
