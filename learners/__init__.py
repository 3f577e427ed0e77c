"""Torch core: model, packing, losses, advantages, optimiser step, weights, checkpoints. Needs neither Ray nor vLLM."""
