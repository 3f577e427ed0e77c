"""The report of `jobs.explore`."""
