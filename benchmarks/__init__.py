"""Every number the README and docs claim, with its command: `python -m benchmarks.NAME`."""
