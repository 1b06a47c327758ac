"""Models: networks by name, weights in, logits out."""
