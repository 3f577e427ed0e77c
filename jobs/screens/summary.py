"""What a finished run reports about itself."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.cluster.runs import command_line, python_line, shown
from jobs.configuration.overrides import without
from jobs.directory.run_dir import RunDirectory
from jobs.directory.trackers import TENSORBOARD

WINDOW = 3
COMPARED = {"reward": "reward/mean", "pass@1": "reward/pass@1", "pass@K": "reward/pass@K", "all-correct groups": "groups/all_correct"}


def window_means(history: Sequence[dict[str, float]], name: str) -> tuple[float, float] | None:
    """Return the means over the first and over the last `WINDOW` steps that have the metric; None where none has it."""
    values = [record[name] for record in history if name in record]
    if not values:
        return None
    first, last = values[:WINDOW], values[-WINDOW:]
    return sum(first) / len(first), sum(last) / len(last)


def summary_lines(
    run: RunDirectory,
    config_path: str,
    history: Sequence[dict[str, float]],
    total_steps: int,
    *,
    overrides: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> list[str]:
    """Return what improved, where things are, and how to continue: the command of this run with what it was given."""
    done = int(history[-1]["step"]) if history else 0
    lines = [f"{done} of {total_steps} steps trained."]
    if len(history) >= 2 * WINDOW:
        for label, name in COMPARED.items():
            if (means := window_means(history, name)) is not None:
                said = f"{means[0]:.2f} -> {means[1]:.2f}  ({means[1] - means[0]:+.2f}, first {WINDOW} steps against last {WINDOW})"
                lines.append(f"  {label:<19} {said}")
    if history and "tokens/generated" in history[-1]:
        lines.append(f"  {tokens_line(history[-1])}")
    where = shown(run.path)
    again = [*without(overrides, "run_dir", "steps"), f"run_dir={where}", f"steps={max(total_steps, done + 20)}"]
    further = command_line("train", config_path, *flags, *(word for override in again for word in ("--set", override)))
    policy = f"{where}/policy  (a Hugging Face directory)" if done >= total_steps else "written when all steps are done"
    lines += [
        "",
        f"run directory   {where}",
        f"final policy    {policy}",
        f"train further   {further}",
        f"its answers     {command_line('answers', where)}",
        f"all on a page   {command_line('report', where)}",
    ]
    if "tensorboard" in run.config.trackers:
        lines.append(f"curves          {python_line('tensorboard.main', '--logdir', f'{where}/{TENSORBOARD}')}")
    return lines


def tokens_line(record: dict[str, float]) -> str:
    """Return where the run's sampled tokens went, with the causes of waste that occurred."""
    tokens = {name.removeprefix("tokens/"): int(count) for name, count in record.items() if name.startswith("tokens/")}
    waste = {name.removeprefix("wasted_"): count for name, count in tokens.items() if name.startswith("wasted_")}
    masked = f" + {count:,} too old for it" if (count := tokens.get("masked", 0)) else ""
    causes = ", ".join(f"{count:,} {cause}" for cause, count in waste.items() if count)
    return (
        f"{'tokens':<19} {tokens['generated']:,} generated = {tokens['trained']:,} trained on{masked} + {tokens['in_flight']:,} in flight "
        f"+ {sum(waste.values()):,} wasted{f' ({causes})' if causes else ''}"
    )
