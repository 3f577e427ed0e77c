"""The commands (`repexp NAME`, which is `python -m jobs.NAME`) and their configurations; below them a room for each
part of the work."""

__version__ = "0.1.0"
