"""Runs on a Ray cluster, seen from outside."""
