"""Small data that several tests share."""

from logitcache.errors import ImageError
from logitcache.views.datasets import ArrayImages, load_digits


def few_digits(n: int = 300, split: str = "train") -> ArrayImages:
    """The first n digits: enough shards for every law, few enough to be quick."""
    images = load_digits(split)
    return ArrayImages("digits", split, images.images[:n], images.labels[:n], 10, "digits")


def dozen(split: str) -> ArrayImages:
    """Twelve digits, for commands: `--data small:dozen`."""
    return few_digits(12, split)


class Pixels(ArrayImages):
    """Digits whose fingerprint stays what it was, as that of a folder of files of unchanged sizes does."""

    changed: int | None = None
    broken = False

    def image(self, sample):
        if sample == self.changed and self.broken:
            raise ImageError(f"sample {sample} does not decode")
        image = super().image(sample)
        return image ^ 1 if sample == self.changed else image
