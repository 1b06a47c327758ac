"""Small data that several tests share."""

from logitcache.datasets import ArrayImages, digits


def few_digits(n: int = 300, split: str = "train") -> ArrayImages:
    """The first n digits: enough shards for every law, few enough to be quick."""
    images = digits(split)
    return ArrayImages("digits", split, images.images[:n], images.labels[:n], 10, "digits")


def dozen(split: str) -> ArrayImages:
    """Twelve digits, for commands: `--data small:dozen`."""
    return few_digits(12, split)
