"""Training on rollouts that were sampled before, without engines."""
