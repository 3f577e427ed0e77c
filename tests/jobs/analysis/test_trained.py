import pytest

from jobs.analysis.trained import mean_over_seeds, trained_run


def records(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "reward/pass@1": v, "tokens/generated": 100.0 * step, "time/step_s": 2.0} for step, v in enumerate(values, 1)]


def test_a_run_spent_its_tokens_and_the_seconds_of_its_steps():
    run = trained_run(records(0.1, 0.2, 0.3), name="a", method="grpo", seed=1)
    assert (run.steps, run.tokens, run.seconds) == (3, 300.0, 6.0)
    assert run.metrics["reward/pass@1"] == (0.1, 0.2, 0.3)
    assert run.metrics["policy/entropy"] == (None, None, None)
    assert trained_run([], name="a", method="grpo", seed=1).tokens == 0.0


def test_a_learning_curve_is_a_mean_over_seeds_and_the_last_steps():
    runs = [trained_run(records(*values), name="a", method="grpo", seed=0) for values in ((0.0, 1.0, 0.5), (1.0, 1.0))]
    assert mean_over_seeds(runs, "reward/pass@1") == pytest.approx([0.5, 0.75])
    assert mean_over_seeds(runs, "policy/entropy") == [None, None]
    assert mean_over_seeds([], "reward/pass@1") == []
