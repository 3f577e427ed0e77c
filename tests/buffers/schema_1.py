"""Rollout rows as schema 1.2 had them, for tests of what is done with old files."""

from __future__ import annotations

import pyarrow as pa

DETAIL = ("leverage", "group_spread", "group_saturation_distance", "group_effective_rank", "group_length_correlation")


def as_schema_1(table: pa.Table, version: str = "1.2") -> pa.Table:
    """`table` with five columns in place of `bonus_detail`, and without the final answers, which are newer."""
    details = [dict(detail or ()) for detail in table["bonus_detail"].to_pylist()]
    names = [name for name in table.column_names if name not in ("final_answer", "bonus_detail")]
    columns = {name: table[name] for name in names}
    after_bonus = names.index("bonus") + 1
    ordered = [*names[:after_bonus], *DETAIL, *names[after_bonus:]]
    columns |= {name: pa.array([detail.get(name) for detail in details], pa.float64()) for name in DETAIL}
    fields = [table.schema.field(name) if name in names else pa.field(name, pa.float64()) for name in ordered]
    return pa.table([columns[name] for name in ordered], schema=pa.schema(fields, metadata={"repexp.schema": version}))
