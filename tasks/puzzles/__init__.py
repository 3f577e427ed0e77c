"""Number puzzles: expressions, exact values and a solver."""
