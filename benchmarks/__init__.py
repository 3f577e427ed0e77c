"""Every number that the README and the pages claim, with its command: `python -m benchmarks.NAME`."""
