"""The report on a comparison of methods."""
