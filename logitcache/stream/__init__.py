"""Stream: batches of (views, labels, teacher) for training."""
