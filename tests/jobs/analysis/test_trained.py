import pytest

from jobs.analysis.trained import ONLINE, mean_over_seeds, online_statistics, trained_run


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


def online_run(method: str, seed: int, *values: float):
    """A run whose pass@1, pass@K and entropy in every step are a value, twice it and three times it."""
    factors = list(enumerate(ONLINE.values(), 1))
    rows = [{"step": step} | {metric: factor * value for factor, metric in factors} for step, value in enumerate(values, 1)]
    return trained_run(rows, name=f"{method}-{seed}", method=method, seed=seed)


def test_online_numbers_are_means_over_the_second_half_of_the_steps_and_the_runs():
    """0.4 and 0.6 of two runs with steps to spare; a run that is not there yet does not count."""
    runs = [
        online_run("grpo", 0, 0.0, 0.0, 0.3, 0.5, 9.0),
        online_run("grpo", 1, 0.0, 0.0, 0.6, 0.6),
        online_run("grpo", 2, 9.0, 9.0, 9.0),
        online_run("other", 0, 0.0, 0.0, 0.7, 0.9),
        online_run("later", 0, 0.0),
    ]
    found = online_statistics(runs, "grpo", steps=4, num_resamples=400)
    assert list(found) == ["grpo", "other"]
    assert (found["grpo"].num_runs, found["grpo"].differences) == (2, {})
    assert [found["grpo"].means[name].value for name in ONLINE] == pytest.approx([0.5, 1.0, 1.5])
    assert found["other"].differences["pass@1"].value == pytest.approx(0.3)
    one = found["other"].differences["entropy"]
    assert one.low < 0 < one.high, "one degree of freedom: two runs of grpo that differ by 0.2"


def test_without_two_runs_of_a_method_online_numbers_have_no_intervals_and_without_a_baseline_no_differences():
    found = online_statistics([online_run("a", 0, 0.2), online_run("b", 0, 0.4)], "a", steps=1)
    assert found["b"].differences["pass@1"].low is None
    assert online_statistics([online_run("b", 0, 0.4)], "a", steps=1)["b"].differences == {}
    assert online_statistics([trained_run(records(0.1), name="a", method="a", seed=0)], "a", steps=1) == {}, "without an entropy"
    assert online_statistics([], "a", steps=0) == {}


def test_steps_are_those_of_the_records_where_a_file_has_forgotten_its_first_ones():
    kept = records(*(step / 10 for step in range(1, 9)))[4:]  # of 8 steps, 1 to 4 are forgotten
    run = trained_run(kept, name="a", method="grpo", seed=0)
    assert run.steps == 8 and run.metrics["reward/pass@1"] == (None,) * 4 + (0.5, 0.6, 0.7, 0.8)
