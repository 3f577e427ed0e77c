"""A comparison of methods: the runs and evaluations that it is made of, how they are carried out, and their results."""
