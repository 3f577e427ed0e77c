"""What a component is, whoever calls it: how it is built, called, supervised and replaced."""
