"""How unlike the others of its group a response is, as a bonus. Legend: G groups, K responses, D projected size."""

from typing import Any

import torch
from torch import Tensor

from bonus.base import Scores, StepRows
from bonus.config import BonusConfig
from bonus.elliptical import check_features
from bonus.kinds import KINDS
from bonus.shaping import shaped_for


def similarities(features_GKD: Tensor, valid_GK: Tensor) -> Tensor:
    """Return the cosine of each two responses of a group, G x K x K, clipped to [0, 1]; 0 with a feature of zeros.
    Raises ValueError as `bonus.elliptical.check_features`."""
    check_features(features_GKD, valid_GK)
    features_GKD = torch.where(valid_GK[:, :, None], features_GKD, 0.0).double()
    norm_GK1 = torch.linalg.vector_norm(features_GKD, dim=2, keepdim=True)
    unit_GKD = features_GKD / torch.where(norm_GK1 > 0, norm_GK1, 1.0)
    return (unit_GKD @ unit_GKD.mT).clamp(0.0, 1.0)


def novelty(similarity_GKK: Tensor, correct_GK: Tensor, valid_GK: Tensor, *, mean_share: float) -> Tensor:
    """Return 1 - (mean_share * mean + (1 - mean_share) * max): the mean over the others of the response's class, or of
    the group where it is alone in its class, and the maximum over the others of the group. It is 0 for an empty
    response, and where there is no other."""
    others_GKK = valid_GK[:, None, :] & valid_GK[:, :, None] & ~torch.eye(valid_GK.shape[1], dtype=torch.bool, device=valid_GK.device)
    class_GKK = others_GKK & (correct_GK[:, None, :] == correct_GK[:, :, None])
    compared_GKK = torch.where(class_GKK.any(dim=2, keepdim=True), class_GKK, others_GKK)
    mean_GK = torch.where(compared_GKK, similarity_GKK, 0.0).sum(dim=2) / compared_GKK.sum(dim=2).clamp(min=1)
    max_GK = torch.where(others_GKK, similarity_GKK, 0.0).amax(dim=2)
    return torch.where(others_GKK.any(dim=2), 1.0 - (mean_share * mean_GK + (1.0 - mean_share) * max_GK), 0.0)


class CosineBonus:
    """One less the similarity to the group's other responses (EVOL-RL, arXiv:2509.15194; ExTra, arXiv:2606.24994):

        b_i = 1 - (a * mean of s_ij over the others of i's class + (1 - a) * max of s_ij over all others),    a = 0.5

    s is the cosine, clipped to [0, 1]; the classes are correct and wrong. This is EVOL-RL's novelty score as its
    published code computes it, where we read it. That code embeds the text with a model of its own, rescales the score
    to [0, 1] in each class, and maps it to rewards in [0.5, 1] or [-1, -0.5]. Ours are the frozen projected hidden
    states, uncentered, and no rescaling: these cosines lie close together, so look at `bonus/similarity` and consider
    normalise = "zscore". Of ExTra only the abstract was read: it rewards diverse correct responses, which is
    gate = "correct_only"."""

    needs = KINDS["cosine"]

    def __init__(self, config: BonusConfig) -> None:
        self._config = config

    def init_state(self) -> dict[str, Any]:
        return {}

    def score(self, step: StepRows, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        assert step.features_GKD is not None, "cosine needs features"
        similarity_GKK = similarities(step.features_GKD, step.valid_GK)
        novelty_GK = novelty(similarity_GKK, step.correct_GK, step.valid_GK, mean_share=self._config.cosine.mean_share)
        bonus_GK = shaped_for(step, novelty_GK, self._config)
        compared = step.valid_GK & (step.valid_GK.sum(dim=1, keepdim=True) > 1)
        metrics = {"similarity": float(1.0 - novelty_GK[compared].mean())} if compared.any() else {}
        return Scores(bonus_GK=bonus_GK, metrics=metrics, detail={"novelty": novelty_GK}), state
