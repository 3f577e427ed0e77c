"""Number puzzles: expressions, exact values, solvers."""
