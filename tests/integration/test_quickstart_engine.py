"""The quick start in small: the real engine and the embedded model through `python -m jobs.train`, resume, load."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.processes import REPOSITORY, Training, metrics_of

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(600)]

QUICKSTART = REPOSITORY / "configs" / "quickstart.toml"


def test_quick_start_trains_resumes_and_its_policy_loads(tmp_path):
    run_dir = tmp_path / "run"
    with Training(QUICKSTART, run_dir, "--set", "steps=2") as training:
        assert training.exit_code(timeout_s=300) == 0, training.output()
        training.assert_no_process_left()
    first = metrics_of(run_dir)
    assert [record["step"] for record in first] == [1, 2]

    with Training(QUICKSTART, run_dir, "--set", "steps=3") as training:
        assert training.exit_code(timeout_s=250) == 0, training.output()
        training.assert_no_process_left()
    records = metrics_of(run_dir)
    assert records[:2] == first
    assert [record["step"] for record in records] == [1, 2, 3]

    # Step 1 was sampled by the very weights that were trained: what differs is arithmetic, engine against learner.
    assert records[0]["policy/lag_max"] == 0
    assert records[0]["mismatch_lag0/mean"] < 0.08
    assert records[0]["mismatch_lag0/outside_band"] < 0.3
    assert all(record["mismatch/mean"] < 0.2 for record in records)
    assert all(record["policy/lag_max"] <= 1 for record in records)

    assert_policy_loads_and_answers(run_dir / "policy")


def assert_policy_loads_and_answers(directory) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": "What is 2 + 2? Answer with the number only."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
