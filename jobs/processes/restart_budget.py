"""How often something may fail in a row before the run ends, and how long to wait between tries."""

from __future__ import annotations

from jobs.config import SupervisionConfig


class RestartBudget:
    """Counts failures in a row. Work done in between clears the count."""

    def __init__(self, role: str, config: SupervisionConfig) -> None:
        self.role = role
        self._config = config
        self.in_a_row = 0
        self.total = 0

    def failed(self, error: Exception) -> float:
        """Return the seconds to wait before the next try. Raises `error` itself when there were too many failures in a
        row."""
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row > self._config.max_failures:
            raise error
        return min(self._config.backoff_s * 2.0 ** (self.in_a_row - 1), self._config.backoff_max_s)

    def worked(self) -> None:
        self.in_a_row = 0
