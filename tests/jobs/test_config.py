"""What `python -m jobs.train` does with its input: a bad one is exit code 2 and one line that names the key and the
correction."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from jobs import train
from jobs.config import CHANGEABLE_ON_RESUME, RunConfig, load_config
from jobs.configuration.files import LABEL, all_keys, changed_keys, labelled_section_of, section_of
from jobs.configuration.toml_text import toml_text
from jobs.configuration.user_error import UserError
from jobs.evaluation_config import CHANGEABLE_BETWEEN_STARTS as EVALUATE_CHANGEABLE
from jobs.evaluation_config import EvaluateConfig
from jobs.explore_config import CHANGEABLE_BETWEEN_STARTS as EXPLORE_CHANGEABLE
from jobs.explore_config import ExploreConfig

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.toml")


PLACED = ("rollout", "encoder", "scorer", "verifier")


@pytest.fixture(autouse=True)
def _environment_is_put_back():
    with patch.dict(os.environ):
        yield


@pytest.fixture
def config_file(tmp_path, tiny_model) -> str:
    """A good configuration of a run in `tmp_path/run` on the tiny model."""
    file = tmp_path / "run.toml"
    file.write_text(f'run_dir = "{tmp_path / "run"}"\nmodel = "{tiny_model}"\n[rollout]\nengine = "transformers"\n')
    return str(file)


@pytest.fixture
def refusal(capsys, monkeypatch):
    """Start a run that must be refused; returns the one line on stderr."""
    monkeypatch.setattr(train, "available_memory_gib", lambda: 1000.0)

    def start(*arguments: str) -> str:
        capsys.readouterr()
        assert train.main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return start


def test_the_quick_start_is_a_valid_configuration():
    config = load_config(QUICKSTART)
    assert (config.prompts_per_step, config.responses_per_prompt, config.max_policy_lag) == (8, 8, 1)
    assert config.learner.loss.correction == "truncated_is"


def test_overrides_take_toml_values_and_bare_strings(config_file):
    overrides = ["learner.lr=1e-5", "bonus.enabled=false", "learner.betas=[0.8, 0.9]", "run_dir=some/dir", 'bonus.ridge="auto"']
    config = load_config(config_file, overrides)
    assert config.learner.lr == 1e-5
    assert config.bonus.enabled is False
    assert config.learner.betas == (0.8, 0.9)
    assert config.run_dir == "some/dir"
    assert config.bonus.ridge == "auto"
    assert config.rollout.engine == "transformers"  # what the file says stays


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("learner.lrr=1", ["'learner.lrr'", "did you mean 'learner.lr'?"]),
        ("promts_per_step=1", ["'promts_per_step'", "did you mean 'prompts_per_step'?"]),
        ("bonus.ridgee=1", ["'bonus.ridgee'", "did you mean 'bonus.ridge'?"]),
        ("lr=1", ["'lr'", "did you mean 'learner.lr'?"]),
        ("lerner.lr=1", ["'lerner'", "did you mean 'learner'?"]),
        ("learner.loss.clip_hi=1", ["'learner.loss.clip_hi'", "did you mean 'learner.loss.clip_high'?"]),
        ("bonus.zzzzzz=1", ["'bonus.zzzzzz'", "known here: enabled, kind, options, terms, dim"]),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(refusal, config_file, override, named):
    line = refusal(config_file, "--set", override)
    assert all(part in line for part in ["unknown key", *named]), line


def test_unknown_key_of_the_file_is_refused_too(refusal, tmp_path):
    file = tmp_path / "typo.toml"
    file.write_text("[learner.advantage]\nbetta = 0.1\n")
    line = refusal(str(file))
    assert str(file) in line
    assert "'learner.advantage.betta'; did you mean 'learner.advantage.beta'?" in line


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("steps=many", ["steps = 'many'", "integer"]),
        ("steps=2.5", ["steps = 2.5", "integer"]),
        ("steps=0", ["steps = 0", "greater than or equal to 1"]),
        ("learner.lr=-1", ["learner.lr = -1", "greater than 0"]),
        ("learner=5", ["learner = 5", "dictionary"]),
        ("bonus.gate=sometimes", ["bonus.gate = 'sometimes'", "'group_has_correct'"]),
        ("bonus.ridge=-1", ["bonus.ridge = -1"]),
        ("rollout.engine=sglang", ["rollout.engine = 'sglang'", "known: vllm, vllm-async, transformers, prefix-tree; or an import path"]),
        ("rollout.threads=all", ["rollout.threads = 'all'", "a valid integer", "; or input should be 'auto'"]),
        ("bonus.ridge=0", ["bonus.ridge = 0: input should be greater than 0; or input should be 'auto'"]),
        ("rollout.placement.resources={disk=0}", ["rollout.placement.resources.disk = 0", "greater than 0"]),
        (
            "rollout.placement.resources={GPU=1}",
            ["rollout.placement.resources", "no resource of your own can be GPU: num_gpus says how many"],
        ),
        ("learner.placement.accelerator=L4", ["unknown key 'learner.placement.accelerator'", "'learner.placement.accelerator_type'"]),
        ("wait_timeout_s=inf", ["wait_timeout_s = inf", "finite"]),
        ("learner.lr=nan", ["learner.lr = nan", "finite"]),
        ("responses_per_prompt=1", ["responses_per_prompt = 1", "greater than or equal to 2"]),
        ("learner.lr", ["--set 'learner.lr'", "key=value"]),
        ("=3", ["--set '=3'", "key=value"]),
        ("model.name=x", ["--set model.name", "model is a value, not a section"]),
    ],
)
def test_wrong_value_is_refused_by_name(refusal, config_file, override, named):
    line = refusal(config_file, "--set", override)
    assert all(part in line for part in named), line


@pytest.mark.parametrize("root", [RunConfig, EvaluateConfig, ExploreConfig])
def test_no_number_of_any_section_may_be_infinite(root):
    sections = [root]
    for section in sections:
        assert section.model_config.get("allow_inf_nan") is False, section
        for field in section.model_fields.values():
            found = section_of(field.annotation) or labelled_section_of(field.annotation)
            sections += [found] if found is not None and found not in sections else []
    assert len(sections) > 5


GPU_ENGINE = ("rollout.engine=vllm-async", "rollout.num_gpus=0.5")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["learner.loss.correction=none"], ["max_policy_lag = 1", 'learner.loss.correction = "none"', "truncated_is"]),
        (["learner.mini_batches=9"], ["learner.mini_batches = 9", "prompts_per_step = 8"]),
        (["sampling.top_p=0.9"], ["sampling.top_p = 0.9", "top_p = 1.0"]),
        (["sampling.top_k=20"], ["sampling.top_k = 20", "top_k = 0"]),
        (["rollout.max_sequences=7"], ["rollout.max_sequences = 7", "responses_per_prompt = 8"]),
        (["bonus.redraw_projection=true", "bonus.memory=run"], ["redraw_projection=True", "memory='run'"]),
        (["replay.sampler=mine:Sampler", "deterministic=true"], ["deterministic = true", 'replay.sampler = "mine:Sampler"', "fixed order"]),
        (["replay.sampler=mine:Sampler", "max_policy_lag=0"], ["max_policy_lag = 0", 'replay.sampler = "mine:Sampler"', "fixed order"]),
        (["bonus.kind=eliptical"], ["bonus.kind", "'eliptical'", "did you mean 'elliptical'"]),
        (["replay.sampler=newest"], ["replay.sampler", "'newest'", "oldest"]),
        (["bonus.options.scale=2"], ["bonus.options", 'bonus.kind = "elliptical"']),
        (["learner.advantage.alpha=0", "bonus.enabled=false"], ["learner.advantage.alpha = 0", "bonus.enabled = false"]),
        (
            ["rollout.weight_transfer=nccl"],
            ['rollout.weight_transfer = "nccl"', 'rollout.engine = "vllm-async"', 'here "transformers" and 0'],
        ),
        (["rollout.weight_transfer=ipc", "rollout.engine=vllm-async"], ['"ipc"', "rollout.num_gpus above 0", '"object_store"']),
        (["deterministic=true", "rollout.engine=vllm-async"], ["deterministic = true", '"vllm-async"', 'set the engine to "vllm"']),
        ([*GPU_ENGINE, "rollout.weight_transfer=nccl"], ['"nccl"', "learner.num_gpus = 0", '"object_store"']),
        (
            [*GPU_ENGINE, "rollout.weight_transfer=ipc", "learner.num_gpus=0.5", "rollout.workers=2"],
            ['"ipc"', "one GPU", "learner.num_gpus = 0.5", "2 engine(s) of rollout.num_gpus = 0.5", "make 1.5"],
        ),
        (
            [*GPU_ENGINE, "rollout.weight_transfer=ipc", "learner.num_gpus=0.5", "evaluation.every=1"],
            ["2 engine(s) of rollout.num_gpus = 0.5 (that of evaluations included)"],
        ),
        (["rollout.dtype=float32", "learner.dtype=bfloat16"], ['rollout.dtype = "float32"', 'learner.dtype = "bfloat16"', "bit for bit"]),
        (["learner.ranks=2", "learner.num_gpus=0.5"], ["num_gpus = 0.5", "ranks = 2"]),
        (["task.arithmetic.reverse_min_length=6"], ["reverse_min_length 6", "reverse_max_length 4"]),
    ],
)
def test_contradiction_is_refused_with_both_values(refusal, config_file, overrides, named):
    line = refusal(config_file, *(argument for override in overrides for argument in ("--set", override)))
    assert all(part in line for part in named), line


def test_each_side_of_a_contradiction_is_fine_alone(config_file):
    for overrides in (
        ["learner.loss.correction=none", "max_policy_lag=0"],
        ["learner.mini_batches=8"],
        ["bonus.redraw_projection=true"],
        ["bonus.kind=mine:Bonus", "bonus.options.scale=2", "bonus.options.names=['a']"],
        ["replay.sampler=mine:Sampler", "replay.sampler_options.scale=2"],
        ["deterministic=true", "replay.sampler=oldest"],
        ["bonus.memory=run"],
        ["rollout.max_sequences=8"],
        [*GPU_ENGINE, "rollout.weight_transfer=nccl", "learner.num_gpus=1", "learner.ranks=2"],
        [*GPU_ENGINE, "rollout.weight_transfer=ipc", "learner.num_gpus=0.5"],
        ["deterministic=true", "rollout.engine=vllm"],
        ["rollout.dtype=float32", "learner.dtype=float32"],
        ["rollout.dtype=float32"],
        ["bonus.enabled=false"],
    ):
        load_config(config_file, overrides)


def test_missing_config_file_is_refused_with_those_there_are(refusal, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    line = refusal("configs/quickstrat.toml")
    assert "configs/quickstrat.toml does not exist" in line
    assert "configs/quickstart.toml" in line


def test_invalid_toml_is_refused_with_the_place(refusal, tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("steps = 3\nseed = = 4\n")
    line = refusal(str(file))
    assert f"{file} is not valid TOML" in line
    assert "line 2" in line


def test_file_that_is_no_text_is_refused(refusal, tmp_path):
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe\x00")
    assert f"{file} is not valid TOML" in refusal(str(file))


def test_synchronous_training_with_a_lag_is_refused(refusal, config_file):
    line = refusal(config_file, "--synchronous")
    assert "--synchronous needs max_policy_lag = 0" in line
    assert "has 1" in line


@pytest.mark.parametrize("model", ["/nowhere/model", "smollm3", "./nowhere"])
def test_missing_model_is_refused_by_name(refusal, config_file, model):
    line = refusal(config_file, "--set", f"model={model}")
    assert f"'{model}'" in line
    assert "smollm2-135m" in line


def test_directory_without_a_model_is_refused(refusal, config_file, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refusal(config_file, "--set", f"model={tmp_path / 'empty'}")
    assert f"{tmp_path / 'empty'} has no config.json" in line


def test_too_little_memory_is_refused_before_anything_is_touched(refusal, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "available_memory_gib", lambda: 0.5)
    line = refusal(config_file)
    assert "0.5 GiB are available" in line
    assert "learner.tokens_per_micro_batch" in line
    assert not (tmp_path / "run").exists()


def test_resume_latest_without_a_checkpoint_is_refused(refusal, config_file, tmp_path):
    line = refusal(config_file, "--resume", "latest")
    assert f"{tmp_path / 'run'} has no complete checkpoint" in line


def test_checkpoint_without_a_manifest_does_not_count(refusal, config_file, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step_000003" / "learner").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "has no complete checkpoint" in refusal(config_file, "--resume", "latest")


def test_resume_never_beside_a_checkpoint_is_refused(refusal, config_file, tmp_path):
    begun_run(tmp_path / "run", load_config(config_file))
    line = refusal(config_file, "--resume", "never")
    assert "has a checkpoint of step 3" in line
    assert "--set run_dir=" in line


def test_run_directory_in_use_is_refused_with_its_owner(refusal, config_file, tmp_path):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4242")
        lock.flush()
        line = refusal(config_file)
    assert f"{tmp_path / 'run'} is in use by process 4242" in line
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["run.lock"]


def test_run_directory_of_another_configuration_is_refused_with_what_differs(refusal, config_file, tmp_path):
    begun_run(tmp_path / "run", load_config(config_file, ["seed=5", "learner.lr=3e-3"]))
    before = (tmp_path / "run" / "config.json").read_text()
    line = refusal(config_file)
    assert "another configuration" in line
    assert "learner.lr (0.003 -> 2e-05)" in line
    assert "seed (5 -> 0)" in line
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_metrics_alone_make_a_directory_belong_to_its_run(refusal, config_file, tmp_path):
    begun_run(tmp_path / "run", load_config(config_file, ["seed=5"]), checkpoint=False)
    assert "seed (5 -> 0)" in refusal(config_file)


def test_run_directory_with_foreign_files_is_refused(refusal, config_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear to someone")
    assert f"{tmp_path / 'run'} is not empty and holds no run" in refusal(config_file)
    assert not (tmp_path / "run" / "config.json").exists()


def test_run_directory_with_a_damaged_config_is_refused(refusal, config_file, tmp_path):
    begun_run(tmp_path / "run", load_config(config_file))
    (tmp_path / "run" / "config.json").write_text('{"seed": ')
    assert "config.json is damaged" in refusal(config_file)


def test_run_directory_that_is_a_file_is_refused(refusal, config_file, tmp_path):
    (tmp_path / "run").write_text("not a directory")
    assert f"{tmp_path / 'run'} cannot be used" in refusal(config_file)


def begun_run(directory: Path, config: RunConfig, *, checkpoint: bool = True) -> None:
    """What a run of `config` leaves behind that got to step 3."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    (directory / "metrics.jsonl").write_text('{"step": 3}\n')
    if checkpoint:
        (directory / "checkpoints" / "step_000003").mkdir(parents=True)
        (directory / "checkpoints" / "step_000003" / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "same",
    [
        {"steps": 7},
        {"run_dir": "elsewhere"},
        {"wait_timeout_s": 5.0},
        {"rollout": {"workers": 3}},
        {"verifier": {"num_workers": 2}},
        {"checkpoint": {"every": 1}},
        {"learner": {"threads": 2, "tokens_per_micro_batch": 64}},
        {"learner": {"ranks": 4, "num_gpus": 1, "join_timeout_s": 9.0, "collective_timeout_s": 9.0}},
        {"encoder": {"threads": 2}},
        {name: {"placement": {"accelerator_type": "L4"}} for name in ("rollout", "learner", "encoder", "verifier")},
        {"sampling": {"max_prompt_tokens": 512}},
        {"prompt": {"too_long": "leave_out"}},
    ],
)
def test_how_long_where_and_with_what_means_may_change_on_resume(same):
    assert changed_keys(RunConfig().model_dump(mode="json"), RunConfig.model_validate(same), CHANGEABLE_ON_RESUME) == []


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"model": "x"},
        {"learner": {"lr": 1.0}},
        {"max_policy_lag": 0},
        {"bonus": {"memory": "run"}},
        {"encoder": {"dtype": "float32"}},
        {"replay": {"sampler": "mine:Newest"}},
        {"prompt": {"chat": False}},
        {"prompt": {"template": "{{ messages }}"}},
        {"sampling": {"max_response_tokens": 21}},
    ],
)
def test_what_is_computed_may_not_change_on_resume(other):
    assert len(changed_keys(RunConfig().model_dump(mode="json"), RunConfig.model_validate(other), CHANGEABLE_ON_RESUME)) == 1


def test_changed_keys_name_both_values_and_leave_out_what_may_change():
    saved = RunConfig().model_dump(mode="json")
    config = RunConfig.model_validate({"steps": 7, "run_dir": "elsewhere", "seed": 3, "learner": {"loss": {"is_cap": 4.0}}})
    assert changed_keys(saved, config, CHANGEABLE_ON_RESUME) == ["learner.loss.is_cap (2.0 -> 4.0)", "seed (0 -> 3)"]
    assert changed_keys(saved, RunConfig.model_validate({"steps": 7, "run_dir": "elsewhere"}), CHANGEABLE_ON_RESUME) == []


def test_key_that_a_saved_config_lacks_had_its_default():
    saved = RunConfig().model_dump(mode="json")
    del saved["bonus"]["gate"]
    assert changed_keys(saved, RunConfig(), CHANGEABLE_ON_RESUME) == []
    other = RunConfig.model_validate({"bonus": {"gate": "always"}})
    assert changed_keys(saved, other, CHANGEABLE_ON_RESUME) == ["bonus.gate ('group_has_correct' -> 'always')"]


def test_key_that_no_longer_exists_counts_as_changed():
    saved = RunConfig().model_dump(mode="json") | {"gone": 1}
    assert changed_keys(saved, RunConfig(), CHANGEABLE_ON_RESUME) == ["gone (1 -> None)"]


def test_every_key_can_be_set_to_its_own_default():
    """No key is unreachable by --set: sections, optional and union types included."""
    config = RunConfig()
    for key in all_keys(RunConfig):
        if LABEL in key.split("."):
            continue  # there is no default part
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is None:
            continue  # TOML has no word for it: it is what leaving the key out means
        override = f"{key}={json.dumps(list(value) if isinstance(value, tuple) else value)}"
        assert load_config(QUICKSTART, [override]) is not None, override


MIXTURE = ["task.name=mixture", "task.mixture.parts.arithmetic.weight=2", "task.mixture.parts.hard.name=countdown"]


def test_parts_of_a_mixture_are_set_by_their_labels(config_file):
    mixture = load_config(config_file, [*MIXTURE, "task.mixture.parts.hard.countdown.max_numbers=6"]).task.mixture
    assert {label: (part.name, part.weight) for label, part in mixture.parts.items()} == {
        "arithmetic": ("arithmetic", 2),
        "hard": ("countdown", 1),
    }
    assert mixture.parts["hard"].countdown.max_numbers == 6


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("task.mixture.parts.hard.wieght=1", ["'task.mixture.parts.hard.wieght'", "did you mean 'task.mixture.parts.hard.weight'?"]),
        ("task.mixture.parts.hard.countdown.max_number=6", ["did you mean 'task.mixture.parts.hard.countdown.max_numbers'?"]),
        ("task.mixture.part.hard=1", ["did you mean 'task.mixture.parts'?"]),
        ("max_numbers=6", ["did you mean 'task.countdown.max_numbers'?"]),
    ],
)
def test_unknown_key_of_a_part_is_refused_with_the_nearest_known_one(refusal, config_file, override, named):
    line = refusal(config_file, *(argument for each in (*MIXTURE, override) for argument in ("--set", each)))
    assert all(part in line for part in ["unknown key", *named]), line


def test_part_may_change_on_resume_where_its_task_may(config_file):
    saved = load_config(config_file, [*MIXTURE, "task.mixture.parts.hard.countdown.path=here"])
    there = load_config(config_file, [*MIXTURE, "task.mixture.parts.hard.countdown.path=there"])
    assert changed_keys(saved.model_dump(mode="json"), there, CHANGEABLE_ON_RESUME) == []
    other = load_config(config_file, [*MIXTURE, "task.mixture.parts.hard.weight=2"])
    assert changed_keys(there.model_dump(mode="json"), other, CHANGEABLE_ON_RESUME) == ["task.mixture.parts.hard.weight (1.0 -> 2.0)"]
    more = load_config(config_file, [*MIXTURE, "task.mixture.parts.gsm8k.weight=1"])
    assert "task.mixture.parts.gsm8k.weight (None -> 1.0)" in changed_keys(saved.model_dump(mode="json"), more, CHANGEABLE_ON_RESUME)


def test_key_that_a_saved_part_lacks_had_its_default(config_file):
    config = load_config(config_file, MIXTURE)
    saved = config.model_dump(mode="json")
    del saved["task"]["mixture"]["parts"]["hard"]["countdown"]["held_out_share"]
    assert changed_keys(saved, config, CHANGEABLE_ON_RESUME) == []


def test_dry_run_prints_config_and_plan_and_starts_nothing(config_file, tmp_path):
    code = (
        "import json, sys\nfrom jobs.train import main\n"
        f"status = main([{config_file!r}, '--dry-run', '--set', 'learner.lr=1e-3'])\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    config, end = json.JSONDecoder().raw_decode(done.stdout)
    assert RunConfig.model_validate(config) == load_config(config_file, ["learner.lr=1e-3"])
    plan = done.stdout[end:]
    assert "8 prompts x 8 responses = 64 responses" in plan
    assert all(word in plan for word in ("optimiser step", "in flight: at most 16 groups", "1 rollout worker", "memory: about"))
    assert not {"torch", "ray", "vllm", "transformers"} & set(json.loads(done.stderr))
    assert not (tmp_path / "run").exists()


def test_refusal_is_one_line_from_the_command_line_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", QUICKSTART, "--set", f"run_dir={tmp_path}/run", "--set", "learner.lrr=1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "did you mean 'learner.lr'?" in done.stderr


def test_load_config_raises_its_own_error_only(tmp_path):
    with pytest.raises(UserError):
        load_config(str(tmp_path))


@pytest.mark.parametrize(("kind", "changeable"), [(ExploreConfig, EXPLORE_CHANGEABLE), (EvaluateConfig, EVALUATE_CHANGEABLE)])
def test_a_limit_that_only_refuses_may_change_when_a_job_goes_on(kind, changeable):
    saved = kind().model_dump(mode="json")
    placed = {name: {"placement": {"label_selector": {"zone": "a"}}} for name in kind.model_fields if name in PLACED}
    for free in ({"sampling": {"max_prompt_tokens": 9, "max_response_tokens": 256}}, {"prompt": {"too_long": "leave_out"}}, placed):
        assert changed_keys(saved, kind.model_validate(free), changeable) == []
    for fixed in ({"sampling": {"max_response_tokens": 9}}, {"prompt": {"template": "{{ messages }}"}}):
        assert len(changed_keys(saved, kind.model_validate(fixed), changeable)) == 1


def test_the_text_of_a_template_file_is_part_of_the_configuration(config_file, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    config = load_config(config_file, [f"prompt.template={file}"])
    assert config.prompt.template == "{{ messages[0].content }}"
    again = RunConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config and toml_text(config.model_dump(mode="json")).count("messages[0].content") == 1


def test_a_template_that_cannot_be_used_is_one_line(refusal, config_file, tmp_path):
    assert "prompt.template = 'nowhere.jinja'" in refusal(config_file, "--set", "prompt.template=nowhere.jinja")
    assert "prompt: template contradicts chat = false" in refusal(
        config_file, "--set", "prompt.template={{ messages }}", "--set", "prompt.chat=false"
    )
