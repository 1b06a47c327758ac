"""``logitcache train``: stage two, students from a cache."""

from pathlib import Path
from typing import Annotated

import typer

from logitcache.errors import StudentsError

from . import stream_options as on
from . import train_options as by
from .exit_codes import stopped_gently
from .progress import progress
from .shared_options import Device, Json, PrecisionName, StudentSize, Workers
from .terminal import say
from .train_output import reporter, show_runs


def train(
    context: typer.Context,
    student: Annotated[
        list[str], typer.Option(help="resnet18, wrn_16_2, timm:NAME …; several share one pass.")
    ],
    cache: on.Cache = None,
    loss: Annotated[str, typer.Option(help="cmkd, kd, ce …, or a sum: 'kd:0.5+cmkd:1'.")] = "cmkd",
    variant: Annotated[
        list[str] | None,
        typer.Option(help="What a student is taught otherwise, 'loss=kd,lr=0.1'; one for each, in one pass."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/STUDENT-LOSS-N by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints within an epoch.")
    ] = 300.0,
    ce_weight: Annotated[float, typer.Option(help="Weight of cross-entropy.")] = 1.0,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing of cross-entropy.")] = 0.0,
    weights: Annotated[str, typer.Option(help="First weights: random, default, or a file.")] = "random",
    input_size: StudentSize = 0,
    seed: Annotated[int, typer.Option(help="Of first weights, order of the data, and dropout.")] = 0,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Write the best weights as onnx or torchscript too; may be given twice."),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Curves in the run folders.")] = False,
    mix_weights: on.MixWeights = None,
    mix_space: on.MixSpaceName = "probability",
    data: on.Data = "auto",
    recipe: on.Recipe = "auto",
    seeds: on.Seeds = "auto",
    seed_order: on.SeedOrderName = "mod",
    views_per_image: on.ViewsPerImage = 1,
    fraction: on.Fraction = 1.0,
    samples: on.Samples = None,
    allow_drift: on.AllowDrift = False,
    spool_dir: on.SpoolDir = None,
    spool_limit: on.SpoolLimit = "50GB",
    teacher_cache: on.TeacherCache = None,
    protocol: by.ProtocolName = "digits",
    epochs: by.Epochs = None,
    batch_size: by.BatchSize = None,
    lr: by.Lr = None,
    schedule: by.Schedule = None,
    milestones: by.Milestones = None,
    gamma: by.Gamma = None,
    warmup_epochs: by.WarmupEpochs = None,
    optimizer: by.Optimizer = None,
    momentum: by.Momentum = None,
    nesterov: by.Nesterov = None,
    betas: by.Betas = None,
    weight_decay: by.WeightDecay = None,
    decay_all: by.DecayAll = None,
    clip_norm: by.ClipNorm = None,
    ema: by.Ema = None,
    accumulate: by.Accumulate = None,
    channels_last: by.ChannelsLast = None,
    compile: by.Compile = None,
    grad_checkpointing: by.GradCheckpointing = None,
    sync_batch_norm: by.SyncBatchNorm = None,
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
    from logitcache.distributed import World
    from logitcache.train.config import protocol_named
    from logitcache.train.launch import Study
    from logitcache.train.tensorboard import Board

    settings = protocol_named(protocol)
    lessons = by.lessons(context, settings.config)
    needs_teacher = any(lesson.objective.needs_teacher for lesson in lessons)
    supply = on.supply(context.params, needs_teacher, settings.batch_size)
    study = Study(
        tuple(student), lessons, supply, out, weights, teacher_cache, tuple(export or ()), input_size
    )
    world = World.from_environment()
    try:
        first = "opening images and students"
        with stopped_gently() as stop, progress("train", "steps", first=first) as advance:
            told = reporter(advance)
            reports = study.conduct(
                world,
                say,
                resume=resume,
                checkpoint_every=checkpoint_every,
                should_stop=stop,
                on_progress=Board(told) if tensorboard else told,
            )
    except StudentsError as error:
        show_runs(error.reports, as_json=json)
        raise
    if world.rank == 0:
        show_runs(reports, as_json=json)
