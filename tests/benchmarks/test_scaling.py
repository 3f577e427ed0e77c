from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from actors.config import RolloutConfig, SamplingConfig
from actors.engine import EngineSetup, Sample, SampleRequest
from actors.engines import require_methods
from benchmarks import scaling
from benchmarks.sleeping import Lengths, SleepingEngine
from buffers.records import FinishReason
from buffers.rollout_log import RolloutLog
from tests.learners.samples import make_group

ENGINE = "benchmarks.sleeping:SleepingEngine"


def started(**options: object) -> SleepingEngine:
    engine = SleepingEngine(kind="fixed", group_size=2, mean_tokens=5, **options)
    setup = EngineSetup(model="", config=RolloutConfig(engine=ENGINE), sampling=SamplingConfig(max_response_tokens=100), seed=0)
    engine.start(setup)
    return engine


def test_a_run_is_measured_and_its_row_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "rows.jsonl"
    arguments = ["--workers", "2", "--lag", "1", "--lanes-per-worker", "2", "--prompts-per-worker", "1", "--time-scale", "0.05"]
    arguments += ["--seconds", "0.5", "--out", str(out)]
    scaling.main(arguments)
    row = json.loads(out.read_text())
    assert (row["workers"], row["lag"], row["late"]) == (2, 1, "mask")
    assert row["steps"] >= scaling.FEWEST_STEPS and row["groups_per_s"] > 0
    for name in ("share_of_ideal", "learner_waits", "lanes_wait", "dropped", "masked", "ks"):
        assert 0 <= row[name] <= 1, name
    assert 0 < row["loop_ms"] < sum(row["cpu_ms"].values())
    assert row["trained_s"] > 0 and row["sampled_s"] > 0
    scaling.main(arguments)
    assert len(out.read_text().splitlines()) == 1
    assert capsys.readouterr().out.count(scaling.line_of(row)) == 2


def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    for wrong in (["--late", "ignore"], ["--lengths", "long"], ["--workers", "two"], ["--token-s", "0"], ["--lengths", "log:nowhere"]):
        with pytest.raises(SystemExit) as ended:
            scaling.main(wrong)
        assert ended.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("python -m benchmarks.scaling: error: ")


def test_the_ideal_is_the_smaller_of_the_learners_and_the_engines_limit():
    def ideal(*arguments: str) -> float | None:
        return scaling.settings_of(scaling.parser().parse_args([*arguments, "--lag", "2"]))[0].ideal

    assert ideal() == 32.0
    assert ideal("--prompts-per-worker", "16") == 64.0
    assert ideal("--time-scale", "0.5") == 64.0
    assert ideal("--time-scale", "0") is None


def test_the_engine_is_one_and_samples_as_long_as_it_should():
    require_methods(RolloutConfig(engine=ENGINE, engine_options={"kind": "fixed", "group_size": 2, "token_s": 0.01}))
    engine = started(token_s=0.001)
    sampled = Sample(token_ids=(1, 1), logprobs=(0.0, 0.0), version_starts=(0,), version_values=(0,), finish_reason=FinishReason.ABORTED)
    engine.add(SampleRequest(key="7:task/a/0/0/0", prompt_ids=[1]))
    engine.add(SampleRequest(key="7:task/a/0/0/1", prompt_ids=[1], sampled=sampled))
    tokens = {"7:task/a/0/0/0": 0, "7:task/a/0/0/1": 2}
    ended = set()
    while len(ended) < 2:
        for new in engine.step():
            tokens[new.key] += len(new.token_ids)
            ended |= {new.key} if new.finish_reason is FinishReason.STOP else set()
    assert set(tokens.values()) == {5}
    assert [(new.key, len(new.token_ids)) for new in all_at_once()] == [("8:task/a/0/0/0", 5)]


def all_at_once() -> list:
    engine = started(token_s=0)
    engine.add(SampleRequest(key="8:task/a/0/0/0", prompt_ids=[1]))
    return engine.step()


def test_lengths_have_their_mean_and_belong_to_their_group(tmp_path: Path):
    lognormal = Lengths(kind="lognormal", group_size=4, mean_tokens=1000)
    drawn = [lognormal.of(str(number)) for number in range(4000)]
    assert all(len(set(group)) == 1 and len(group) == 4 for group in drawn)
    assert np.mean(drawn) == pytest.approx(1000, rel=0.1)
    assert np.std(np.log(drawn)) == pytest.approx(1.0, rel=0.05)
    assert lognormal.of("7") == lognormal.of("7")
    RolloutLog(fs.LocalFileSystem(), str(tmp_path)).append(1, [make_group(0, [4], [[5], [6, 7], [8]], [1.0, 0.0, 0.0])])
    logged = Lengths(kind=f"log:{tmp_path}", group_size=2)
    assert (logged.of("0"), logged.mean_longest) == ([1, 2], 2.0)
    with pytest.raises(ValueError, match="holds no group of 4 responses"):
        Lengths(kind=f"log:{tmp_path}", group_size=4)
