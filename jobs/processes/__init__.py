"""What a component is: how it is built, called, supervised and replaced."""
