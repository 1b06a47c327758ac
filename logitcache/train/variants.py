"""Variants: a loss and the settings to train a student with, and others by what they change of these, as text."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from logitcache.errors import OptionError, UnknownNameError
from logitcache.losses.objective import Objective
from logitcache.models.build import Model
from logitcache.models.catalog import canonical_name
from logitcache.train.config import TrainConfig

OF_VARIANTS = ("student", "loss", "ce_weight", "label_smoothing")  # beside the settings of `TrainConfig`
OF_TWO_CLASSES = (
    "trained by kd, as cmkd compares the order of classes, and of two it tells nothing; --loss names another"
)


@dataclass(frozen=True)
class Variant:
    """A loss and settings, to train each of several students with.

    Attributes:
        loss, ce_weight, label_smoothing: as `Objective.parse` takes them.
        config: the settings.
        label: tells this variant from others of the same students; "": the loss does.
        given: names of the settings that somebody gave, and not the protocol.
    """

    loss: str
    config: TrainConfig
    ce_weight: float = 1.0
    label_smoothing: float = 0.0
    label: str = ""
    given: frozenset[str] = field(default=frozenset(), compare=False)

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

    def repeat(self, by: int) -> "Variant":
        """Return this variant with a seed that is larger by so much, and a label that says it."""
        config = dataclasses.replace(self.config, seed=self.config.seed + by)
        return dataclasses.replace(self, config=config, label=f"{self.name},seed={config.seed}")

    def replace(self, text: str) -> "Variant":
        """Return this variant with some of it replaced.

        Args:
            text: such as "loss=kd", or "loss=dkd(alpha=1.0):0.5,lr=0.1,ema=0.999": NAME=VALUE, separated by commas.
                Names are loss, ce-weight, label-smoothing, and those of `TrainConfig`; student, which says whom the
                variant is for, changes nothing here.

        Raises:
            OptionError: the text does not read so, or a value cannot be trained with.
            UnknownNameError: there is no such name.
        """
        settings = read_settings(text)
        known = {*OF_VARIANTS, *(each.name for each in dataclasses.fields(TrainConfig))}
        if unknown := next((name for name in settings if name not in known), None):
            raise UnknownNameError("setting", unknown, known)
        settings.pop("student", None)
        own: dict[str, object] = {"label": "" if settings.keys() <= {"loss"} else _label(text)}
        if "loss" in settings:
            own["loss"] = settings.pop("loss")
        for name in settings.keys() & {"ce_weight", "label_smoothing"}:
            own[name] = _parse_number(name, settings.pop(name))
        config, own["given"] = self.config.replace(settings), self.given | settings.keys()
        variant = dataclasses.replace(self, config=config, **own)  # type: ignore[arg-type]
        variant.build_objective().spec()  # errors now, and not after an hour of opening data
        return variant


class Student(NamedTuple):
    """A network with its first weights, and what it is trained with."""

    model: Model
    variant: Variant

    @property
    def label(self) -> str:
        """What is trained, and by what: no two students of a job share it."""
        return f"{self.model.name}-{self.variant.name}"


@dataclass(frozen=True)
class VariantInputs:
    """What students are trained with, by the names and texts of the command line.

    Attributes:
        loss, ce_weight, label_smoothing: as `Objective.parse` takes them; of the loss "auto" too (`choose_loss`).
        protocol: whose settings hold where none are given, as `protocol_named` takes it.
        settings: of `TrainConfig`, by name, that replace the protocol's.
        batch_size: views per step; None: the protocol's.
        texts: what each variant replaces, as `Variant.replace` takes it; none: there is one, as it is.
        repeats: how often each is trained, from other first weights and with other dropout: by the seed of the
            settings, and those after it. All see the same batches.
    """

    loss: str = "auto"
    ce_weight: float = 1.0
    label_smoothing: float = 0.0
    protocol: str = "auto"
    settings: Mapping[str, object] = field(default_factory=dict)
    batch_size: int | None = None
    texts: tuple[str, ...] = ()
    repeats: int = 1

    def choose_loss(self, num_classes: int | None = None) -> Self:
        """Return these with a loss in place of "auto": `cmkd`; of two classes, whose order tells nothing, `kd`."""
        return (
            dataclasses.replace(self, loss="kd" if num_classes == 2 else "cmkd")
            if self.loss == "auto"
            else self
        )

    def needs_teacher(self, students: Sequence[str]) -> bool:
        """Say whether any of these students is taught by a teacher.

        Raises:
            UnknownNameError, OptionError: a loss or a variant cannot be read.
        """
        loss = self.choose_loss().loss
        losses = {settings.get("loss", loss) for settings in self._read_texts(students)}
        return any(Objective.parse(loss, ce_weight=self.ce_weight).needs_teacher for loss in losses)

    def list_named_losses(self) -> list[str]:
        """Return the losses that variants name, in place of `loss`.

        Raises:
            OptionError: a variant cannot be read.
        """
        return [settings["loss"] for text in self.texts if "loss" in (settings := read_settings(text))]

    def uses_loss(self, students: Sequence[str]) -> bool:
        """Say whether any of these students is trained by `loss`, and not all by another of a variant.

        Raises:
            OptionError: a variant cannot be read.
        """
        return any("loss" not in settings for settings in self._read_texts(students))

    def pair(self, students: Sequence[str], config: TrainConfig) -> list[tuple[str, Variant]]:
        """Pair each student with what it is trained with, by the settings of a protocol: a pair for each run.

        These are, for each student in turn, the variants that name it and those that name nobody, in their order; of
        a student that has none, the settings as they are.

        Raises:
            UnknownNameError, OptionError: as `Variant.replace` does; or a variant names a student that is not here,
                or a seed where each is repeated.
        """
        if self.repeats < 1:
            raise OptionError(f"repeats must be at least 1, found {self.repeats}")
        if self.repeats > 1 and (named := [text for text in self.texts if "seed" in read_settings(text)]):
            raise OptionError(f"--repeats gives each run its seed; leave it out of --variant {named[0]}")
        common = Variant(
            self.choose_loss().loss,
            config.replace(self.settings),
            self.ce_weight,
            self.label_smoothing,
            given=frozenset(self.settings),
        )
        pairs = self._pair_texts(students)
        variants = [(student, common.replace(text) if text else common) for student, text in pairs]
        if self.repeats == 1:
            return variants
        return [(student, variant.repeat(by)) for student, variant in variants for by in range(self.repeats)]

    def _read_texts(self, students: Sequence[str]) -> list[dict[str, str]]:
        return [read_settings(text) if text else {} for _, text in self._pair_texts(students)]

    def _pair_texts(self, students: Sequence[str]) -> list[tuple[str, str]]:
        """Pair each student with the texts of its variants; one that has none with an empty text."""
        owners = [read_settings(text).get("student") for text in self.texts]
        known = {canonical_name(student) for student in students}
        for owner, text in zip(owners, self.texts, strict=True):
            if owner is not None and canonical_name(owner) not in known:
                raise OptionError(
                    f"--variant {text} is for {owner}, but trained are {', '.join(students)}; name it with "
                    "--student too"
                )

        def texts_of(student: str) -> Iterator[str]:
            for owner, text in zip(owners, self.texts, strict=True):
                if owner is None or canonical_name(owner) == canonical_name(student):
                    yield text

        return [(student, text) for student in students for text in [*texts_of(student)] or [""]]


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


def _label(text: str) -> str:
    """Leave out of a text whom it is for, and spaces."""
    parts = (part.replace(" ", "") for part in _split(text))
    return ",".join(part for part in parts if not part.startswith("student="))


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
