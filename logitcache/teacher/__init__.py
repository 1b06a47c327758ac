"""Teacher: what a teacher said, as a distribution; from a cache, or live."""
