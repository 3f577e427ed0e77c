"""Ray actors as plain classes, each the owner of one resource; `jobs.processes.build` makes actors of them."""
