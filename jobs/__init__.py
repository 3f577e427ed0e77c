"""Entry points (`python -m jobs.NAME`) and the wiring of a run."""
