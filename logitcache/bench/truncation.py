"""How far k < C moves a loss from its value with all classes: the tables of docs/losses.md.

    python -m logitcache.bench.truncation

Teacher and student are small networks trained for the purpose on real pixels: two (or three) handwritten digits
side by side, of which there are 100 (or 1000) kinds, so that classes resemble each other as they do elsewhere.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitcache.bench.table import markdown
from logitcache.losses.objective import LOSSES
from logitcache.teacher.sparse import SparseTeacher
from logitcache.views.datasets import load_digits

KS = (8, 16, 32, 100)
TEMPERATURES = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Truncation:
    """A loss with k of C classes against the same with all: relative error of its value, cosine of its gradient."""

    name: str
    options: str
    temperature: float | None
    classes: int
    k: int
    error: float
    cosine: float


def logits_of_trained(
    images: Tensor, labels: Tensor, places: int, *, width: int, steps: int, batch: int = 512, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Train a network to read `places` digits side by side; return its logits for a fixed held-out batch.

    Args:
        images: (N, pixels) float in [0, 1].
        labels: (N,) int64, 0 to 9.
        places: how many digits; there are 10^places classes.
        width: of the hidden layer.
        steps: of Adam.
        batch: rows of a step, and of the batch returned.
        seed: of the network and of the training batches; the held-out batch is always the same.

    Returns:
        (batch, 10^places) logits; (batch,) classes.
    """
    held_out = torch.Generator().manual_seed(1234)
    generator = torch.Generator().manual_seed(seed)
    split = len(images) * 3 // 4

    def draw(low: int, high: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        picked = torch.randint(low, high, (batch, places), generator=source)
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
        pixels, value = draw(0, split, generator)
        loss = F.cross_entropy(network(pixels), value)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    pixels, value = draw(split, len(images), held_out)
    with torch.no_grad():
        return network(pixels), value


def measure_truncation(
    student: Tensor, teacher: Tensor, target: Tensor, variants: dict[str, list[dict[str, object]]]
) -> list[Truncation]:
    """Compare each loss at each k and temperature with itself at k = C.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits.
        target: (B,) int64.
        variants: for each loss the sets of options to try, temperature apart.
    """
    classes = teacher.shape[1]
    rows = []
    for name, choices in variants.items():
        softens = "temperature" in LOSSES[name].options()
        for options in choices:
            text = ", ".join(f"{key}={value}" for key, value in options.items())
            for temperature in TEMPERATURES if softens else (None,):
                extra = {"temperature": temperature} if softens else {}
                loss = _value_and_gradient(name, target, options | extra)
                value, gradient = loss(student, SparseTeacher.from_logits(teacher, classes))
                for k in KS:
                    if k < classes:
                        k_value, k_gradient = loss(student, SparseTeacher.from_logits(teacher, k))
                        error = abs(k_value - value) / max(abs(value), 1e-12)
                        cosine = F.cosine_similarity(k_gradient, gradient, dim=0).item()
                        rows.append(Truncation(name, text, temperature, classes, k, error, cosine))
    return rows


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
    "cmkd": [
        {},
        {"support": "listed"},
        {"difficulty": "fixed", "balance": 0.0},
        {"difficulty": "fixed", "balance": 0.0, "values": "logits"},
        {"difficulty": "fixed", "balance": 1.0},
        {"difficulty": "fixed", "balance": 1.0, "support": "listed"},
    ],
    "dist": [{"gamma": 0.0}, {"beta": 0.0}],
    "dkd": [{}],
    "nkd": [{}],
    "ttm": [{}],
    "wttm": [{}],
    "pld": [{}],
    "logit_std": [{}],
    "kendall": [{}],
    "mse": [{}, {"centred": True}],
    "sinkd": [{}],
    "taid": [{}],
    "dhkd": [{}],
}


def truncation_table(rows: list[Truncation]) -> str:
    """Write rows as a Markdown table: per k the value's relative error and the gradient's cosine."""
    ks = sorted({row.k for row in rows})
    cells = {(r.name, r.options, r.temperature, r.k): f"{r.error:.1%} / {r.cosine:.3f}" for r in rows}
    lines = []
    for name, options, temperature in dict.fromkeys((r.name, r.options, r.temperature) for r in rows):
        label = f"`{name}`" + (f" {options}" if options else "")
        values = [cells[name, options, temperature, k] for k in ks]
        lines.append([label, "–" if temperature is None else f"{temperature:g}", *values])
    return markdown(["loss", "T", *(f"k = {k}" for k in ks)], lines)


def main() -> None:
    """Print the tables for 100 and 1000 classes."""
    data = load_digits("train")
    images, labels = data.images.flatten(1) / 255, torch.from_numpy(data.labels)
    for places, steps in ((2, 1000), (3, 1500)):
        teacher, target = logits_of_trained(images, labels, places, width=512, steps=steps)
        student, _ = logits_of_trained(images, labels, places, width=64, steps=steps // 4, seed=1)
        right = [(logits.argmax(1) == target).float().mean().item() for logits in (teacher, student)]
        print(f"\nC = {10**places}: teacher {right[0]:.1%} right, student {right[1]:.1%}\n")
        with warnings.catch_warnings(action="ignore"):  # that some need every class is what the table shows
            rows = measure_truncation(student[:256], teacher[:256], target[:256], VARIANTS)
        print(truncation_table(rows))


if __name__ == "__main__":
    main()
