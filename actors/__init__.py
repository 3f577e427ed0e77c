"""Ray actors as plain classes, each the owner of one resource; `jobs.build` makes actors of them."""
