"""Numbers about samples: estimators, intervals and comparisons. This room imports neither Ray nor torch."""
