"""Dump: stage one, the teacher run once per seed into a cache."""
