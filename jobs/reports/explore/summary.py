"""What a pool report says in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bonus.orders import ORDERS
from buffers.records import VerdictStatus
from jobs.analysis.bootstrap import Estimate
from jobs.analysis.candidate_table import FEATURED, CandidatePool, label_of
from jobs.analysis.order_statistics import PoolStatistics
from jobs.analysis.picks import mean_of_known
from jobs.reports.explore.examples import TEXT_LIMIT, visible_text

ROUGH_BELOW = 20
NAME_LIMIT = 80
NOT_VERIFIED = "not verified"
NAMED_SETTINGS = (
    "model",
    "task.name",
    "split",
    "seed",
    "sampling.temperature",
    "features",
    "encoder.layer",
    "encoder.pooling",
    "selection",
)

Coverage = Literal["all", "some", "none"]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The pools as they are, orders aside. Means are over candidates."""

    tasks: tuple[str, ...]
    num_prompts: int
    num_candidates: int
    smallest_pool: int
    largest_pool: int
    mean_tokens: float
    truncated_share: float
    mean_logprob: float | None
    verdicts: Mapping[str, int]
    """Candidates by status, `not verified` among them."""
    prompts_without_verdicts: int
    coverage: Coverage
    """Which candidates were verified, of the prompts that have any verdict."""


def overview(pools: Sequence[CandidatePool]) -> Overview:
    statuses = Counter(status for pool in pools for status in pool.statuses)
    sizes = [pool.size for pool in pools]
    judged = [pool for pool in pools if pool.verified_N.any()]
    return Overview(
        tasks=tuple(dict.fromkeys(visible_text(pool.task, NAME_LIMIT) for pool in pools)),
        num_prompts=len(pools),
        num_candidates=sum(sizes),
        smallest_pool=min(sizes),
        largest_pool=max(sizes),
        mean_tokens=float(np.concatenate([pool.num_tokens_N for pool in pools]).mean()),
        truncated_share=float(np.concatenate([pool.truncated_N for pool in pools]).mean()),
        mean_logprob=mean_of_known(np.concatenate([pool.mean_logprob_N for pool in pools])),
        verdicts={status.value: statuses[status] for status in VerdictStatus} | {NOT_VERIFIED: statuses[None]},
        prompts_without_verdicts=len(pools) - len(judged),
        coverage="none" if not judged else "all" if all(pool.verified_N.all() for pool in judged) else "some",
    )


def summary_sentences(view: Overview, statistics: PoolStatistics | None, settings: Mapping[str, str]) -> tuple[str, ...]:
    """The result first, then what it was measured on."""
    sentences = [_pools_sentence(view)]
    if statistics is not None:
        sentences += [_solvable_sentence(statistics)]
        sentences += [_efficiency_sentence(name, statistics) for name in FEATURED if name in statistics.orders and statistics.num_solvable]
    sentences += [_length_sentence(view), _verdict_sentence(view), _settings_sentence(settings)]
    return tuple(sentence for sentence in sentences if sentence)


def notes(view: Overview, statistics: PoolStatistics | None, orders: Sequence[str]) -> tuple[str, ...]:
    """What is missing, and what to be careful with."""
    found = []
    absent = [order for order in ORDERS if order not in orders]
    if absent:
        found.append(f"Not in this table: the order{'s' if len(absent) > 1 else ''} {', '.join(absent)}.")
    if view.coverage != "none" and view.prompts_without_verdicts:
        found.append(f"{_count(view.prompts_without_verdicts, 'prompt')} without any verdict left out of every statistic of verdicts.")
    if statistics is not None and statistics.num_prompts == 1:
        found.append("One prompt leaves no intervals: they are over prompts.")
    elif statistics is not None and statistics.num_prompts < ROUGH_BELOW:
        found.append(f"Intervals over {statistics.num_prompts} prompts are rough, and somewhat too short.")
    if statistics is not None and view.largest_pool == 1:
        found.append("Pools of one candidate have nothing to order.")
    return tuple(found)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= (
            flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": visible_text(str(value), TEXT_LIMIT)}
        )
    return flat


def interval_text(estimate: Estimate, digits: int = 2) -> str:
    """`1.80 (95 % interval 1.20 to 2.40)`, or the number alone."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} (95 % interval {estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _pools_sentence(view: Overview) -> str:
    same = view.smallest_pool == view.largest_pool
    size = f"{view.largest_pool}" if same else f"{view.smallest_pool} to {view.largest_pool}"
    noun = "candidate" if same and view.largest_pool == 1 else "candidates"
    return f"{_count(view.num_prompts, 'prompt')} of {', '.join(view.tasks)}, {size} {noun} each: {view.num_candidates} in all."


def _solvable_sentence(statistics: PoolStatistics) -> str:
    solvable, total = statistics.num_solvable, statistics.num_prompts
    if statistics.random_pass_at_k is None:
        return (
            f"Only some candidates were verified, and a correct one was found for {solvable} of {total} prompts. pass@k is known as far as "
            "an order's first candidates were verified. What random choice would have found is not known: that needs a verdict on every "
            "candidate of a pool."
        )
    rate = statistics.random_pass_at_k.at(1)
    assert rate is not None  # every curve of a whole pool starts at 1
    rest = "" if solvable else ", so that no order can be better than another"
    found = f"{solvable} of {total} prompts have a correct candidate{rest}"
    return f"{found}; pass@1, the share of correct candidates, is {interval_text(rate, 3)}."


def _efficiency_sentence(name: str, statistics: PoolStatistics) -> str:
    order, random = statistics.orders[name], statistics.random_first_correct
    if order.first_correct is None or order.efficiency is None or random is None:
        return ""
    return (
        f"{label_of(name)}: {order.first_correct.value:.1f} verifications to the first correct answer, mean of "
        f"{_count(statistics.num_solvable, 'solvable prompt')}; random choice {random.value:.1f}. Efficiency "
        f"{interval_text(order.efficiency)}: {_judgement(order.efficiency)}."
    )


def _judgement(efficiency: Estimate) -> str:
    if efficiency.low is None or efficiency.high is None:
        return "of one prompt"
    if efficiency.low > 1:
        return "fewer verifications than random choice"
    return "more verifications than random choice" if efficiency.high < 1 else "no difference from random choice is shown"


def _length_sentence(view: Overview) -> str:
    return f"Candidates have {view.mean_tokens:.0f} tokens on average; {100 * view.truncated_share:.1f} % were cut off at the limit."


def _verdict_sentence(view: Overview) -> str:
    if view.coverage == "none":
        return "No candidate was verified: there is no pass@k, and what follows needs no verdicts."
    total = view.num_candidates
    parts = [f"{count} {status} ({100 * count / total:.1f} %)" for status, count in view.verdicts.items() if count]
    unscored = view.verdicts[VerdictStatus.TIMEOUT] + view.verdicts[VerdictStatus.ERROR]
    rest = f" Timeouts and errors ({unscored}) could not be scored and count as not correct." if unscored else ""
    return f"Verdicts: {', '.join(parts)}.{rest}"


def _settings_sentence(settings: Mapping[str, str]) -> str:
    named = [f"{key} {value}" for key, value in settings.items() if any(f"{key}.".startswith(f"{name}.") for name in NAMED_SETTINGS)]
    return f"Settings: {', '.join(named)}." if named else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
