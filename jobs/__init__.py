"""The commands (`python -m jobs.NAME`) and their configurations; below them a room for each part of the work."""
