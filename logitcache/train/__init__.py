"""Train: stage two, students trained from a cache."""
