"""``logitcache train``: stage two, students from a cache."""

import contextlib
import shlex
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.errors import OptionError, StudentsError

from . import stream_options, train_options
from .exit_codes import catch_stop_signals
from .progress import progress
from .shared_options import (
    Device,
    Json,
    OnBadTestImage,
    PrecisionName,
    StudentInputSize,
    Workers,
    advise_skip,
    parse_output_path,
)
from .terminal import say
from .train_output import reporter, show_runs

RECORDED = "logitcache.recorded"  # key in a context: the run whose options are gone on with
PATHS = ("out", "caches", "teacher_cache", "samples_file", "spool_folder")  # of options


def train(
    context: typer.Context,
    student: Annotated[
        list[str] | None, typer.Option(help="resnet18, wrn_16_2, timm:NAME …; several share one pass.")
    ] = None,
    caches: stream_options.Caches = None,
    loss: Annotated[str, typer.Option(help="cmkd, kd, ce …, or a sum: 'kd:0.5+cmkd:1'.")] = "cmkd",
    variant: Annotated[
        list[str] | None,
        typer.Option(help="What a student is taught otherwise, 'loss=kd,lr=0.1'; one for each, in one pass."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; runs/STUDENT-LOSS-N by default.", parser=parse_output_path, metavar="PATH"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, by its own options.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints within an epoch.")
    ] = 300.0,
    ce_weight: Annotated[float, typer.Option(help="Weight of cross-entropy.")] = 1.0,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing of cross-entropy.")] = 0.0,
    weights: Annotated[str, typer.Option(help="First weights: random, default, or a file.")] = "random",
    input_size: StudentInputSize = 0,
    seed: Annotated[int, typer.Option(help="Of first weights, order of the data, and dropout.")] = 0,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Write the best weights as onnx or torchscript too; may be given twice."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Curves in the run folders.")] = False,
    mix_weights: stream_options.MixWeights = None,
    mix_space: stream_options.MixSpaceName = "probability",
    data: stream_options.Data = "auto",
    recipe: stream_options.Recipe = "auto",
    seeds: stream_options.Seeds = "auto",
    seed_order: stream_options.SeedOrderName = "mod",
    views_per_image: stream_options.ViewsPerImage = 1,
    fraction: stream_options.Fraction = 1.0,
    samples_file: stream_options.SamplesFile = None,
    allow_drift: stream_options.AllowDrift = False,
    spool_folder: stream_options.SpoolFolder = None,
    spool_limit: stream_options.SpoolLimit = "50GB",
    teacher_cache: stream_options.TeacherCache = None,
    protocol: train_options.ProtocolName = "auto",
    on_bad_image: OnBadTestImage = "error",
    epochs: train_options.Epochs = None,
    batch_size: train_options.BatchSize = None,
    lr: train_options.Lr = None,
    schedule: train_options.Schedule = None,
    milestones: train_options.Milestones = None,
    gamma: train_options.Gamma = None,
    warmup_epochs: train_options.WarmupEpochs = None,
    optimizer: train_options.Optimizer = None,
    momentum: train_options.Momentum = None,
    nesterov: train_options.Nesterov = None,
    betas: train_options.Betas = None,
    weight_decay: train_options.WeightDecay = None,
    decay_all: train_options.DecayAll = None,
    clip_norm: train_options.ClipNorm = None,
    ema: train_options.Ema = None,
    accumulate: train_options.Accumulate = None,
    channels_last: train_options.ChannelsLast = None,
    compile: train_options.Compile = None,
    grad_checkpointing: train_options.GradCheckpointing = None,
    sync_batch_norm: train_options.SyncBatchNorm = None,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    json: Json = False,
) -> None:
    """Train students from a cache, without the teacher; with --loss ce, from labels alone.

    Several GPUs of one machine share the batches under torchrun:
    torchrun --nproc-per-node N -m logitcache_cli train …

    Example: logitcache train --student resnet18 --cache caches/vit_l-digits.zarr --loss cmkd
    """
    if RECORDED not in context.meta and not (student and (_is_given(context, "student") or not resume)):
        _resume_as_recorded(context, out, resume)
        return
    assert student
    from logitcache.distributed import World
    from logitcache.train.evaluation import TEST_IMAGE
    from logitcache.train.events import TrainEvent, TrainingBegun
    from logitcache.train.launch import TrainJob
    from logitcache.train.tensorboard import CurveWriter

    variants = train_options.read_variants(context)
    inputs = stream_options.read_inputs(context.params, variants.needs_teacher)
    job = TrainJob(
        tuple(student),
        variants,
        inputs,
        out,
        weights,
        input_size,
        teacher_cache,
        tuple(export or ()),
        on_bad_image,
        ("logitcache", "train", *_write_words(context)),
    )
    world = World.from_environment()
    begun = threading.Event()
    if world.rank:  # only rank 0 is told when training begins
        begun.set()
    try:
        first = "opening images and students"
        with (
            advise_skip(on_bad_image, TEST_IMAGE),
            catch_stop_signals(begun.is_set) as stop,
            progress("train", "steps", first=first) as advance,
        ):
            report = reporter(advance)
            report = CurveWriter(report) if tensorboard else report

            def on_progress(event: TrainEvent) -> None:
                if isinstance(event, TrainingBegun):
                    begun.set()
                report(event)

            reports = job.run(
                world,
                say,
                resume=resume,
                checkpoint_every=checkpoint_every,
                should_stop=stop,
                on_progress=on_progress,
            )
    except StudentsError as error:
        show_runs(error.reports, as_json=json)
        raise
    if world.rank == 0:
        show_runs(reports, as_json=json)


def _resume_as_recorded(context: typer.Context, out: Path | None, resume: bool) -> None:
    """Go on with a run by the options that its config.json keeps, but for those given now, in the folder it names."""
    from logitcache.distributed import World
    from logitcache.train.trained import list_runs, read_command

    if out is None or not resume:
        raise OptionError("name a network with --student, or go on with a run by --out RUN --resume")
    words, folder, run = read_command(out)
    here = Path.cwd()
    elsewhere = folder is not None and folder != here
    given = {
        name: _see_from_elsewhere(name, value) if elsewhere else value
        for name, value in context.params.items()
        if _is_given(context, name)
    }
    context.meta[RECORDED] = run
    with (
        contextlib.chdir(folder if folder is not None else here),
        context.command.make_context(context.info_name, words, parent=context.parent) as again,
    ):
        options = again.params
        together = run == out or options["out"] is not None
        for name, value in given.items():
            options[name] = value
            again.set_parameter_source(name, context.get_parameter_source(name))  # type: ignore[arg-type]
        _require_own_names(again, f"{run}/config.json", elsewhere)
        if not options["student"]:
            raise OptionError(f"{run} was begun by a command that names no --student; give its options again")
        if not together:  # each is in a folder of its own
            among = len(list_runs(here / out))
            raise OptionError(f"no run in {out}; name one with --out, such as {run}, of the {among} there")
        if World.from_environment().rank == 0:
            there = f" in {folder}" if elsewhere else ""
            say(f"goes on{there} with: logitcache train {shlex.join(_write_words(again))}")
        again.command.invoke(again)


def _require_own_names(context: Any, where: str, elsewhere: bool) -> None:
    """Insist that code which a run names is the user's own: it lies in the folder from which they call."""
    from logitcache.plugins import require_own

    options = context.params
    students = [name for name in options["student"] or () if not name.startswith("timm:")]
    named = [options["data"], options["recipe"], *students]
    require_own(where, *named)
    code = [
        name for name in named if ":" in name and not name.startswith(("imagefolder:", "folder:", "cifar"))
    ]
    if elsewhere and code:
        raise OptionError(
            f"{where} names the code {code[0]} of {Path.cwd()}, which is not run because a file says so; "
            "go there, and give the same command"
        )


def _is_given(context: typer.Context, name: str) -> bool:
    """Was an option given on the command line?"""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _see_from_elsewhere(name: str, value: Any) -> Any:
    """Return an option's value with its paths as they are seen from any folder; names and URLs as they are."""
    from logitcache.paths import expand_home

    if isinstance(value, list | tuple):
        return [_see_from_elsewhere(name, each) for each in value]
    if name in PATHS and "://" not in str(value):
        return type(value)(expand_home(value).absolute())
    if name == "weights" and expand_home(value).is_file():
        return str(expand_home(value).absolute())
    if name == "data" and value.startswith(("imagefolder:", "folder:")):
        kind, _, path = value.partition(":")
        return f"{kind}:{expand_home(path).absolute()}"
    return value


def _write_words(context: Any) -> list[str]:
    """Write the options that are not left at their defaults as words of a command line."""
    from logitcache.paths import write_path

    words: list[str] = []
    for option in context.command.params:
        name, value = str(option.name), context.params.get(str(option.name))
        source = context.get_parameter_source(name)
        if value is None or name in ("resume", "json") or source is None or source.name == "DEFAULT":
            continue
        flag = max(option.opts, key=len)
        if isinstance(value, bool):
            words.append(flag if value else max(option.secondary_opts, key=len, default=""))
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [flag, write_path(each) if isinstance(each, Path) else str(each)]
    return [word for word in words if word]
