"""The parts of the policy loss: surrogates, corrections, divergences, aggregation."""
