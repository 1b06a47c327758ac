"""Variants: a loss and the settings to train a student with, and others by what they change of these, as text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from logitcache.errors import OptionError
from logitcache.losses.objective import Objective
from logitcache.train.config import TrainConfig


@dataclass(frozen=True)
class Variant:
    """A loss and settings, to train each of several students with.

    Attributes:
        loss, ce_weight, label_smoothing: as `Objective.parse` takes them.
        config: the settings.
        label: tells this variant from others of the same students; "": the loss does.
    """

    loss: str
    config: TrainConfig
    ce_weight: float = 1.0
    label_smoothing: float = 0.0
    label: str = ""

    @property
    def name(self) -> str:
        """The label, or the loss."""
        return self.label or self.loss

    def build_objective(self) -> Objective:
        """Build the objective; each student needs one of its own.

        Raises:
            UnknownNameError, OptionError: the loss cannot be read.
        """
        return Objective.parse(self.loss, ce_weight=self.ce_weight, label_smoothing=self.label_smoothing)

    def replace(self, text: str) -> "Variant":
        """Return this variant with some of it replaced.

        Args:
            text: such as "loss=kd", or "loss=dkd(alpha=1.0):0.5,lr=0.1,ema=0.999": NAME=VALUE, separated by commas.
                Names are loss, ce-weight, label-smoothing, and those of `TrainConfig`.

        Raises:
            OptionError: the text does not read so, or a value cannot be trained with.
            UnknownNameError: there is no such name.
        """
        settings = read_settings(text)
        own: dict[str, object] = {"label": "" if settings.keys() == {"loss"} else text.replace(" ", "")}
        if "loss" in settings:
            own["loss"] = settings.pop("loss")
        for name in settings.keys() & {"ce_weight", "label_smoothing"}:
            own[name] = _parse_number(name, settings.pop(name))
        config = self.config.replace(settings)
        variant = dataclasses.replace(self, config=config, **own)  # type: ignore[arg-type]
        variant.build_objective().spec()  # errors now, and not after an hour of opening data
        return variant


@dataclass(frozen=True)
class VariantInputs:
    """What students are trained with, by the names and texts of the command line.

    Attributes:
        loss, ce_weight, label_smoothing: as `Objective.parse` takes them.
        protocol: whose settings hold where none are given, as `protocol_named` takes it.
        settings: of `TrainConfig`, by name, that replace the protocol's.
        batch_size: views per step; None: the protocol's.
        texts: what each variant replaces, as `Variant.replace` takes it; none: there is one, as it is.
    """

    loss: str
    ce_weight: float = 1.0
    label_smoothing: float = 0.0
    protocol: str = "auto"
    settings: Mapping[str, object] = field(default_factory=dict)
    batch_size: int | None = None
    texts: tuple[str, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        """Whether any student is taught by a teacher.

        Raises:
            UnknownNameError, OptionError: a loss or a variant cannot be read.
        """
        losses = [read_settings(text).get("loss", self.loss) for text in self.texts] or [self.loss]
        return any(Objective.parse(loss, ce_weight=self.ce_weight).needs_teacher for loss in losses)

    def build(self, config: TrainConfig) -> tuple[Variant, ...]:
        """Build the variants, by the settings of a protocol.

        Raises:
            UnknownNameError, OptionError: as `Variant.replace` does.
        """
        common = Variant(self.loss, config.replace(self.settings), self.ce_weight, self.label_smoothing)
        return tuple(common.replace(text) for text in self.texts) or (common,)


def read_settings(text: str) -> dict[str, str]:
    """Read what a variant replaces, by name, as `Variant.replace` takes it.

    Raises:
        OptionError: the text does not read so.
    """
    settings: dict[str, str] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not value.strip() or name in settings:
            raise OptionError(
                f"a variant reads NAME=VALUE,NAME=VALUE, each name once, such as loss=kd,lr=0.1; found {text!r}"
            )
        settings[name] = value.strip()
    return settings


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _parse_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"{name} must be a number, found {text!r}") from error
