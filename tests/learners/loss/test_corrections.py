"""Each correction, worked by hand. Weights are those of tokens whose ratio pi_prox / mu is given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from learners.config import LossConfig
from learners.loss.corrections import CORRECTIONS


def weights(name: str, ratios: list[float], responses: list[int], **settings: Any) -> list[float]:
    config = LossConfig.model_validate({"correction": name, **settings})
    difference_N = torch.tensor(ratios, dtype=torch.float64).log()
    found_N = CORRECTIONS[config.correction](difference_N, torch.tensor(responses), config)
    return found_N.tolist()


RATIOS, RESPONSES = [4.0, 0.25, 2.0, 1.0, 6.0], [0, 0, 1, 1, 2]
"""Products by response: 1, 2, 6; geometric means: 1, √2, 6."""
ROOT = math.sqrt(2)

GOLDEN: list[tuple[str, dict[str, Any], list[float]]] = [
    ("none", {}, [1, 1, 1, 1, 1]),
    ("decoupled", {}, [4, 0.25, 2, 1, 6]),
    ("truncated_is", {"is_cap": 3.0}, [3, 0.25, 2, 1, 3]),
    ("masked_is", {}, [4, 0, 2, 1, 0]),  # IcePop's band, 0.5 to 5
    ("masked_is", {"mask_band": (0.1, 3.0)}, [0, 0.25, 2, 1, 0]),
    ("sequence_truncated_is", {"is_cap": 3.0}, [1, 1, 2, 2, 3]),
    ("sequence_truncated_is", {"is_cap": 3.0, "sequence_ratio": "geometric"}, [1, 1, ROOT, ROOT, 3]),
    ("sequence_masked_is", {}, [1, 1, 2, 2, 0]),  # at most 2
    ("sequence_masked_is", {"mask_band": (0.5, 1.9)}, [1, 1, 0, 0, 0]),
    ("sequence_masked_is", {"sequence_ratio": "geometric"}, [1, 1, 0, 0, 0]),  # 0.98 to 1.02
    ("sequence_masked_is", {"mask_band": (0.5, 1.9), "sequence_ratio": "geometric"}, [1, 1, ROOT, ROOT, 0]),
    # d²/2: 0.961, 0.961 | 0.240, 0 | 1.605;  e^d − 1 − d: 1.614, 0.636 (mean 1.125) | 0.307, 0 (mean 0.153) | 3.208
    ("trust_region_mask", {}, [0, 0, 0, 0, 0]),
    ("trust_region_mask", {"trust_region_max": 0.25, "trust_region_mean": 0.16}, [0, 0, 2, 1, 0]),
    ("trust_region_mask", {"trust_region_max": 0.25, "trust_region_mean": 0.15}, [0, 0, 0, 0, 0]),
    ("trust_region_mask", {"trust_region_max": 0.97, "trust_region_mean": 9.0}, [4, 0.25, 2, 1, 0]),
    ("trust_region_mask", {"trust_region_max": 9.0, "trust_region_mean": 1.13}, [4, 0.25, 2, 1, 0]),
]


@pytest.mark.parametrize(("name", "settings", "expected"), GOLDEN)
def test_worked_by_hand(name: str, settings: dict[str, Any], expected: list[float]) -> None:
    assert weights(name, RATIOS, RESPONSES, **settings) == pytest.approx(expected, rel=1e-12)


def test_every_correction_is_worked_by_hand() -> None:
    assert {name for name, *_ in GOLDEN} == CORRECTIONS.keys()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_where_both_policies_are_one_no_correction_does_anything(name: str) -> None:
    assert weights(name, [1.0] * 4, [0, 0, 1, 2]) == [1.0] * 4


@pytest.mark.parametrize("name", sorted(CORRECTIONS.keys() - {"decoupled"}))
def test_a_ratio_beyond_what_floats_hold_gives_a_finite_weight(name: str) -> None:
    config = LossConfig.model_validate({"correction": name})
    found_N = CORRECTIONS[config.correction](torch.tensor([900.0, -900.0, 0.0]), torch.tensor([0, 1, 2]), config)
    assert found_N.isfinite().all() and found_N[2] == 1
