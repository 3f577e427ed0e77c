"""What an exploration report says in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bonus.config import ORDER_NAMES
from buffers.records import VerdictStatus
from jobs.analysis.bootstrap import Estimate
from jobs.analysis.candidate_table import FEATURED, RANDOM, Candidates, label_of
from jobs.analysis.order_statistics import ExploreStatistics
from jobs.analysis.picks import mean_of_known
from jobs.analysis.recommended_order import Recommended
from jobs.reports.text import NAME_LIMIT, count, interval_sentence, notes_on_intervals, visible_text

NOT_VERIFIED = "not verified"
FEW_PROMPTS = 10
"""Below this many solvable prompts an interval leaves out 1 by chance too often: for a random order in 14 % of tables
of 5 prompts, and in half of those of 2."""
NAMED_SETTINGS = (
    *("model", "task.name", "split", "seed", "sampling.temperature"),
    *("features", "encoder.layer", "encoder.pooling", "selection"),
)

Coverage = Literal["all", "some", "none"]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The candidates as they are, orders aside. Means are over candidates."""

    tasks: tuple[str, ...]
    num_prompts: int
    num_candidates: int
    smallest_pool: int
    largest_pool: int
    mean_tokens: float
    truncated_share: float
    mean_logprob: float | None
    verdicts: Mapping[str, int]
    """The number of candidates by status, `not verified` among them."""
    prompts_without_verdicts: int
    coverage: Coverage
    """Whether all or some candidates were verified of the prompts that have any verdict."""


def overview(problems: Sequence[Candidates]) -> Overview:
    """Return the overview of the candidates of all `problems`."""
    statuses = Counter(status for candidates in problems for status in candidates.statuses)
    sizes = [candidates.size for candidates in problems]
    judged = [candidates for candidates in problems if candidates.verified_N.any()]
    return Overview(
        tasks=tuple(dict.fromkeys(visible_text(candidates.task, NAME_LIMIT) for candidates in problems)),
        num_prompts=len(problems),
        num_candidates=sum(sizes),
        smallest_pool=min(sizes),
        largest_pool=max(sizes),
        mean_tokens=float(np.concatenate([candidates.num_tokens_N for candidates in problems]).mean()),
        truncated_share=float(np.concatenate([candidates.truncated_N for candidates in problems]).mean()),
        mean_logprob=mean_of_known(np.concatenate([candidates.mean_logprob_N for candidates in problems])),
        verdicts={status.value: statuses[status] for status in VerdictStatus} | {NOT_VERIFIED: statuses[None]},
        prompts_without_verdicts=len(problems) - len(judged),
        coverage="none" if not judged else "all" if all(candidates.verified_N.all() for candidates in judged) else "some",
    )


def summary_sentences(
    view: Overview, statistics: ExploreStatistics | None, recommended: Recommended | None, settings: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the result first, then what it was measured on."""
    sentences = [_candidates_sentence(view)]
    length = f"Candidates have {view.mean_tokens:.0f} tokens on average; {100 * view.truncated_share:.1f} % were cut off at the limit."
    if statistics is not None:
        sentences += [_solvable_sentence(statistics), _recommendation_sentence(recommended, statistics)]
        sentences += [_efficiency_sentence(name, statistics) for name in FEATURED if name in statistics.orders and statistics.num_solvable]
    sentences += [length, _verdict_sentence(view), _settings_sentence(settings)]
    return tuple(sentence for sentence in sentences if sentence)


def notes(view: Overview, statistics: ExploreStatistics | None, orders: Sequence[str]) -> tuple[str, ...]:
    """Return what is missing, and what to be careful with."""
    found = []
    absent = [order for order in ORDER_NAMES if order not in orders]
    if absent:
        found.append(f"Not in this table: the order{'s' if len(absent) > 1 else ''} {', '.join(absent)}.")
    if view.coverage != "none" and view.prompts_without_verdicts:
        found.append(f"{count(view.prompts_without_verdicts, 'prompt')} without any verdict left out of every statistic of verdicts.")
    if statistics is not None:
        found += notes_on_intervals(statistics.num_prompts, "prompt")
        if 1 <= statistics.num_solvable < statistics.num_prompts:  # what verifications to the first correct one are means of
            found += notes_on_intervals(statistics.num_solvable, "solvable prompt")
    if statistics is not None and view.largest_pool == 1:
        found.append("Pools of one candidate have nothing to order.")
    return tuple(found)


def _candidates_sentence(view: Overview) -> str:
    same = view.smallest_pool == view.largest_pool
    size = f"{view.largest_pool}" if same else f"{view.smallest_pool} to {view.largest_pool}"
    noun = "candidate" if same and view.largest_pool == 1 else "candidates"
    return f"{count(view.num_prompts, 'prompt')} of {', '.join(view.tasks)}, {size} {noun} each: {view.num_candidates} in all."


def _solvable_sentence(statistics: ExploreStatistics) -> str:
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
    return f"{found}; pass@1, the share of correct candidates, is {interval_sentence(rate, 3)}."


def _recommendation_sentence(recommended: Recommended | None, statistics: ExploreStatistics) -> str:
    if recommended is None or statistics.random_first_correct is None:
        return ""
    others = ", ".join(label_of(order) for order in recommended.not_worse)
    rest = f"; not told from it: {others}" if others else ", and every other order is worse"
    needs = (
        f"{label_of(recommended.order)}, with {interval_sentence(recommended.first_correct, 1)} verifications to the first correct answer"
    )
    if recommended.better_than_random:
        return f"Which order to use: {needs}, where random choice needs {statistics.random_first_correct.value:.1f}{rest}."
    if recommended.order == RANDOM and not others:
        return f"Which order to use: {needs}{rest}."
    return f"Which order to use: none is shown to be better than random choice. The best was {needs}{rest}."


def _efficiency_sentence(name: str, statistics: ExploreStatistics) -> str:
    order, random = statistics.orders[name], statistics.random_first_correct
    if order.first_correct is None or order.efficiency is None or random is None:
        return ""
    return (
        f"{label_of(name)}: {order.first_correct.value:.1f} verifications to the first correct answer, mean of "
        f"{count(statistics.num_solvable, 'solvable prompt')}; random choice {random.value:.1f}. Efficiency "
        f"{interval_sentence(order.efficiency)}: {_judgement(order.efficiency, statistics.num_solvable)}."
    )


def _judgement(efficiency: Estimate, num_solvable: int) -> str:
    if efficiency.low is None or efficiency.high is None:
        return "of one prompt"
    if num_solvable < FEW_PROMPTS:
        return "too few prompts to compare it with random choice"
    if efficiency.low > 1:
        return "fewer verifications than random choice"
    return "more verifications than random choice" if efficiency.high < 1 else "no difference from random choice is shown"


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
