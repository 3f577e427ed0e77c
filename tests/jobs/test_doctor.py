import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import doctor
from jobs.machine import checks, look
from jobs.machine.checks import GIB, Check

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_VERSIONS = {"torch": "2.13.0", "ray": "2.60.0"}


def status_of(check: Check) -> str:
    assert bool(check.fix) == (check.status != "ok"), check
    assert check.found
    return check.status


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "warn")])
def test_python_is_the_one_of_the_lock(version, status):
    assert status_of(checks.check_python(version)) == status


def test_another_platform_than_the_lock_is_pointed_out():
    assert status_of(checks.check_platform("Linux", "x86_64")) == "ok"
    assert status_of(checks.check_platform("Darwin", "arm64")) == "warn"


@pytest.mark.parametrize(("cores", "status"), [(1, "warn"), (1.5, "warn"), (2, "ok"), (64, "ok")])
def test_fewer_than_two_cores_are_pointed_out(cores, status):
    assert status_of(checks.check_cores(cores)) == status


@pytest.mark.parametrize(
    ("total", "available", "status"),
    [(4 * GIB, 4 * GIB, "fail"), (16 * GIB, 8 * GIB, "warn"), (16 * GIB, 12 * GIB, "ok"), (None, None, "warn")],
)
def test_memory_against_the_need_of_the_quick_start(monkeypatch, total, available, status):
    monkeypatch.setattr(checks, "QUICKSTART_MEMORY_GIB", 11)
    assert status_of(checks.check_memory(total, available)) == status


def test_memory_of_a_container_is_its_limit_less_what_it_uses():
    assert checks.within_limit(64 * GIB, 32 * GIB, 8 * GIB, 3 * GIB) == (8 * GIB, 5 * GIB)
    assert checks.within_limit(64 * GIB, 2 * GIB, 8 * GIB, 3 * GIB) == (8 * GIB, 2 * GIB)
    assert checks.within_limit(64 * GIB, 32 * GIB, 128 * GIB, 3 * GIB) == (64 * GIB, 32 * GIB)
    assert checks.within_limit(None, None, 8 * GIB, 0) == (None, None)


def test_a_container_s_memory_counts_for_a_run_without_the_files_that_it_would_give_back(monkeypatch):
    texts = {
        "/proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n",
        "/sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{5 * GIB}\n",
        "/sys/fs/cgroup/memory.stat": f"anon {2 * GIB}\ninactive_file {3 * GIB}\nactive_file 0\n",
    }
    monkeypatch.setattr(look, "read_text", lambda path: texts.get(str(path), ""))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert look.look_at_memory() == (8 * GIB, 6 * GIB) and look.available_memory_gib() == 6.0
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert look.look_at_memory() == (64 * GIB, 32 * GIB)


def test_meminfo_is_read_in_bytes():
    assert checks.parse_meminfo("MemTotal:       1024 kB\nMemFree:  1 kB\nMemAvailable:    512 kB\n") == (2**20, 2**19)
    assert checks.parse_meminfo("") == (None, None)


@pytest.mark.parametrize(("size", "free", "status"), [(None, None, "warn"), (64 * 2**20, 64 * 2**20, "warn"), (8 * GIB, 4 * GIB, "ok")])
def test_small_shared_memory_is_pointed_out(size, free, status):
    assert status_of(checks.check_shm(size, free)) == status


@pytest.mark.parametrize(("free", "status"), [(GIB, "fail"), (5 * GIB, "warn"), (50 * GIB, "ok")])
def test_disk_against_the_size_of_checkpoints(free, status):
    assert status_of(checks.check_disk("disk", "/", free, "free some")) == status


def test_directory_that_cannot_be_written_fails():
    assert status_of(checks.check_writable("runs", None)) == "ok"
    assert status_of(checks.check_writable("runs", "Permission denied")) == "fail"


def test_host_that_forbids_the_sandbox_is_a_warning_with_its_reason():
    assert status_of(checks.check_sandbox(None)) == "ok"
    check = checks.check_sandbox("unshare: Operation not permitted")
    assert (check.status, check.found) == ("warn", "unshare: Operation not permitted") and "docs/sandbox.md" in check.fix


def test_a_home_that_is_not_there_fails_the_checks_of_the_cache(monkeypatch):
    monkeypatch.delenv("REPEXP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-here")
    for check in (look.look_at_model(), look.look_at_cache()):
        assert check.status == "fail" and "~nobody-here" in check.found and "REPEXP_CACHE" in check.fix


def test_write_error_leaves_no_file_behind(tmp_path):
    assert look.write_error(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert look.write_error(tmp_path / "absent") == os.strerror(2)
    assert look.existing_ancestor(tmp_path / "a" / "b") == tmp_path


@pytest.mark.parametrize(
    ("installed", "locked", "status"),
    [(None, "2.13.0", "fail"), ("2.13.0+cpu", "2.13.0", "ok"), ("2.14.0", "2.13.0", "warn"), ("2.14.0", None, "ok")],
)
def test_package_against_the_lock_ignores_the_local_tag(installed, locked, status):
    assert status_of(checks.check_package("torch", installed, locked)) == status


def test_packages_missing_weigh_more_than_packages_that_differ():
    locked = {"a": "1", "b": "2", "c": "3"}
    assert status_of(checks.check_lock({"a": "1", "b": "2", "c": "3", "mine": "9"}, locked)) == "ok"
    assert "b 9" in checks.check_lock({"a": "1", "b": "9", "c": "3"}, locked).found
    assert status_of(checks.check_lock({"a": "1", "b": "9", "c": "3"}, locked)) == "warn"
    assert status_of(checks.check_lock({"a": "1", "b": "9"}, locked)) == "fail"
    assert status_of(checks.check_lock({"a": "1"}, {})) == "warn"


def test_lock_is_read_with_its_comments():
    assert checks.parse_lock("# made by\ntorch==2.13.0\nray==2.60.0 ; sys_platform == 'linux'\n") == FAKE_VERSIONS


def test_lock_of_the_repository_is_exact_and_without_what_breaks_transformers():
    lines = [line for line in look.LOCK_FILE.read_text().splitlines() if not line.startswith("#")]
    locked = checks.parse_lock(look.LOCK_FILE.read_text())
    assert len(locked) == len(lines)
    assert locked["torch"] == "2.13.0"
    assert not {*checks.COMPANIONS, "triton", "llm", "llama-cpp-python"} & set(locked)
    assert set(locked) >= checks.OWN_ROW


def test_torch_that_does_not_import_is_a_failure_with_its_own_words():
    broken = checks.check_torch_import(None, "OSError: libgomp.so.1: cannot open shared object file")
    assert status_of(broken) == "fail"
    assert "libgomp" in broken.found
    assert checks.check_torch_import(None, None).found == "CPU build"
    assert checks.check_torch_import("13.0", None).found == "CUDA 13.0 build"


@pytest.mark.parametrize(
    ("instructions", "has_gpu", "status"), [(["amx_bf16", "avx512_bf16"], False, "ok"), ([], False, "warn"), ([], True, "ok")]
)
def test_bfloat16_without_hardware_is_pointed_out(instructions, has_gpu, status):
    assert status_of(checks.check_bf16(instructions, has_gpu)) == status


@pytest.mark.parametrize(
    ("torch", "companions", "status"),
    [
        ("2.13.0+cpu", {}, "ok"),
        ("2.13.0+cpu", {"torchvision": "0.28.0"}, "fail"),
        ("2.13.0", {"torchvision": "0.28.0", "torchaudio": "2.11.0"}, "ok"),
        ("2.13.0+cpu", {"torchvision": "0.28.0+cpu"}, "ok"),
    ],
)
def test_companions_of_another_build_than_torch_fail(torch, companions, status):
    assert status_of(checks.check_companions(torch, companions)) == status


@pytest.mark.parametrize(
    ("cpu", "gpu", "has_gpu", "status"),
    [
        ("0.32.0", None, False, "ok"),
        (None, "0.32.1", True, "ok"),
        (None, "0.32.1", False, "fail"),
        ("0.32.0", "0.32.0", True, "fail"),
        ("0.33.0", None, False, "warn"),
        (None, None, False, "fail"),
    ],
)
def test_vllm_is_one_build_of_the_right_version_for_the_machine(cpu, gpu, has_gpu, status):
    assert status_of(checks.check_vllm(cpu, gpu, has_gpu)) == status


def test_vllm_import_names_the_platform_or_the_error():
    assert checks.check_vllm_import("cpu", None).found == "platform cpu"
    assert status_of(checks.check_vllm_import(None, "ImportError: no")) == "fail"


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, "ok"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "head:6379"}, "ok"),
        ({"RAY_ADDRESS": "head:6379"}, "warn"),
        ({"RAY_AUTH_MODE": "token"}, "warn"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/secret"}, "ok"),
    ],
)
def test_ray_authentication_must_be_said_for_a_cluster(environ, status):
    assert status_of(checks.check_ray_auth(environ)) == status


def test_model_is_cached_or_can_be_made_or_is_missing():
    assert status_of(checks.check_model(True, "package missing", "Permission denied", "/cache")) == "ok"
    assert "first run" in checks.check_model(False, None, None, "/cache").found
    assert status_of(checks.check_model(False, "package missing", None, "/cache")) == "fail"
    unwritable = checks.check_model(False, None, "Permission denied", "/cache")
    assert status_of(unwritable) == "fail" and "REPEXP_CACHE" in unwritable.fix


@pytest.mark.parametrize(
    ("names", "cuda", "sees_gpu", "status"),
    [([], None, False, "ok"), (["H200"], None, False, "warn"), (["H200"], "13.0", False, "fail"), (["H200"], "13.0", True, "ok")],
)
def test_gpu_that_torch_cannot_use_is_pointed_out(names, cuda, sees_gpu, status):
    assert status_of(checks.check_gpu(names, cuda, sees_gpu)) == status


def test_only_a_failure_makes_the_exit_status_one():
    warning, failure = Check("a", "warn", "x", "y"), Check("b", "fail", "x", "y")
    assert doctor.exit_status([warning]) == 0
    assert doctor.exit_status([warning, failure]) == 1
    assert doctor.summary([warning, failure]) == "0 ok, 1 to look at, 1 failed"


def test_plain_report_shows_the_mend_under_its_check():
    text = doctor.as_text([Check("python", "ok", "3.11.7"), Check("ray", "fail", "not installed", "make venv")])
    assert text.splitlines() == ["ok    python  3.11.7", "fail  ray     not installed", "              -> make venv"]


def run_doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ | environ, capture_output=True, text=True, timeout=100)


def test_command_prints_json_and_exits_by_it(tmp_path):
    done = run_doctor("-m", "jobs.doctor", "--json", "--runs", str(tmp_path / "runs"), REPEXP_CACHE=str(tmp_path / "cache"))
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    names = [check["name"] for check in report["checks"]]
    assert len(names) == len(set(names))
    assert {"python", "memory", "/dev/shm", "torch", "vllm", "ray", "model", "gpu", "run directory"} <= set(names)
    assert list(tmp_path.iterdir()) == []


def test_command_reports_in_an_environment_without_any_package():
    """`-S` leaves site-packages out: no rich, no torch, no Ray."""
    done = run_doctor("-S", "-m", "jobs.doctor")
    assert done.returncode == 1, done.stderr
    assert "fail  torch" in done.stdout
    assert "make venv" in done.stdout


def test_wrong_option_exits_two():
    assert run_doctor("-m", "jobs.doctor", "--jsno").returncode == 2
