"""What is said of training before its first step: by what settings, for how long, and what may not be expected."""

from collections.abc import Iterator, Sequence

from torch.nn.modules.batchnorm import _BatchNorm

from logitcache.models.build import NEW_HEAD, Model
from logitcache.store import seed_list
from logitcache.stream.stream import Stream
from logitcache.train.variants import Student
from logitcache.units import count

MANY_TIMES = 50  # that each view is seen, above which more seeds are worth naming
UNLEARNT = 2e-2  # share of first values in running statistics above which evaluation suffers


def describe_training(protocol: str, students: Sequence[Student], stream: Stream) -> Iterator[str]:
    """Say by what settings, in how many steps and from which seeds students are trained: a line for each length."""
    size, seeds = stream.config.batch_size * stream.config.world.size, list(stream.config.seeds)
    for epochs in dict.fromkeys(variant.config.epochs for _, variant in students):
        optimizers = _describe_optimizers([s for s in students if s.variant.config.epochs == epochs])
        steps = stream.steps(0)  # of another epoch it would take a seed decoded
        again = epochs * stream.config.views_per_image / len(seeds)
        views = f"{seed_list(seeds)}, few: each view comes {again:.0f} times"
        if again < MANY_TIMES:
            views = seed_list(seeds)
        if stream.teacher is None and len(seeds) >= epochs:
            views = "new views every epoch"
        yield (
            f"protocol {protocol}: {optimizers}, {count(epochs, 'epoch')} of {count(steps, 'step')} of {size}, "
            f"{steps * epochs:,} in all; {views}"
        )


def _describe_optimizers(students: Sequence[Student]) -> str:
    """Say which optimisers and rates there are; where students differ in them, whose each is."""
    names: dict[str, list[str]] = {}
    for model, variant in students:
        config = variant.config
        names.setdefault(f"{config.optimizer}, lr {config.lr:g} {config.schedule}", []).append(model.name)
    owners = {optimizer: list(dict.fromkeys(found)) for optimizer, found in names.items()}
    if len(set(map(tuple, owners.values()))) == 1:
        return " or ".join(owners)
    return " or ".join(f"{optimizer} ({', '.join(found)})" for optimizer, found in owners.items())


def list_notes(model: Model, steps: int, view_size: int, input_size: int) -> Iterator[str]:
    """Say what a user may not expect of a student that is trained for so many steps on views of that size."""
    if model.weights.endswith(NEW_HEAD):
        body = model.weights.removesuffix(NEW_HEAD)
        yield f"{model.name} begins with {body}, and a new head for {model.num_classes} classes"
    if note := model.describe_resizing(view_size, input_size):
        yield note
    norms = (m for m in model.module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats)
    slowest = min((m.momentum for m in norms if m.momentum is not None), default=1.0)
    if (1 - slowest) ** steps > UNLEARNT:
        yield (
            f"{model.name}'s batch norm forgets one part in {1 / slowest:.0f} a step, so that after {steps} steps "
            "its statistics, by which it is evaluated, still hold much of their first values: train for more steps, "
            "by more --epochs or a smaller --batch-size"
        )
