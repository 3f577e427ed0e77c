import subprocess
import sys

import pytest
from pydantic import ValidationError

from buffers.config import ReplayConfig


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_byte"):
        ReplayConfig(max_byte=5)  # type: ignore[call-arg]


def test_every_field_says_what_it_means() -> None:
    assert all(field.description for field in ReplayConfig.model_fields.values())


def test_config_and_records_load_neither_arrow_nor_torch() -> None:
    code = "import sys, buffers.config, buffers.records; sys.exit(bool({'pyarrow', 'torch'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=60)
