"""What a machine has: checks of what was found, and the looking. Only the standard library is imported here."""
