"""Images that do not decode, by name and with the reason, for reports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from logitcache.errors import NAMED, DataError, list_some
from logitcache.format.spec import Spec
from logitcache.views.images import Images
from logitcache.views.ordered_images import NO_VIEW

UNDECODABLE = ("image that does not decode", "images that do not decode")  # one, and several
MOST_EXPLAINED = 100  # images that are decoded again, to say why they do not


@dataclass(frozen=True)
class BadImage(Spec):
    """An image that did not decode.

    Attributes:
        sample: its number.
        image: its file, or what else says which image it is.
        reason: why it does not decode; None where it does by now, or where nobody looked.
    """

    sample: int
    image: str
    reason: str | None

    def __str__(self) -> str:
        return self.image if self.reason is None else f"{self.image} ({self.reason})"


def explain_bad_images(images: Images, samples: Iterable[int]) -> tuple[BadImage, ...]:
    """Name images that did not decode; up to `MOST_EXPLAINED` are decoded again, for the reason."""
    found = []
    for number, sample in enumerate(sorted({*samples})):
        reason = _find_reason(images, sample) if number < MOST_EXPLAINED else None
        found.append(BadImage(sample, images.describe(sample), reason))
    return tuple(found)


def list_bad_images(bad: Sequence[BadImage], where: str = "") -> str:
    """Name the first few in a line; where there are more, `where` says what lists all."""
    return list_some([*map(str, bad)], len(bad)) + (f"; {where}" if where and len(bad) > NAMED else "")


def _find_reason(images: Images, sample: int) -> str | None:
    try:
        images.image(sample)
    except DataError as error:
        message = str(error).partition("does not decode (")[2] or str(error)
        if message.endswith(NO_VIEW):
            name, because = images.describe(sample), f", so {NO_VIEW}"
            return f"it {message.removeprefix(name).removesuffix(because).strip()}"
        return message.removesuffix("; mend or remove it").removesuffix(")")
    return None
