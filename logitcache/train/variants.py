"""What a student is to minimise and how, by text: the common lesson, and variants of it."""

import dataclasses
import re
from dataclasses import dataclass

from logitcache.errors import OptionError
from logitcache.losses import Objective
from logitcache.train.config import TrainConfig


@dataclass(frozen=True)
class Lesson:
    """An objective and settings.

    Attributes:
        loss, ce_weight, label_smoothing: as `Objective.parse` takes them.
        config: the settings.
        label: what tells this lesson from others of the same students; the loss unless a variant changes more.
    """

    loss: str
    config: TrainConfig
    ce_weight: float = 1.0
    label_smoothing: float = 0.0
    label: str = ""

    @property
    def objective(self) -> Objective:
        """The objective; every student needs one of its own.

        Raises:
            UnknownNameError, OptionError: the loss cannot be read.
        """
        return Objective.parse(self.loss, ce_weight=self.ce_weight, label_smoothing=self.label_smoothing)

    @property
    def name(self) -> str:
        """The label, as part of a folder's name."""
        return re.sub(r"[/:\s'\"]+", "_", self.label or self.loss)

    def varied(self, text: str) -> "Lesson":
        """Return this lesson with some of it changed.

        Args:
            text: such as "loss=kd", or "loss=dkd(alpha=1.0):0.5,lr=0.1,ema=0.999": NAME=VALUE, separated by commas.
                Names are loss, ce-weight, label-smoothing, and those of `TrainConfig`.

        Raises:
            OptionError: the text does not read so, or a value cannot be honoured.
            UnknownNameError: there is no such name.
        """
        changes: dict[str, str] = {}
        for part in _parts(text):
            name, given, value = part.partition("=")
            name = name.strip().replace("-", "_")
            if not given or not value.strip() or name in changes:
                raise OptionError(
                    f"a variant reads NAME=VALUE,NAME=VALUE, each name once, such as loss=kd,lr=0.1; found {text!r}"
                )
            changes[name] = value.strip()
        own: dict[str, object] = {"label": "" if changes.keys() == {"loss"} else text.replace(" ", "")}
        if "loss" in changes:
            own["loss"] = changes.pop("loss")
        for name in changes.keys() & {"ce_weight", "label_smoothing"}:
            own[name] = _number(name, changes.pop(name))
        lesson = dataclasses.replace(self, config=self.config.changed(changes), **own)  # type: ignore[arg-type]
        lesson.objective.spec()  # read it now, and not after an hour of opening data
        return lesson


def _parts(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"{name} must be a number, found {text!r}") from error
