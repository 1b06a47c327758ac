"""Offline knowledge distillation: run the teacher once, train students from its compressed logits."""

__version__ = "0.1.0"
