"""Tasks: problems, and exact verifiers of their answers. No module here imports torch."""
