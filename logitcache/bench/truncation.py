"""How far k < C moves a loss from its value with all classes, the tail even or completed: tables of docs/losses.md.

    python -m logitcache.bench.truncation

Teacher and student are small networks trained for the purpose on real pixels: two (or three) handwritten digits
side by side, of which there are 100 (or 1000) kinds, so that classes resemble each other as they do elsewhere. Class
statistics are those of other views of the images that the teacher was trained on, as in a dump.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitcache.bench.table import markdown
from logitcache.losses.objective import LOSSES
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import load_digits

KS = (4, 8, 16)
TEMPERATURES = (1.0, 4.0)
SEEN = 4096  # views that the class statistics are of
ROWS = 256  # that losses are compared on


class Distance(NamedTuple):
    """Relative error of a loss's value, cosine of its gradient, against the same loss with all classes listed."""

    error: float
    cosine: float

    def __str__(self) -> str:
        return f"{self.error:.1%} / {self.cosine:.3f}"


@dataclass(frozen=True)
class Truncation:
    """A loss with k of C classes listed: how far it is from itself with all, the tail even, and completed."""

    name: str
    options: str
    temperature: float | None
    k: int
    even: Distance
    completed: Distance


class Trained(NamedTuple):
    """What a trained network answers: (batch, C) logits of held-out images, (batch,) their classes, (seen, C) logits
    of views of the images that it was trained on."""

    logits: Tensor
    target: Tensor
    seen: Tensor


def logits_of_trained(
    images: Tensor, labels: Tensor, places: int, *, width: int, steps: int, batch: int = 512, seed: int = 0
) -> Trained:
    """Train a network to read `places` digits side by side, of 10^places classes.

    Args:
        images: (N, pixels) float in [0, 1].
        labels: (N,) int64, 0 to 9.
        places: how many digits.
        width: of the hidden layer.
        steps: of Adam.
        batch: rows of a step, and of the batch returned.
        seed: of the network and of the training batches; the held-out batch is always the same.
    """
    held_out, seen, generator = (torch.Generator().manual_seed(s) for s in (1234, 4321, seed))
    split = len(images) * 3 // 4

    def draw(low: int, high: int, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        picked = torch.randint(low, high, (count, places), generator=source)
        value = (labels[picked] * 10 ** torch.arange(places)).sum(1)
        pixels = images[picked].flatten(1)
        return pixels + 0.2 * torch.randn(pixels.shape, generator=source), value

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(images.shape[1] * places, width), nn.ReLU(), nn.Linear(width, 10**places)
        )
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        pixels, value = draw(0, split, batch, generator)
        loss = F.cross_entropy(network(pixels), value)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    pixels, value = draw(split, len(images), batch, held_out)
    with torch.no_grad():
        return Trained(network(pixels), value, network(draw(0, split, SEEN, seen)[0]))


def measure_truncation(
    student: Tensor, teacher: Trained, variants: dict[str, list[dict[str, object]]]
) -> list[Truncation]:
    """Compare each loss at each k and temperature with itself at k = C.

    Args:
        student: (B, C) logits of the teacher's images.
        teacher: what it answers.
        variants: for each loss the sets of options to try, temperature apart.
    """
    completion = Completion.of(fit_statistics(teacher.seen))
    rows = []
    for name, choices in variants.items():
        softens = "temperature" in LOSSES[name].options()
        for options in choices:
            text = ", ".join(f"{key}={value}" for key, value in options.items())
            for temperature in TEMPERATURES if softens else (None,):
                extra = {"temperature": temperature} if softens else {}
                distance = _distance_of(name, student, teacher, options | extra)
                rows += [
                    Truncation(name, text, temperature, k, distance(k, None), distance(k, completion))
                    for k in KS
                ]
    return rows


def _distance_of(
    name: str, student: Tensor, teacher: Trained, options: dict[str, object]
) -> Callable[[int, Completion | None], Distance]:
    """Return how far a loss is from itself with all classes, as a function of k and of what completes the tail."""
    loss = _value_and_gradient(name, teacher.target, options)
    classes = teacher.logits.shape[1]
    value, gradient = loss(student, SparseTeacher.from_logits(teacher.logits, classes))

    def distance(k: int, completion: Completion | None) -> Distance:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of an even tail; what it does is what the table shows
            found, direction = loss(student, SparseTeacher.from_logits(teacher.logits, k, completion))
        error = abs(found - value) / max(abs(value), 1e-12)
        return Distance(error, F.cosine_similarity(direction, gradient, dim=0).item())

    return distance


def _value_and_gradient(
    name: str, target: Tensor, options: dict[str, object]
) -> Callable[[Tensor, SparseTeacher], tuple[float, Tensor]]:
    def loss(student: Tensor, teacher: SparseTeacher) -> tuple[float, Tensor]:
        leaf = student.clone()
        if LOSSES[name].heads == 2:
            leaf = torch.stack([leaf, leaf], 1)
        leaf.requires_grad_()
        value = LOSSES[name].function(leaf, teacher, target, **options)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.flatten()

    return loss


VARIANTS: dict[str, list[dict[str, object]]] = {
    "kd": [{}],
    "reverse_kl": [{}],
    "js": [{}],
    "bdkd": [{}],
    "erkd": [{}],
    "cmkd": [
        {},
        {"values": "logits"},
        {"support": "listed"},
        {"difficulty": "fixed", "balance": 0.0},
        {"difficulty": "fixed", "balance": 1.0},
    ],
    "dist": [{}],
    "dkd": [{}],
    "nkd": [{}],
    "ttm": [{}],
    "wttm": [{}],
    "pld": [{}],
    "logit_std": [{}],
    "mse": [{}],
    "sinkd": [{}],
    "taid": [{}],
    "dhkd": [{}],
}


def truncation_table(rows: list[Truncation]) -> str:
    """Write rows as a Markdown table: error and cosine by k, with an even tail and with a completed one."""
    ks = sorted({row.k for row in rows})
    cells = {(r.name, r.options, r.temperature, r.k): [str(r.even), str(r.completed)] for r in rows}
    lines = []
    for name, options, temperature in dict.fromkeys((r.name, r.options, r.temperature) for r in rows):
        label = f"`{name}`" + (f" {options}" if options else "")
        values = [cell for k in ks for cell in cells[name, options, temperature, k]]
        lines.append([label, "–" if temperature is None else f"{temperature:g}", *values])
    return markdown(["loss", "T", *(f"k = {k}, {tail}" for k in ks for tail in ("even", "completed"))], lines)


def gradient_sizes(students: Sequence[Tensor], teacher: Trained, k: int) -> dict[str, tuple[float, ...]]:
    """Return each loss's gradient norm, at its default options and weight 1, over that of cross-entropy.

    Args:
        students: (B, C) logits of the teacher's images, of each student.
        teacher: what it answers.
        k: logits of it that are listed, its tail completed.
    """
    completion = Completion.of(fit_statistics(teacher.seen))
    sparse = SparseTeacher.from_logits(teacher.logits, k, completion)
    sizes: dict[str, list[float]] = {name: [] for name in LOSSES}
    for student in students:
        leaf = student.clone().requires_grad_()
        (of_ce,) = torch.autograd.grad(F.cross_entropy(leaf, teacher.target), leaf)
        for name in LOSSES:
            _, gradient = _value_and_gradient(name, teacher.target, {})(student, sparse)
            sizes[name].append((gradient.norm() / of_ce.norm()).item())
    return {name: tuple(found) for name, found in sizes.items()}


def main() -> None:
    """Print the tables for 100 and 1000 classes."""
    data = load_digits("train")
    images, labels = data.images.flatten(1) / 255, torch.from_numpy(data.labels)
    sizes = []
    for places, steps in ((2, 1000), (3, 1500)):
        teacher = logits_of_trained(images, labels, places, width=512, steps=steps)
        half_trained, trained = (
            logits_of_trained(images, labels, places, width=64, steps=steps // part, seed=1)
            for part in (4, 1)
        )
        right = [
            f"{(n.logits.argmax(1) == n.target).float().mean():.1%}" for n in (teacher, half_trained, trained)
        ]
        print(
            f"\nC = {10**places}: right are, of the teacher's answers, {right[0]}, of the student's {right[1]},"
        )
        print(f"and {right[2]} once it is trained.\n")
        few = Trained(teacher.logits[:ROWS], teacher.target[:ROWS], teacher.seen)
        print(truncation_table(measure_truncation(half_trained.logits[:ROWS], few, VARIANTS)), flush=True)
        sizes.append(gradient_sizes([half_trained.logits[:ROWS], trained.logits[:ROWS]], few, KS[1]))
    rows = [[f"`{name}`", *(f"{x:.2g}" for found in sizes for x in found[name])] for name in LOSSES]
    columns = [f"C = {c}, {student}" for c in (100, 1000) for student in ("half-trained", "trained")]
    print(f"\nGradient, of that of cross-entropy\n\n{markdown(['loss', *columns], rows)}")


if __name__ == "__main__":
    main()
