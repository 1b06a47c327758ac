"""The logits of whatever a network answers: a tensor, or one among others.

Networks answer with a tensor, with an object or a dict that has `logits` (Hugging Face; torchvision's Inception and
GoogLeNet while they train), or with a tuple of them and other things, first by custom. What else they give is left
aside.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from logitcache.errors import WeightsError


def take_logits(answer: object, rows: int, num_classes: int, name: str, heads: int = 1) -> Tensor:
    """Return the logits, (B, num_classes), or (B, 2, num_classes) of two heads.

    Args:
        answer: of the network `name`.
        rows: B, how many images it was shown.
        num_classes: C.
        name: for messages.
        heads: how many it may have.

    Raises:
        WeightsError: there are none, or several tensors that may be; it says what there is.
    """
    logits = _find_logits(answer, num_classes)
    if isinstance(logits, Tensor) and (
        (logits.ndim == 2 and logits.shape[1] == num_classes)
        or (heads == 2 and logits.ndim == 3 and logits.shape[1:] == (2, num_classes))
    ):
        if logits.shape[0] == rows:  # `len` would bind an exported graph to this batch size
            return logits
        raise WeightsError(
            f"{name}: expected a row of logits for each of {rows} images, found {logits.shape[0]}; let it answer "
            "every image with a row of its own"
        )
    raise WeightsError(
        f"{name}: expected logits (B, {num_classes}), found {_describe(answer)}; {_advise(logits, num_classes)}"
    )


def _find_logits(answer: object, num_classes: int) -> object:
    """Return what holds an answer's logits, a tensor if it is sound.

    Of a tuple that is its first element, or the only other one, of their shape.
    """
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping) and "logits" in answer:
        return answer["logits"]
    if isinstance(found := getattr(answer, "logits", None), Tensor):
        return found
    if isinstance(answer, tuple | list):
        fitting = [one for one in answer if _fits(one, num_classes)]
        if fitting and (len(fitting) == 1 or fitting[0] is answer[0]):
            return fitting[0]
    return answer


def has_other_logits(answer: object, num_classes: int) -> bool:
    """Tell whether a tuple holds other tensors of the shape of logits than the first, which is taken."""
    several = answer if isinstance(answer, tuple | list) and not hasattr(answer, "logits") else ()
    return sum(_fits(one, num_classes) for one in several) > 1


def _fits(value: Any, num_classes: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == num_classes


def _describe(answer: object) -> str:
    if isinstance(answer, Tensor):
        return str(tuple(answer.shape))
    if isinstance(answer, Mapping):
        return f"a dict of {', '.join(f'{name}: {_describe(value)}' for name, value in answer.items())}"
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of {', '.join(map(_describe, answer))}"
    if isinstance(logits := getattr(answer, "logits", None), Tensor):
        return f"{type(answer).__name__} with logits {_describe(logits)}"
    return type(answer).__name__


def _advise(logits: object, num_classes: int) -> str:
    elements = logits if isinstance(logits, tuple | list) else ()
    fitting = [str(at) for at, one in enumerate(elements) if _fits(one, num_classes)]
    if fitting:
        return (
            f"elements {' and '.join(fitting)} of it could each be the logits: let it return the logits alone, or as "
            "`logits` of an object or a dict"
        )
    if not isinstance(logits, Tensor):
        return "let it return the logits alone, or as `logits` of an object or a dict"
    if logits.ndim > 2 and logits.shape[1] == num_classes and logits[0].numel() == num_classes:
        return "let it flatten them"
    if logits.ndim == 2:
        return (
            "its class count must be the data set's; features become logits by a last layer of as many outputs as "
            "there are classes"
        )
    return "one row per image, and one number per class"
