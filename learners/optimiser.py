"""AdamW on float32 master weights under a model that computes in bfloat16.

    optimiser = MasterAdamW(model.named_parameters(), config)
    for micro_batch in batch:
        loss(micro_batch).backward()      # hooks move each gradient into its float32 sum and free it
    grad_norm = optimiser.step()          # clip, AdamW on the masters, copy back into the model

bfloat16 has 8 bits of precision, so a step of 1e-5 on a weight of 0.1 would round to nothing. The masters keep it. The
model's own bfloat16 weights are cast once a step, not once a micro-batch as autocast would, and they are published as
they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from learners.config import OptimiserConfig
from learners.sharding import full_tensor, shard_of

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def share_of_rate(step: int, *, total_steps: int, decay_steps: int) -> float:
    """Return the share of the learning rate that step `step` (from 0) of a run of `total_steps` has. Over the last
    `decay_steps` it falls linearly, and would be 0 in the step after the last: the trapezoid of arXiv:2405.18392, which
    needs no plan for the steps before. More steps than the run has are all of it. It is 1 in a step beyond the total,
    and without decay."""
    left = total_steps - step
    return min(1.0, left / (min(decay_steps, total_steps) + 1)) if decay_steps and left > 0 else 1.0


class MasterAdamW:
    """AdamW with linear warm-up, decay, and clipping by the full gradient's norm. Parameters of float32 or wider are
    their own masters. If they are the shards of a rank (`learners.fsdp`), masters, gradients and moments are shards
    too."""

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], config: OptimiserConfig) -> None:
        self._config = config
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        self._names = [name for name, _ in trained]
        self._parameters = [parameter for _, parameter in trained]
        self._masters = [self._master(parameter) for parameter in self._parameters]
        self._hooks = [self._accumulate_in_master(p, m) for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        decayed = [master for master in self._masters if master.ndim >= 2]
        others = [master for master in self._masters if master.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True)
        self.num_steps = 0
        self.last_learning_rate = 0.0
        """That of the last step since this object was made."""

    @staticmethod
    def _master(parameter: Parameter) -> Parameter:
        is_wide = torch.promote_types(parameter.dtype, torch.float32) == parameter.dtype
        return parameter if is_wide else Parameter(parameter.detach().to(torch.float32))

    @staticmethod
    def _accumulate_in_master(parameter: Parameter, master: Parameter) -> Any:
        def move_gradient(_: Tensor) -> None:
            if parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.to(master.dtype)
                else:
                    master.grad.add_(parameter.grad)
                parameter.grad = None

        return parameter.register_post_accumulate_grad_hook(move_gradient)

    def learning_rate(self, share: float = 1.0) -> float:
        """Return the learning rate of the next step, of which a decay leaves `share`."""
        warmup = self._config.warmup_steps
        return share * self._config.lr * (min(1.0, (self.num_steps + 1) / warmup) if warmup else 1.0)

    @torch.no_grad()
    def step(self, share: float = 1.0) -> float | None:
        """Apply the summed gradients with `share` of the learning rate (`share_of_rate`), and clear them. Returns the
        gradient's global norm before clipping. Without any gradient (no group had signal) it takes no step and returns
        None; weights and moments stay as they are. Raises FloatingPointError on a gradient that is not finite, with
        nothing applied."""
        gradients = [master.grad for master in self._masters if master.grad is not None]
        if not gradients:
            return None
        norm = float(full_tensor(torch.nn.utils.get_total_norm(gradients)))
        if not norm < float("inf"):  # also for NaN
            self.clear()
            raise FloatingPointError(f"the gradient norm of optimiser step {self.num_steps + 1} is {norm}; nothing was applied")
        torch.nn.utils.clip_grads_with_norm_(self._masters, self._config.max_grad_norm, torch.tensor(norm))
        self.last_learning_rate = self.learning_rate(share)
        for group in self._adamw.param_groups:
            group["lr"] = self.last_learning_rate
        self._adamw.step()
        self.clear()
        self._copy_back()
        self.num_steps += 1
        return norm

    def clear(self) -> None:
        for parameter in (*self._masters, *self._parameters):
            parameter.grad = None

    def _copy_back(self) -> None:
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is not master:
                parameter.data.copy_(master)

    def state_dict(self) -> dict[str, Tensor]:
        """Return masters, moments and step counts by `kind/parameter name`: references; shards if parameters are."""
        state = {"num_steps": torch.tensor(self.num_steps)}
        for name, master in zip(self._names, self._masters, strict=True):
            state[f"master/{name}"] = master.detach()
            state |= {f"{kind}/{name}": value for kind, value in self._adamw.state.get(master, {}).items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore masters, moments, counts and model from full tensors. Raises KeyError on a missing master."""
        for name, master in zip(self._names, self._masters, strict=True):
            master.copy_(shard_of(state[f"master/{name}"], master))
            saved = {kind: state[f"{kind}/{name}"] for kind in _MOMENTS if f"{kind}/{name}" in state}
            self._adamw.state[master] = {kind: shard_of(value, master).to(master.device, copy=True) for kind, value in saved.items()}
        self.num_steps = int(state["num_steps"])
        self._copy_back()
