"""The page of a training run: curves, a timeline, and a browser of its rollouts, from the run's directory alone."""
