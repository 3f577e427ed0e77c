"""Pages, figures and sentences that present what `jobs.analysis` found. This room imports neither Ray nor torch."""
