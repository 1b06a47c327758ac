"""Stage two by the names of the command line, in one process or in all ranks that torchrun started.

`TrainJob.run` opens what is named, trains, and exports; `loop` has the training itself.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from logitcache.distributed import World
from logitcache.errors import (
    DataError,
    ImageError,
    LogitCacheError,
    NotFoundError,
    OptionError,
    StoppedError,
    StudentsError,
    UnknownNameError,
)
from logitcache.models.build import build_model
from logitcache.models.catalog import require_known_model
from logitcache.models.export import export_model, require_format
from logitcache.models.forward import choose_device, choose_precision
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.stream.stream_inputs import DataSize, StreamInputs
from logitcache.train.begun import BegunRuns, find_optimizer
from logitcache.train.config import TrainProtocol, choose_protocol, possible_protocols
from logitcache.train.evaluation import TEST_IMAGE, Evaluation
from logitcache.train.events import ImagesDecoded, OnTrainEvent, TrainEvent, TrainingBegun
from logitcache.train.folder_names import find_folders, find_label, name_folders
from logitcache.train.layer_norms import describe_layer_norms, suit_layer_norms
from logitcache.train.learner import Run
from logitcache.train.loop import RunReport, train
from logitcache.train.notes import describe_training, list_notes
from logitcache.train.run_folder import RunFolder, claim_folders
from logitcache.train.trained import TrainedStudent, require_place
from logitcache.train.variants import OF_TWO_CLASSES, Student, Variant, VariantInputs
from logitcache.views.bad_images import BadImage, explain_bad_images, list_bad_images
from logitcache.views.keyed_views import OnBadImage

OnLine = Callable[[str], None]

FEW_TO_LOOK_AT = 5_000  # test images, which are decoded once before training


class TrainSetup(NamedTuple):
    """What training takes, the name of its protocol, and lines that say how it will go."""

    students: list[Student]
    stream: Stream
    evaluation: Evaluation | None
    protocol: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class TrainJob:
    """Students by name, the variants to train each with, and where batches come from.

    Attributes:
        students: names, as `build_model` takes them; each is built once for every variant of it.
        variants: what each student is trained with, as they are paired; their seeds draw the first weights.
        inputs: where batches come from.
        out: run folder, a folder of run folders where there are several; None: runs/STUDENT-VARIANT-N.
        weights, input_size: as `build_model` takes them.
        teacher_cache: path or URL of a cache of the test split, to compare the students with their teacher.
        exports: formats to write the best weights in besides, as `export_model` takes them; into the run folders.
        on_bad_image: whether a test image that does not decode is an error, or left out of the scores; of training
            images `inputs` says so.
        command: the words to keep in a run folder that is begun, by which it can go on; none: this program's own.
    """

    students: tuple[str, ...]
    variants: VariantInputs
    inputs: StreamInputs
    out: Path | None = None
    weights: str = "random"
    input_size: int = 0
    teacher_cache: str | None = None
    exports: tuple[str, ...] = ()
    on_bad_image: OnBadImage = "error"
    command: tuple[str, ...] = ()

    def run(self, world: World, on_line: OnLine, **options: Any) -> list[RunReport]:
        """Open everything, train with all ranks of the world, and export.

        Rank 0 opens everything first, so that what is downloaded is downloaded once.

        Args:
            world: this process among the others.
            on_line: called by rank 0 with a line that the user should know.
            **options: as `train` takes them.

        Returns:
            Rank 0's reports, one per student; the other ranks return none.

        Raises:
            LogitCacheError: whatever opening and `train` raise; what rank 0 cannot open it alone raises.
            StudentsError: some students failed, or could not be exported.
        """
        with world.process_group(), ExitStack() as stack:
            if world.rank == 0:
                try:
                    self._check(world, **options)
                    inputs = self._prepare_inputs(**options)
                    setup = self._open(inputs, world, on_line, **options)
                    folders = stack.enter_context(self._name_folders(setup.students))
                except BaseException:
                    world.broadcast(None)
                    raise
                bad_images = [image.to_dict() for image in inputs.bad_images or ()]
                world.broadcast(([str(folder) for folder in folders], bad_images))
            else:
                found = world.broadcast()
                if found is None:
                    return []
                folders = list(map(Path, found[0]))
                stack.enter_context(warnings.catch_warnings(action="ignore", category=UserWarning))
                left_out = tuple(map(BadImage.from_dict, found[1]))
                inputs = replace(self._keep_begun(**options), bad_images=left_out)
                setup = self._open(inputs, world, _say_nothing, **options)
            runs = [
                Run(folder, model, variant.build_objective(), variant.config, setup.protocol, self.command)
                for folder, (model, variant) in zip(folders, setup.students, strict=True)
            ]
            options["on_progress"] = _announce(setup.lines, on_line, options.get("on_progress"))
            return self._train_and_export(runs, setup.stream, setup.evaluation, **options)

    def _check(self, world: World, *, resume: bool = False, **_: Any) -> None:
        """Refuse what would fail only after data is opened, or after hours of training."""
        for format in self.exports:
            require_format(format)
        if resume and self.out is None:
            raise OptionError("--resume goes on with a run; name its folder with --out")
        for name in self.students:
            require_known_model(name)
        device = choose_device(world.choose_device(self.inputs.config.device))
        require_place(self.out, len(pairs := self._pair()), resume=resume)
        for pair in pairs:
            choose_precision(pair[1].config.precision, device)

    def _pair(self) -> list[tuple[str, Variant]]:
        """Pair students and variants by a protocol that allows them, of those that may be chosen.

        Raises:
            UnknownNameError, OptionError: none does.
        """
        refusals: list[Exception] = []
        for protocol in possible_protocols(self.variants.protocol):
            try:
                return self.variants.pair(self.students, protocol.config)
            except (UnknownNameError, OptionError) as error:
                refusals.append(error)
        raise refusals[0]

    def _keep_begun(self, *, resume: bool = False, **_: Any) -> StreamInputs:
        """Open images and caches; runs that go on keep what they were begun with."""
        begun = BegunRuns.find(self.out, resume=resume)
        inputs = begun.keep_recipe(begun.keep_data(self.inputs).open_data(self.students))
        return begun.keep_bad_images(inputs)

    def _prepare_inputs(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: OnTrainEvent | None = None,
        **options: Any,
    ) -> StreamInputs:
        """Open images and caches, and find the images that are to be left out."""

        def report(done: int, total: int) -> None:
            if on_progress:
                on_progress(ImagesDecoded(done, total))

        return self._keep_begun(**options).look_for_bad_images(should_stop, report)

    def _open(
        self,
        inputs: StreamInputs,
        world: World,
        on_line: OnLine,
        *,
        resume: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        **_: Any,
    ) -> TrainSetup:
        begun = BegunRuns.find(self.out, resume=resume)
        size_of_data = inputs.measure()
        protocol, settings = self._choose_protocol(inputs, size_of_data, begun)
        variants = begun.keep_loss(self.variants).choose_loss(size_of_data.num_classes)
        if self.variants.loss == "auto" and variants.loss == "kd" and variants.uses_loss(self.students):
            on_line(f"note: {OF_TWO_CLASSES}")
        pairs = variants.pair(self.students, settings.config)
        if self.variants.batch_size is None:
            inputs = replace(inputs, config=replace(inputs.config, batch_size=settings.batch_size))
        stream = inputs.open(max(variant.config.epochs for _, variant in pairs), world, on_line)
        size = max(stream.views.any_view().shape[1:])
        students = []
        for student, variant in pairs:
            model = build_model(
                student,
                num_classes=stream.num_classes,
                view_size=size,
                weights=self.weights,
                seed=variant.config.seed,
                input_size=self.input_size,
                new_head=True,
            )
            students.append(Student(model, variant))
        if self.variants.protocol == "auto":
            students = [self._suit(each, students, resume=resume) for each in students]
        if resume:
            students = self._choose_students(students)
        if world.rank:  # which says nothing, and has looked at nothing
            return TrainSetup(students, stream, self._open_evaluation(stream, on_line), protocol, ())
        if self.variants.repeats > 1:
            drawn = all(model.weights.startswith("random") for model, _ in students)
            difference = "first weights" if drawn else "what --weights leaves to draw (such as a new head)"
            on_line(f"note: repeats share their batches, and differ in {difference} and dropout")
        for model, variant in students:
            steps = variant.config.epochs * stream.steps(0)
            for note in list_notes(model, steps, size, self.input_size):
                on_line(f"note: {note}")
            if about := describe_layer_norms(model, variant):
                on_line(f"note: {about}")
        lines = tuple(describe_training(protocol, students, stream))
        evaluation = self._open_evaluation(stream, on_line)
        if evaluation and not (resume and self._was_evaluated(students)):
            _look_at_images(evaluation, on_line, should_stop)
        return TrainSetup(students, stream, evaluation, protocol, lines)

    def _choose_protocol(
        self, inputs: StreamInputs, data: DataSize, begun: BegunRuns
    ) -> tuple[str, TrainProtocol]:
        """Choose a protocol by the data; for a run that goes on, the one that it was begun by."""
        name, views = begun.keep_protocol(self.variants.protocol), inputs.config.views_per_image
        return choose_protocol(name, data.name, data.n, data.view_size, self.variants.batch_size, views)

    def _suit(self, student: Student, students: Sequence[Student], *, resume: bool) -> Student:
        """Suit a student's settings to its network; those of a run that goes on are as it was begun."""
        suited = student._replace(variant=suit_layer_norms(*student))
        if suited == student:
            return student
        if resume and self.out is not None:
            folders = dict(zip(students, self._list_folders(students), strict=True))
            begun = [run for run in (RunFolder(self.out), RunFolder(folders[student])) if run.has_run()]
            if begun and find_optimizer(begun[0]) == student.variant.config.optimizer:
                return student
        return suited

    def _choose_students(self, students: list[Student]) -> list[Student]:
        """Return those to go on with: all, or the one whose run is in the very folder that is named.

        Raises:
            OptionError: it is nobody's.
        """
        if self.out is None or len(students) == 1 or not RunFolder(self.out).has_run():
            return students
        labels = [student.label for student in students]
        found = find_label(self.out.absolute().name, labels)
        if found is None:
            raise OptionError(
                f"{self.out} holds one run, and its name says none of {', '.join(name_folders(labels))}; name its "
                "--student, and its --variant, alone"
            )
        return [students[found]]

    def _was_evaluated(self, students: Sequence[Student]) -> bool:
        """Is there a run of each of the students that has an epoch with scores?"""
        runs = [RunFolder(folder) for folder in self._list_folders(students)]
        return all(any("top1" in row for row in run.read_metrics()) for run in runs)

    def _open_evaluation(self, stream: Stream, on_line: OnLine) -> Evaluation | None:
        teacher = CacheReader(self.teacher_cache) if self.teacher_cache else None
        try:
            evaluation = Evaluation.for_stream(stream, teacher, self.on_bad_image)
        except (DataError, NotFoundError) as error:
            on_line(f"note: training without evaluation: {error}")
            return None
        if newer := evaluation.describe_newer_images():
            on_line(f"note: {newer}")
        if evaluation.images.note:
            on_line(f"note: of the test images {evaluation.images.note}")
        return evaluation

    def _name_folders(self, students: Sequence[Student]) -> AbstractContextManager[Sequence[Path]]:
        labels = [student.label for student in students]
        if doubled := [label for label in labels if labels.count(label) > 1]:
            raise OptionError(f"{doubled[0]} would be trained twice; name each --student and --variant once")
        made: list[tuple[Any, ...]] = []
        for (model, variant), label in zip(students, labels, strict=True):
            made.append((model.name, variant.config, variant.build_objective().spec()))
            if (first := made.index(made[-1])) < len(made) - 1:
                raise OptionError(f"{labels[first]} and {label} are the same run; leave one --variant out")
        if self.out is None:
            return claim_folders(Path("runs"), name_folders(labels))
        return nullcontext(self._list_folders(students))

    def _list_folders(self, students: Sequence[Student]) -> list[Path]:
        if self.out is None:
            return []
        labels = [student.label for student in students]
        return find_folders(self.out, labels) if len(students) > 1 else [self.out]

    def _train_and_export(self, runs: Sequence[Run], *inputs: Any, **options: Any) -> list[RunReport]:
        errors: dict[str, LogitCacheError] = {}
        try:
            with self._advise_on_bad_images(runs):
                reports = train(runs, *inputs, **options)
        except StoppedError as error:
            raise StoppedError(f"{error}; {self._describe_going_on(runs)}") from error
        except StudentsError as error:
            errors, reports = error.errors, error.reports
        problem = "ended early"
        for number, report in enumerate(reports):
            try:
                if self.exports:
                    reports[number] = replace(report, exported=_export(report.out, self.exports))
            except LogitCacheError as error:
                errors[report.out] = error.with_prefix(report.out)
                problem = "ended early, or were not exported"
        if errors:
            raise StudentsError(errors, reports, len(runs), problem)
        return reports

    @contextmanager
    def _advise_on_bad_images(self, runs: Sequence[Run]) -> Iterator[None]:
        """Say of a training image that does not decode how to train without it, or with it as it was."""
        try:
            yield
        except DataError as error:
            message, skips = str(error), self.inputs.on_bad_image == "skip"
            if message.startswith(TEST_IMAGE) or "does not decode (" not in message:
                raise
            problem = message.removesuffix("; mend or remove it")
            if self.inputs.caches:
                advice = "it did when the cache was made: put it back as it was, or remove it and give --missing skip"
            elif any(RunFolder(run.out).has_progress() for run in runs):
                another = "another --out" if skips else "--on-bad-image skip and another --out"
                advice = f"put it back as it was, then {self._describe_going_on(runs)}; or begin again with {another}"
            elif skips:
                advice = "it did when it was looked at; the same command looks again, and leaves it out"
            else:
                advice = "mend or remove it, or leave it out with --on-bad-image skip"
            raise ImageError(f"{problem}; {advice}") from error

    def _describe_going_on(self, runs: Sequence[Run]) -> str:
        if self.out is None and len(runs) > 1:  # each has a folder of its own
            folders = ", ".join(str(run.out) for run in runs)
            return f"`logitcache train --out RUN --resume` goes on with each RUN of {folders}"
        out = self.out or runs[0].out
        return f"the same command with --out {out} and --resume goes on from there"


def _say_nothing(line: str) -> None:
    """Leave it to rank 0."""


def _look_at_images(evaluation: Evaluation, on_line: OnLine, should_stop: Callable[[], bool]) -> None:
    """Decode the test images once, where they are few; of more the first evaluation tells, and no epoch is lost."""
    if len(evaluation.images) <= FEW_TO_LOOK_AT and (bad := evaluation.find_bad_images(should_stop)):
        on_line(
            f"note: {len(bad):,} of {len(evaluation.images):,} test images do not decode and are left out of "
            f"the scores: {list_bad_images(explain_bad_images(evaluation.images, bad))}"
        )


def _announce(lines: Iterable[str], on_line: OnLine, on_progress: OnTrainEvent | None) -> OnTrainEvent:
    """Return a handler that says these lines when training begins, and passes every event on."""

    def handle(event: TrainEvent) -> None:
        if isinstance(event, TrainingBegun):
            for line in lines:
                on_line(line)
        if on_progress:
            on_progress(event)

    return handle


def _export(folder: str, formats: Iterable[str]) -> tuple[str, ...]:
    """Write a run's best weights in each format, beside them; returns the files."""
    trained = TrainedStudent.find(Path(folder))
    model = trained.build_model()
    files = {format: trained.file.with_suffix(f".{format}") for format in formats}
    return tuple(export_model(model, file, require_format(format)).path for format, file in files.items())
