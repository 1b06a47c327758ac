"""``logitcache train``: stage two, students from a cache."""

import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from logitcache.errors import StudentsError

from . import stream_options, train_options
from .exit_codes import catch_stop_signals
from .progress import progress
from .recorded_run import RECORDED, advise_own_options, resume_as_recorded, write_words
from .shared_options import (
    OUTPUT,
    STUDENT,
    Device,
    Json,
    PrecisionName,
    StudentInputSize,
    Workers,
    advise_skip,
    is_given,
    parse_output_path,
)
from .terminal import say
from .train_output import reporter, show_runs


def train(
    context: typer.Context,
    student: Annotated[
        list[str] | None,
        typer.Option(help="resnet18, wrn_16_2, timm:NAME …; several share one pass.", metavar="NAME"),
    ] = None,
    caches: stream_options.Caches = None,
    loss: Annotated[
        str,
        typer.Option(
            help="cmkd, kd, ce …, or a sum: 'kd:0.5+cmkd:1'; auto: cmkd, or kd of two classes.",
            metavar="LOSS",
        ),
    ] = "auto",
    data: stream_options.Data = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; runs/STUDENT-LOSS-N by default.", parser=parse_output_path, metavar="PATH"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, by its own options.")
    ] = False,
    epochs: train_options.Epochs = None,
    batch_size: train_options.BatchSize = None,
    lr: train_options.Lr = None,
    seed: Annotated[int, typer.Option(help="Of first weights, order of the data, and dropout.")] = 0,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Trains students once more, by 'loss=kd,lr=0.1', or one by 'student=NAME,lr=0.01'.",
            rich_help_panel=STUDENT,
            metavar="SETTINGS",
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            help="Train each so often, by seed, seed + 1 …: mean ± standard deviation.",
            rich_help_panel=STUDENT,
        ),
    ] = 1,
    weights: Annotated[
        str,
        typer.Option(
            help="First weights: random, default, or a file.", rich_help_panel=STUDENT, metavar="NAME"
        ),
    ] = "random",
    input_size: StudentInputSize = 0,
    ce_weight: Annotated[float, typer.Option(help="Weight of cross-entropy.", rich_help_panel=STUDENT)] = 1.0,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing of cross-entropy.", rich_help_panel=STUDENT)
    ] = 0.0,
    recipe: stream_options.Recipe = "auto",
    background: stream_options.Background = None,
    seeds: stream_options.Seeds = "auto",
    seed_order: stream_options.SeedOrderName = "mod",
    views_per_image: stream_options.ViewsPerImage = 1,
    fraction: stream_options.Fraction = 1.0,
    samples_file: stream_options.SamplesFile = None,
    mix_weights: stream_options.MixWeights = None,
    mix_space: stream_options.MixSpaceName = "probability",
    allow_drift: stream_options.AllowDrift = False,
    missing: stream_options.MissingImages = "error",
    spool_folder: stream_options.SpoolFolder = None,
    spool_limit: stream_options.SpoolLimit = "50GB",
    protocol: train_options.ProtocolName = "auto",
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
    teacher_cache: stream_options.TeacherCache = None,
    on_bad_image: Annotated[
        Literal["error", "skip"],
        typer.Option(
            help="Of a test image, or without a cache any, that does not decode: stop, or leave it out.",
            rich_help_panel=OUTPUT,
        ),
    ] = "error",
    checkpoint_every: Annotated[
        float,
        typer.Option(
            help="Seconds between checkpoints within an epoch.", rich_help_panel=OUTPUT, metavar="SECONDS"
        ),
    ] = 300.0,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="Write the best weights as onnx or torchscript too; may be given twice.",
            rich_help_panel=OUTPUT,
            metavar="FORMAT",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves in the run folders.", rich_help_panel=OUTPUT)
    ] = False,
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
    if RECORDED not in context.meta and not (student and (is_given(context, "student") or not resume)):
        resume_as_recorded(context, out, resume)
        return
    assert student
    from logitcache.distributed import World
    from logitcache.train.evaluation import TEST_IMAGE
    from logitcache.train.events import TrainEvent, TrainingBegun
    from logitcache.train.launch import TrainJob
    from logitcache.train.tensorboard import CurveWriter

    variants = train_options.read_variants(context)
    with advise_own_options(out if resume and RECORDED not in context.meta else None):
        inputs = stream_options.read_inputs(context.params, variants.needs_teacher(student))
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
        ("logitcache", "train", *write_words(context)),
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
