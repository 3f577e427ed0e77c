"""Data files: finding them, reading them and splitting them."""
