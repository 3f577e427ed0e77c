"""Running and judging programs that a model has written."""
