"""The live training run: its loops, its workers, and what steers it from outside."""
