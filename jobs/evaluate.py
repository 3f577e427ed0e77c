"""`python -m jobs.evaluate`: placeholder of this commit; pass@k keeps its public name."""

from __future__ import annotations

from jobs.pass_at_k import pass_at_k

__all__ = ["pass_at_k"]
