"""``logitcache train``: stage two, students from a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from logitcache.errors import StudentsError

from .options import (
    Device,
    Json,
    PrecisionName,
    Workers,
    parse_numbers,
    parse_seeds,
    parse_size,
    the_only_cache,
)
from .terminal import Advance, progress, say, show, stopped_gently
from .training import (
    Accumulate,
    BatchSize,
    Betas,
    ChannelsLast,
    ClipNorm,
    Compile,
    DecayAll,
    Ema,
    Epochs,
    Fraction,
    Gamma,
    GradCheckpointing,
    Lr,
    Milestones,
    Momentum,
    Nesterov,
    Optimizer,
    ProtocolName,
    Samples,
    Schedule,
    SeedOrderName,
    SyncBatchNorm,
    ViewsPerImage,
    WarmupEpochs,
    WeightDecay,
    given,
)

if TYPE_CHECKING:
    from logitcache.train import TrainReport


def train(
    context: typer.Context,
    student: Annotated[
        list[str], typer.Option(help="resnet18, wrn_16_2, timm:NAME …; several share one pass.")
    ],
    cache: Annotated[
        list[str] | None,
        typer.Option(help="Cache, path or URL; by default the only one in caches/. Several are an ensemble."),
    ] = None,
    mix_weights: Annotated[
        str | None, typer.Option(help="Weights of an ensemble's caches, such as 2,1; even by default.")
    ] = None,
    mix_space: Annotated[
        Literal["probability", "logit"], typer.Option(help="What an ensemble averages.")
    ] = "probability",
    loss: Annotated[str, typer.Option(help="cmkd, kd, ce …, or a sum: 'kd:0.5+cmkd:1'.")] = "cmkd",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Loss and settings of a further student, 'loss=kd,lr=0.1'; several share one pass."
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="Images; by default those of the cache, else digits.")] = "auto",
    seeds: Annotated[str, typer.Option(help="Augmentation seeds; all complete ones by default.")] = "auto",
    recipe: Annotated[str, typer.Option(help="How views are made, for training without a cache.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/STUDENT-LOSS-N by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints within an epoch.")
    ] = 300.0,
    ce_weight: Annotated[float, typer.Option(help="Weight of cross-entropy.")] = 1.0,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing of cross-entropy.")] = 0.0,
    weights: Annotated[str, typer.Option(help="First weights: random, default, or a file.")] = "random",
    seed: Annotated[int, typer.Option(help="Of first weights, order of the data, and dropout.")] = 0,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Train although views differ.")] = False,
    spool_dir: Annotated[
        Path | None, typer.Option(help="Folder of decoded seeds, for all runs here.")
    ] = None,
    spool_limit: Annotated[str, typer.Option(help="What that folder may hold, such as 50GB.")] = "50GB",
    seed_order: SeedOrderName = "mod",
    views_per_image: ViewsPerImage = 1,
    fraction: Fraction = 1.0,
    samples: Samples = None,
    protocol: ProtocolName = "digits",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    schedule: Schedule = None,
    milestones: Milestones = None,
    gamma: Gamma = None,
    warmup_epochs: WarmupEpochs = None,
    optimizer: Optimizer = None,
    momentum: Momentum = None,
    nesterov: Nesterov = None,
    betas: Betas = None,
    weight_decay: WeightDecay = None,
    decay_all: DecayAll = None,
    clip_norm: ClipNorm = None,
    ema: Ema = None,
    accumulate: Accumulate = None,
    channels_last: ChannelsLast = None,
    compile: Compile = None,
    grad_checkpointing: GradCheckpointing = None,
    sync_batch_norm: SyncBatchNorm = None,
    precision: PrecisionName = "auto",
    device: Device = "auto",
    workers: Workers = -1,
    teacher_cache: Annotated[
        str | None, typer.Option(help="Cache of `dump --split test`: agreement with the teacher by epoch.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Curves in the run folders.")] = False,
    json: Json = False,
) -> None:
    """Train students from a cache, without the teacher; with --loss ce, from labels alone.

    Several GPUs of one machine share the batches under torchrun:
    torchrun --nproc-per-node N -m logitcache_cli train …

    Example: logitcache train --student resnet18 --cache caches/vit_l-digits.zarr --loss cmkd
    """
    from logitcache.board import Board
    from logitcache.lessons import Lesson
    from logitcache.protocols import protocol_named
    from logitcache.study import Study, Supply
    from logitcache.world import World

    settings = protocol_named(protocol)
    lesson = Lesson(loss, settings.config.changed(given(context.params)), ce_weight, label_smoothing)
    lessons = tuple(lesson.varied(text) for text in variant or ()) or (lesson,)
    needs_teacher = any(lesson.objective.needs_teacher for lesson in lessons)
    supply = Supply(
        caches=tuple(cache or ([the_only_cache()] if needs_teacher else [])),
        mix_weights=parse_numbers(mix_weights) if mix_weights else (),
        mix_space=mix_space,
        data=data,
        recipe=recipe,
        seeds=parse_seeds(seeds) if seeds != "auto" else (),
        seed_order=seed_order,
        views_per_image=views_per_image,
        fraction=fraction,
        samples=samples,
        batch_size=settings.batch_size if batch_size is None else batch_size,
        order=seed,
        device=device,
        workers=workers,
        allow_drift=allow_drift,
        spool_folder=spool_dir,
        spool_limit=parse_size(spool_limit),
    )
    study = Study(tuple(student), lessons, supply, out, weights, teacher_cache)
    world = World.here()
    try:
        with stopped_gently() as stop, progress("train", "steps", shown=world.rank == 0) as advance:
            reporter = _reporter(advance)
            reports = study.conduct(
                world,
                say,
                resume=resume,
                checkpoint_every=checkpoint_every,
                should_stop=stop,
                on_progress=Board(reporter) if tensorboard else reporter,
            )
    except StudentsError as error:
        _show(error.reports, as_json=json)
        raise
    if world.rank == 0:
        _show(reports, as_json=json)


def _show(reports: "Sequence[TrainReport]", *, as_json: bool) -> None:
    rows = [row for report in reports for row in _rows(report)]
    show({"runs": [report.to_dict() for report in reports]}, rows, as_json=as_json)


def _reporter(advance: Advance) -> Any:
    def report(event: dict[str, Any]) -> None:
        if "error" in event:
            say(f"{event['run']}: ended early: {event['error']}")
        elif "run" in event:
            score = f", top-1 {100 * event['top1']:.1f} %" if "top1" in event else ""
            done = f"epoch {event['epoch'] + 1} of {event['epochs']}"
            say(f"{event['run']}: {done}, loss {event['loss']:.4f}{score}")
        else:
            done = event["epoch"] * event["steps"] + event["step"]
            losses = "".join(f", {name} {value:.3f}" for name, value in event["losses"].items())
            advance(
                done, event["epochs"] * event["steps"], f"{event['views_per_second']:,.0f} views/s{losses}"
            )

    return report


def _rows(done: "TrainReport") -> list[tuple[str, str]]:
    score = (
        ""
        if done.top1 is None
        else f", top-1 {100 * done.top1:.1f} % (best {100 * (done.best_top1 or 0):.1f} %)"
    )
    return [
        ("run", done.out),
        ("student", f"{done.student}, {done.parameters:,} parameters"),
        ("result", f"loss {done.loss:.4f}{score} after {done.epochs} epochs"),
        ("time", f"{done.seconds:.1f} s, {done.views_per_second:,.0f} views/s"),
    ]
