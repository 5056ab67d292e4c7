"""Datasets, crops and the cache of codes."""
