"""Trained students: what a run folder or a file of weights says of one, and the model built from it."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from logitcache.errors import FormatError, LogitCacheError, NotFoundError, OptionError
from logitcache.format.identity import RecipeSpec
from logitcache.models.build import Model, build_model
from logitcache.models.weights import read_header
from logitcache.paths import expand_home, find_near_paths, suggest, write_path
from logitcache.plugins import require_own
from logitcache.train.run_folder import RunFolder
from logitcache.units import count
from logitcache.views.recipes import evaluation_recipe


@dataclass(frozen=True)
class TrainedStudent:
    """What is known of a trained student before it is built; None where nothing says.

    Attributes:
        file: its weights.
        name: of the architecture, as `models.build.build_model` takes it.
        num_classes: C.
        data: what it was trained on, as `datasets.open_images` takes it.
        recipe: by which its training views were made.
        evaluation: by which test images become views, where its file of weights alone says so.
    """

    file: Path
    name: str | None
    num_classes: int | None
    data: str | None = None
    recipe: RecipeSpec | None = None
    evaluation: RecipeSpec | None = None

    @classmethod
    def find(cls, path: str | Path, which: str = "best") -> Self:
        """Read what is known of a student.

        Args:
            path: a run folder, or a file of weights.
            which: "best" or "last", of a run folder.

        Raises:
            NotFoundError: there is no such file or folder, no run in it, or no weights of that name yet.
            OptionError: neither "best" nor "last".
            FormatError: the run's config.json is damaged.
            WeightsError: the weights' header is.
        """
        path = expand_home(path)
        if which not in ("best", "last"):
            raise OptionError(f"weights of a run are best or last, found {which!r}")
        if not path.is_dir():
            if not path.is_file():
                near = suggest(find_near_paths(path, lambda one: one.is_file() or bool(list_runs(one))))
                advice = near or "; `logitcache train` makes a run folder"
                raise NotFoundError(f"no run folder or weights file at {path}{advice}")
            about = read_header(path)
            if about is None:
                return cls(path, None, None)
            return cls(path, about.name, about.num_classes, evaluation=about.evaluation)
        if (path / "zarr.json").exists():
            raise NotFoundError(
                f"no run in {path}, which is a cache; name a run folder, or a file of weights"
            )
        if not RunFolder(path).has_run():
            inside = list_runs(path)
            others = f", or another of the {len(inside)} runs there" if len(inside) > 1 else ""
            advice = f"; did you mean {inside[0]}{others}?" if inside else ""
            raise NotFoundError(f"no run in {path}: config.json is not there{advice}")
        name, data, recipe = _read_record(path, RunFolder(path).read_config())
        file = path / f"{which}.safetensors"
        if not file.is_file():
            raise NotFoundError(
                f"{path} has no {file.name}: no epoch of this run is done; go on with `logitcache train … --resume`"
            )
        about = read_header(file)
        return cls(file, name, about.num_classes if about else None, data, recipe)

    def build_model(
        self,
        student: str | None = None,
        num_classes: int | None = None,
        view_size: int | None = None,
        input_size: int = 0,
    ) -> Model:
        """Build the student with its weights.

        Args:
            student: its architecture, where the file does not say.
            num_classes: C, where the file does not say; where it does, the same.
            view_size: side of its views in pixels, where the file does not say at what size it sees them.
            input_size: pixels a side that it sees, whatever the file says; 0: as that says, else as the views are.

        Raises:
            OptionError: nothing says which architecture, how many classes, or which size; or the file says another
                number, or names code that is not your own.
            WeightsError: the weights are of another one.
        """
        name, classes = student or self.name, self.num_classes or num_classes
        if name is None:
            raise OptionError(
                f"{self.file} does not say what it holds the weights of; name it with --student"
            )
        if student is None and not name.startswith("timm:"):
            require_own(self.file, name)
        if classes is None:
            raise OptionError(f"{self.file} does not say how many classes it tells apart; give --num-classes")
        if num_classes not in (None, classes):
            raise OptionError(
                f"{self.file} tells {classes} classes apart, --num-classes says {num_classes}; leave it out"
            )
        weights = write_path(self.file)
        model = build_model(
            name, num_classes=classes, view_size=view_size, weights=weights, input_size=input_size
        )
        evaluation = model.evaluation or self._find_evaluation()
        return replace(model, evaluation=evaluation, training=model.training or self.recipe)

    def _find_evaluation(self) -> RecipeSpec | None:
        """Return the recipe of test images, by that of the training views; None for code, which is not run for it."""
        if self.recipe is None or ":" in self.recipe.evaluation:
            return None
        try:
            return evaluation_recipe(self.recipe)
        except LogitCacheError:  # its file is not there
            return None


def list_runs(folder: Path) -> list[Path]:
    """List the run folders in a folder, by name; of a run folder, itself."""
    if RunFolder(folder).has_run():
        return [folder]
    return sorted(file.parent for file in folder.glob("*/config.json") if _is_of_a_run(file))


def _is_of_a_run(config: Path) -> bool:
    """Tell whether a config.json is a run's, or a damaged one; other tools have files of that name."""
    try:
        found = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and {"config", "student", "stream"} <= found.keys()


def require_place(out: Path | None, students: int, *, resume: bool) -> None:
    """Insist that a folder of runs is no run's, and a run's folder no place for several.

    Args:
        out: where runs go; None: into folders of their own.
        students: how many; `out` is the run of a single one, else there is a folder in it for each.
        resume: whether runs that are there go on.

    Raises:
        OptionError: what is there is of the other kind.
    """
    if out is None:
        return
    own, name = RunFolder(out).has_run(), write_path(out)
    if students > 1 and own and not resume:
        raise OptionError(
            f"{name} is a run, and {students} students want a folder of runs; choose another --out"
        )
    inside = [] if own else list_runs(out)
    if students == 1 and inside:
        first = write_path(inside[0])
        every = f"`logitcache train --out {shlex.quote(name)} --resume` goes on with all"
        raise OptionError(
            f"{name} is a folder of runs ({count(len(inside), 'run')}, such as {first}), and no run itself; choose "
            f"another --out, or {every}"
        )


def advise_resume(folder: Path) -> str:
    """Say which run folders, or folders of such, may be meant by one without a run; else how one is begun there."""
    near = suggest(find_near_paths(folder, lambda one: bool(list_runs(one))))
    return near or "; leave out --resume to begin one"


class Command(NamedTuple):
    """How a run was begun.

    Attributes:
        words: what followed ``logitcache train``.
        folder: in which they were said; None where that is not known, or is no more.
        run: whose record this is.
    """

    words: list[str]
    folder: Path | None
    run: Path


def read_command(folder: Path) -> Command:
    """Return how a run, or the runs in a folder, were begun.

    Raises:
        NotFoundError: there is no run.
        OptionError: it was not begun by that command.
        FormatError: its config.json is damaged.
    """
    runs = list_runs(folder)
    if not runs:
        raise NotFoundError(f"no run in {folder}: config.json is not there{advise_resume(folder)}")
    record = RunFolder(runs[0]).read_config()
    words, said_in = record.get("command"), record.get("folder")
    if not isinstance(words, list) or words[1:2] != ["train"] or not all(isinstance(w, str) for w in words):
        raise OptionError(f"{runs[0]} was not begun by `logitcache train …` alone; give its options again")
    folder = Path(said_in) if isinstance(said_in, str) else Path()
    return Command(words[2:], folder if folder.is_absolute() and folder.is_dir() else None, runs[0])


def read_training_recipe(run: Path) -> RecipeSpec:
    """Return the recipe of a run's training views.

    Raises:
        NotFoundError: there is no run.
        FormatError: its config.json is damaged.
    """
    return _read_record(run, RunFolder(run).read_config())[2]


def _read_record(folder: Path, record: dict[str, Any]) -> tuple[str, str, RecipeSpec]:
    try:
        stream = record["stream"]
        return record["student"]["name"], stream["data"]["name"], RecipeSpec.from_dict(stream["recipe"])
    except (KeyError, TypeError, FormatError) as error:
        raise FormatError(
            f"{folder}/config.json does not say what was trained ({error!r}); give the weights file and --student"
        ) from error
