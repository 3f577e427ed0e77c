"""The report of `jobs.evaluate`."""
