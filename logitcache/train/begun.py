"""What runs were begun by: those that go on keep it where the user says nothing, whatever the default is by now."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from logitcache.errors import FormatError
from logitcache.losses.objective import Objective
from logitcache.stream.stream_inputs import StreamInputs
from logitcache.train.run_folder import RunFolder
from logitcache.train.trained import list_runs, read_training_recipe
from logitcache.train.variants import VariantInputs
from logitcache.views.bad_images import BadImage
from logitcache.views.datasets import SHIPPED
from logitcache.views.recipes import with_background

FIRST_PROTOCOL = "digits"  # of runs that do not name theirs: there was no other default


@dataclass(frozen=True)
class BegunRuns:
    """The runs in a folder that training goes on with; of training that begins there are none.

    Attributes:
        runs: their folders.
    """

    runs: tuple[Path, ...] = ()

    @classmethod
    def find(cls, out: Path | None, *, resume: bool) -> Self:
        """Find the runs to go on with: `out` itself, or those in it."""
        return cls(tuple(list_runs(out)) if resume and out is not None else ())

    def keep_data(self, inputs: StreamInputs) -> StreamInputs:
        """Have runs without a cache go on with the data that ships which they were begun with."""
        names = [str(_find(record, "stream", "data", "name")) for record in self._read()]
        if not names or names[0] not in SHIPPED or inputs.caches or inputs.data != "auto":
            return inputs
        return replace(inputs, data=names[0])

    def keep_recipe(self, inputs: StreamInputs) -> StreamInputs:
        """Have runs without a cache go on by their own recipe: another may be chosen by now.

        Raises:
            FormatError: a config.json does not say which that is.
        """
        if not self.runs or inputs.caches or inputs.recipe != "auto":
            return inputs
        return replace(inputs, recipe=with_background(read_training_recipe(self.runs[0]), inputs.background))

    def keep_bad_images(self, inputs: StreamInputs) -> StreamInputs:
        """Have runs without a cache go on without the images that they left out, and look for no others.

        Raises:
            FormatError: a config.json is damaged there.
        """
        runs = [run for run in map(RunFolder, self.runs) if run.has_progress()]
        if not runs or inputs.caches:
            return inputs
        found = runs[0].read_config().get("left_out", [])
        if not isinstance(found, list):
            raise FormatError(
                f"{runs[0].path}/config.json: expected a list of images as left_out, found {found!r}"
            )
        return replace(inputs, bad_images=tuple(map(BadImage.from_dict, found)))

    def keep_loss(self, variants: VariantInputs) -> VariantInputs:
        """Have runs of two classes that were begun by `cmkd`, once the default there too, go on by it."""
        if variants.loss != "auto":
            return variants
        losses = {str(_find(record, "objective", "expression")) for record in self._read()}
        named = {Objective.parse(loss).spec()["expression"] for loss in variants.list_named_losses()}
        if any(loss.startswith("cmkd") for loss in losses - named):
            return replace(variants, loss="cmkd")
        return variants

    def keep_protocol(self, name: str) -> str:
        """Return the protocol that they were begun by, in place of "auto"."""
        if name != "auto":
            return name
        return next((str(record.get("protocol") or FIRST_PROTOCOL) for record in self._read()), name)

    def _read(self) -> list[Mapping[str, Any]]:
        return [RunFolder(run).read_config() for run in self.runs]


def find_optimizer(run: RunFolder) -> str | None:
    """Return the name of the optimiser that a run was begun by."""
    found = _find(run.read_config(), "config", "optimizer")
    return found if isinstance(found, str) else None


def _find(record: Any, *names: str) -> Any:
    for name in names:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record
