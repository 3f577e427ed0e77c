"""The memory of each prompt's responses behind memory="prompt", as a value: `(memory, step) -> memory`.

    memory = absorb(memory, keys_G, features_GKD, valid_GK, max_bytes=...)         # the step first,
    centered_GKD, prior_GDD, seen_G = around_prompts(memory, keys_G, features_GKD, valid_GK)   # then its scores

A prompt is known by its key: the data set's name and the problem's id, never a bare row index. Only whole prompts are
forgotten. `forgetting` does not apply: a prompt's responses do not age while other prompts are visited. Legend: G
groups, K responses, D projected size, P prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bonus.covariance import is_finite_and_symmetric
from bonus.elliptical import center


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptStats:
    """Statistics of all responses to one prompt so far, float64. Visits and shards may be added in any order."""

    count: int  # n >= 1, without empty responses
    mean_D: Tensor  # mu
    scatter_DD: Tensor
    """Sum of (h - mu)(h - mu)' = S - n mu mu', S the raw second moment: kept centered, as the difference cancels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptMemory:
    """The prompts of a run; `absorb` bounds their size."""

    dim: int
    stats: Mapping[str, PromptStats] = field(default_factory=dict)  # by key; the least recently used prompt is first
    num_evicted: int = 0
    """Prompts forgotten over the run to make room. One that comes back starts from nothing, and may count again."""


def init_memory(dim: int) -> PromptMemory:
    """Return the memory before the first step."""
    return PromptMemory(dim=dim)


def absorb(memory: PromptMemory, keys_G: Sequence[str], features_GKD: Tensor, valid_GK: Tensor, *, max_bytes: int) -> PromptMemory:
    """Return `memory` with the step's responses added to their prompts: raw features, without empty responses. Several
    groups may share a key; their order does not matter. Then the least recently used prompts, but never this step's,
    are evicted down to `max_bytes` (`nbytes`). Raises ValueError for features that do not fit or are not finite."""
    _check_step(memory, keys_G, features_GKD)
    stats = dict(memory.stats)
    for key, visit in zip(keys_G, _visits(features_GKD, valid_GK), strict=True):
        known = stats.pop(key, None)
        if known is not None and visit is not None:
            stats[key] = merge_stats(known, visit)
        elif (only := known or visit) is not None:
            stats[key] = only
    size, num_evicted = nbytes(replace(memory, stats=stats)), memory.num_evicted
    for key in list(stats):
        if size <= max_bytes or key in keys_G:  # this step's prompts are the most recently used: nothing to evict follows them
            break
        size -= _entry_bytes(key, memory.dim)
        del stats[key]
        num_evicted += 1
    return replace(memory, stats=stats, num_evicted=num_evicted)


def _visits(features_GKD: Tensor, valid_GK: Tensor) -> list[PromptStats | None]:
    centered_GKD = center(features_GKD, valid_GK)
    scatter_GDD = centered_GKD.mT @ centered_GKD
    first_G11 = valid_GK.int().argmax(dim=1)[:, None, None]
    mean_GD = (features_GKD.double() - centered_GKD).take_along_dim(first_G11, dim=1)[:, 0]  # h = mu + x for every response
    return [
        PromptStats(count=count, mean_D=mean_GD[group].clone(), scatter_DD=scatter_GDD[group].clone()) if count else None
        for group, count in enumerate(valid_GK.sum(dim=1).tolist())
    ]


def merge_stats(a: PromptStats, b: PromptStats) -> PromptStats:
    """Return the statistics of both sets of responses (Chan, Golub, LeVeque 1979). With delta = mu_b - mu_a,

    n = n_a + n_b,    mu = mu_a + delta n_b / n,    scatter = scatter_a + scatter_b + delta delta' n_a n_b / n."""
    count = a.count + b.count
    delta_D = b.mean_D - a.mean_D
    return PromptStats(
        count=count,
        mean_D=a.mean_D + delta_D * (b.count / count),
        scatter_DD=a.scatter_DD + b.scatter_DD + torch.outer(delta_D, delta_D) * (a.count * b.count / count),
    )


def around_prompts(memory: PromptMemory, keys_G: Sequence[str], features_GKD: Tensor, valid_GK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an absorbed step's groups as seen from their prompts, for `bonus.elliptical.centered_leverage`, float64:

        centered_GKD    x_i = h_i - mu, 0 for an empty response
        prior_GDD      P = scatter - X'X, the prompt's other responses about the same mu,
                       so that lam*I + P + X'X = lam*I + S - n mu mu'
        seen_G         n, int64: the leverage is at most 1 - 1/n

    This is the authors' persistent branch, bonus_i = (h_i - mu)' (lam*I + S - n mu mu')^-1 (h_i - mu), where mu, S and
    n include this visit. Ours is that a key never belongs to two data sets, and that the memory is exact. A prompt
    without any response gets 0 everywhere."""
    _check_step(memory, keys_G, features_GKD)
    nothing_D = features_GKD.new_zeros(memory.dim, dtype=torch.float64)
    nothing = PromptStats(count=0, mean_D=nothing_D, scatter_DD=torch.outer(nothing_D, nothing_D))
    stats_G = [memory.stats.get(key, nothing) for key in keys_G]
    mean_GD, scatter_GDD = (torch.stack([getattr(stats, name) for stats in stats_G]) for name in ("mean_D", "scatter_DD"))
    centered_GKD = torch.where(valid_GK[:, :, None], features_GKD.double() - mean_GD[:, None], 0.0)
    seen_G = torch.tensor([stats.count for stats in stats_G], device=features_GKD.device)
    return centered_GKD, scatter_GDD - centered_GKD.mT @ centered_GKD, seen_G


def merge(a: PromptMemory, b: PromptMemory) -> PromptMemory:
    """Add two shards. Raises ValueError for memories of different D. The sum equals absorbing both histories, with b's
    prompts the more recently used. The next `absorb` bounds it."""
    if a.dim != b.dim:
        raise ValueError(f"cannot merge memories of D={a.dim} and D={b.dim}")
    stats = {key: known for key, known in a.stats.items() if key not in b.stats}
    stats |= {key: merge_stats(a.stats[key], known) if key in a.stats else known for key, known in b.stats.items()}
    return PromptMemory(dim=a.dim, stats=stats, num_evicted=a.num_evicted + b.num_evicted)


def nbytes(memory: PromptMemory) -> int:
    """Return 8 (D^2 + D + 1) and the bytes of the key for each prompt, without what Python's objects take besides."""
    return sum(_entry_bytes(key, memory.dim) for key in memory.stats)


def _entry_bytes(key: str, dim: int) -> int:
    return 8 * (dim * dim + dim + 1) + len(key.encode())


def state_dict(memory: PromptMemory) -> dict[str, Tensor | int | list[str]]:
    """Return the memory as three tensors (copies, P in the order of `keys`) and JSON values, for a checkpoint."""
    stats_P = list(memory.stats.values())
    empty_DD = torch.zeros(memory.dim, memory.dim, dtype=torch.float64)
    return {
        "dim": memory.dim,
        "keys": list(memory.stats),
        "num_evicted": memory.num_evicted,
        "count_P": torch.tensor([stats.count for stats in stats_P], dtype=torch.int64),
        "mean_PD": _stack([stats.mean_D for stats in stats_P], like=empty_DD[0]),
        "scatter_PDD": _stack([stats.scatter_DD for stats in stats_P], like=empty_DD),
    }


def _stack(tensors: list[Tensor], *, like: Tensor) -> Tensor:
    return torch.stack(tensors) if tensors else like.new_empty(0, *like.shape)


def from_state_dict(saved: Mapping[str, Tensor | int | list[str]]) -> PromptMemory:
    """Invert `state_dict`. Raises ValueError for other keys, parts that do not fit and a memory that is not valid,
    TypeError for a part of the wrong type."""
    if saved.keys() != state_dict(init_memory(1)).keys():
        names = state_dict(init_memory(1)).keys()
        raise ValueError(f"missing {sorted(names - saved.keys())}, unknown {sorted(saved.keys() - names)}")
    dim, num_evicted, keys = saved["dim"], saved["num_evicted"], saved["keys"]
    counts_P, mean_PD, scatter_PDD = saved["count_P"], saved["mean_PD"], saved["scatter_PDD"]
    if not isinstance(counts_P, Tensor) or not isinstance(mean_PD, Tensor) or not isinstance(scatter_PDD, Tensor):
        raise TypeError("count_P, mean_PD and scatter_PDD must be tensors")
    if not isinstance(dim, int) or not isinstance(num_evicted, int) or not isinstance(keys, list):
        raise TypeError("dim and num_evicted must be integers, keys a list")
    if not len(set(keys)) == len(keys) == len(counts_P) == len(mean_PD) == len(scatter_PDD):
        lengths = f"{len(counts_P)} counts, {len(mean_PD)} means, {len(scatter_PDD)} scatters"
        raise ValueError(f"{len(keys)} keys, {len(set(keys))} of them different, do not fit {lengths}")
    stats = {
        key: PromptStats(count=count, mean_D=mean_D.clone(), scatter_DD=scatter_DD.clone())
        for key, count, mean_D, scatter_DD in zip(keys, counts_P.tolist(), mean_PD, scatter_PDD, strict=True)
    }
    memory = PromptMemory(dim=dim, stats=stats, num_evicted=num_evicted)
    check_valid(memory)
    return memory


def check_valid(memory: PromptMemory) -> None:
    """Raise ValueError, naming the prompt, unless each counts a response and has a finite mean and a finite symmetric
    scatter in float64, of the memory's D."""
    if memory.num_evicted < 0:
        raise ValueError(f"num_evicted={memory.num_evicted} must not be negative")
    for key, stats in memory.stats.items():
        mean_D, scatter_DD = stats.mean_D, stats.scatter_DD
        if stats.count < 1:
            raise ValueError(f"prompt {key!r} has {stats.count} responses, a remembered prompt has at least one")
        if mean_D.shape != (memory.dim,) or scatter_DD.shape != (memory.dim, memory.dim):
            raise ValueError(f"prompt {key!r} has shapes {tuple(mean_D.shape)}, {tuple(scatter_DD.shape)}, the memory D={memory.dim}")
        if mean_D.dtype != torch.float64 or scatter_DD.dtype != torch.float64:
            raise ValueError(f"prompt {key!r} is {mean_D.dtype}, {scatter_DD.dtype}, not float64")
        if not mean_D.isfinite().all() or not is_finite_and_symmetric(scatter_DD):
            raise ValueError(f"prompt {key!r} has a mean or a scatter that is not finite, or a scatter that is not symmetric")


def _check_step(memory: PromptMemory, keys_G: Sequence[str], features_GKD: Tensor) -> None:
    if len(keys_G) != len(features_GKD):
        raise ValueError(f"{len(keys_G)} keys for {len(features_GKD)} groups")
    if features_GKD.shape[-1] != memory.dim:
        raise ValueError(f"features have D={features_GKD.shape[-1]}, the memory has D={memory.dim}")
