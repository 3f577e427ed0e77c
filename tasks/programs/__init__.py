"""Programs that a model has written: running them in a sandbox and judging them."""
