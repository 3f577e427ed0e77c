from __future__ import annotations

import json

import pytest

from benchmarks import fleet


def test_every_number_of_workers_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(fleet, "LOADS_WITHIN_S", 0.01)
    fleet.main(["--workers", "1", "3", "--repeats", "1"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["workers"] for line in found] == [1, 3]
    assert all(line["ms_of_a_publication"] > 0 and line["ms_of_a_group"] > 0 for line in found)


def test_a_wrong_number_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        fleet.main(["--workers", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: --workers and --repeats must be at least 1")
