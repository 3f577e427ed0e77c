"""Jobs that fill a table of sampled candidates: explore, evaluate, and evaluations of a training run."""
