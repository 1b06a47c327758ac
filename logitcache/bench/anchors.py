"""What else the same bytes could keep of a teacher: the tables of docs/completion.md.

    python -m logitcache.bench.anchors

On the letters that ship, with the contest's teacher and student: how far each record is from the teacher, how far
the gradient of KD from it is from that with all logits, and what a student learns from it. Bytes are counted before
compression: ids 2, counts 1, numbers 2 but for those that are said to be int8.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitcache.bench.contest import (
    CONTESTS,
    Contest,
    ContestConfig,
    Entry,
)
from logitcache.bench.synthetic import RecordedLogits, SyntheticLogits, TeacherLogits
from logitcache.bench.table import markdown
from logitcache.bench.tasks import Task, letters_task, rare_letters_task
from logitcache.dump.calibration import TEMPERATURES, sample_logits
from logitcache.dump.pipeline import load_pipeline
from logitcache.dump.settings import DumpConfig
from logitcache.losses.objective import Objective
from logitcache.models.forward import ViewModel
from logitcache.stream.stream import Stream
from logitcache.teacher.completion import Completion, fit_statistics
from logitcache.teacher.live import LiveTeacher
from logitcache.teacher.sparse import SparseTeacher
from logitcache.train.config import TrainConfig
from logitcache.train.learner import Run
from logitcache.train.loop import train
from logitcache.views.keyed_views import KeyedViews

VIEWS, SEEDS = 5120, 5
FEWER = (64, 256, 1024)  # views that class statistics are estimated from as well
KD = Entry("kd", 4.0, 0.4)  # what validation chose for KD on the letters, at T = 4
SPREAD = 1e-6  # mass spread evenly where a record leaves none

Rebuild = Callable[[Tensor, float], Tensor]  # (B, C) logits and a temperature: (B, C) log-probabilities at it


@dataclass(frozen=True)
class Record:
    """A kind of record: its name, its bytes per view, and what can be told from it."""

    name: str
    size: float
    rebuild: Rebuild


def records(calibration: Tensor) -> list[Record]:
    """Return the records to compare; those that learn from other views do so from `calibration`, (N, C) logits."""
    completion = _completion(calibration)
    classes = calibration.shape[1]
    scalars = 6  # top, and two numbers of the tail
    draws = 20
    sampled = statistics.fmean(_count_sampled(calibration[:512], draws).tolist())
    return [
        Record("all logits", 2 * classes, lambda z, t: (z / t).log_softmax(1)),
        Record("top 8, completed", 4 * 8 + scalars, _listed(8, completion)),
        Record("top 4, completed", 4 * 4 + scalars, _listed(4, completion)),
        *(
            Record(f"top 8, of {n} views", 4 * 8 + scalars, _listed(8, _completion(calibration[:n])))
            for n in FEWER
        ),
        Record("top 8, even tail", 4 * 8 + scalars + 2, _listed(8, None)),
        Record("top 16, even tail", 4 * 16 + scalars + 2, _listed(16, None)),
        Record(f"{draws} draws", 3 * sampled, _sampled(draws)),
        Record("polynomial of top 16", 2 * 16 + 2 * 3, _polynomial(16, 2)),
        Record("principal components, int8", 36 + 2, _principal(calibration, 36)),
    ]


def _completion(calibration: Tensor) -> Completion:
    return Completion.of(fit_statistics(calibration))


def _listed(k: int, completion: Completion | None) -> Rebuild:
    return lambda z, t: SparseTeacher.from_logits(z, k, completion).at(t).log_probs


def _count_sampled(logits: Tensor, draws: int) -> Tensor:
    """(B,) number of different classes among so many draws."""
    drawn = (logits / 2).softmax(1).multinomial(draws, True, generator=torch.Generator().manual_seed(0))
    return torch.zeros_like(logits).scatter(1, drawn, 1.0).sum(1)


def _sampled(draws: int) -> Rebuild:
    """Classes drawn from the teacher with replacement, and their counts.

    They are drawn anew at each temperature, which favours them: a cache would hold those of one.

    Source: Anshumann et al. 2025, random sampling KD (arXiv 2503.16870).
    """

    def rebuild(z: Tensor, t: float) -> Tensor:
        drawn = (z / t).softmax(1).multinomial(draws, True, generator=torch.Generator().manual_seed(0))
        p = torch.zeros_like(z).scatter_add(1, drawn, torch.full_like(drawn, 1 / draws, dtype=z.dtype))
        return (p * (1 - SPREAD) + SPREAD / z.shape[1]).log()

    return rebuild


def _polynomial(k: int, degree: int) -> Rebuild:
    """The k largest by their ids, their log-probabilities by a polynomial in log(1 + rank), nothing of the others.

    Source: DistillKit (arcee-ai), compression of sorted log-probabilities.
    """
    powers: Tensor = torch.arange(1.0, k + 1).log()[:, None] ** torch.arange(degree + 1)
    fit: Tensor = torch.linalg.pinv(powers)

    def rebuild(z: Tensor, t: float) -> Tensor:
        values, ids = z.log_softmax(1).topk(k, 1)
        fitted = (values @ fit.T) @ powers.T
        rest = ((1 - fitted.exp().sum(1)).clamp(min=SPREAD) / (z.shape[1] - k)).log()
        dense: Tensor = (rest[:, None].repeat(1, z.shape[1]).scatter(1, ids, fitted) / t).log_softmax(1)
        return dense

    return rebuild


def _principal(calibration: Tensor, count: int) -> Rebuild:
    """Coefficients of centred logits along the strongest directions of other views, each a byte, and their scale."""
    centred = calibration - calibration.mean(1, keepdim=True)
    mean = centred.mean(0)
    directions: Tensor = torch.linalg.svd(centred - mean, full_matrices=False).Vh[:count]

    def rebuild(z: Tensor, t: float) -> Tensor:
        along = (z - z.mean(1, keepdim=True) - mean) @ directions.T
        step = along.abs().amax(1, keepdim=True) / 127
        rounded: Tensor = (along / step).round() * step
        return ((mean + rounded @ directions) / t).log_softmax(1)

    return rebuild


class _Rebuilt(LiveTeacher):
    """The teacher as a record tells it, for a loss at temperature T."""

    def __init__(
        self, model: nn.Module, n: int, num_classes: int, record: Record, temperature: float
    ) -> None:
        super().__init__(model, n, num_classes, num_classes)
        self.record, self.temperature = record, temperature

    @torch.no_grad()
    def answer(self, views: Tensor, samples: Tensor, seeds: Tensor) -> SparseTeacher:
        log_probs = self.record.rebuild(self.model(views), self.temperature)
        return SparseTeacher.from_logits(log_probs * self.temperature, self.num_classes)


def measure(record: Record, logits: Tensor, student: Tensor) -> tuple[tuple[float, ...], float, float]:
    """Return mean KL at each temperature, 1 − Pearson at T = 2, and the cosine of KD's gradient at T = 4."""
    kl = []
    for t in TEMPERATURES:
        p, q = (logits / t).log_softmax(1), record.rebuild(logits, t)
        kl.append((p.exp() * (p - q)).sum(1).mean().item())
    p, q = (logits / 2).softmax(1), record.rebuild(logits, 2.0).exp()
    pearson = F.cosine_similarity(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True), dim=1)
    of_student = (student / 4).softmax(1)
    true, found = of_student - (logits / 4).softmax(1), of_student - record.rebuild(logits, 4.0).exp()
    return tuple(kl), 1 - pearson.mean().item(), F.cosine_similarity(true, found, dim=1).mean().item()


def _teach(contest: Contest, record: Record, seed: int) -> float:
    """Train a student by KD from a record; return its accuracy on the test images."""
    images, config = contest.images, contest.config
    model = ViewModel(contest.teacher)
    live = _Rebuilt(model, len(images), contest.teacher.num_classes, record, 4.0)
    plain = Stream.plain(
        images, contest.task.recipe, batch_size=64, seeds=tuple(range(config.cached)), order=seed
    )
    with tempfile.TemporaryDirectory(dir=contest.out) as folder:
        run = Run(
            Path(folder) / "student",
            contest.network(contest.task.student, seed),
            Objective.parse(KD.expression),
            TrainConfig(config.epochs, lr=KD.lr, seed=seed),
        )
        return train([run], Stream(plain.views, live, plain.config), contest.evaluation)[0].top1 or 0.0


def fidelity_table(logits: Tensor, teach: Callable[[Record], Sequence[float]] | None = None) -> str:
    """Compare records on (N, C) logits, of which the last fifth is held out, in a Markdown table.

    Args:
        logits: of one teacher, in any order.
        teach: accuracies of students taught from a record, by seed; None leaves them out.
    """
    held_out = len(logits) // 5
    calibration, rest = logits[:-held_out], logits[-held_out:]
    rough = rest + rest.std() / 2 * torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for record in records(calibration):
        kl, pearson, cosine = measure(record, rest, rough)
        row = [record.name, f"{record.size:.0f}", *(f"{x:.3f}" for x in (*kl, pearson, cosine))]
        if teach:
            top1 = [100 * score for score in teach(record)]
            row.append(f"{statistics.fmean(top1):.1f} ± {statistics.stdev(top1):.1f}")
        print(*row, file=sys.stderr, flush=True)
        rows.append(row)
    students = ["student"] if teach else []
    return markdown(["record", "bytes", "KL at T = 1", "2", "4", "1 − r", "cosine", *students], rows)


LETTERS = replace(CONTESTS["letters"][1], losses=())


def open_contest(out: Path, task: Task, config: ContestConfig = LETTERS) -> tuple[Contest, Tensor]:
    """Train a task's teacher; return the contest, and (N, C) logits of views under a seed that no cache has."""
    contest = Contest(out, task, task.train, task.test, config)
    options = DumpConfig(batch_size=256, device="cpu", workers=0)
    pipeline = load_pipeline(KeyedViews(task.train, task.recipe), contest.teacher, "float32", options)
    logits = sample_logits(pipeline, VIEWS)
    return contest, logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))]


def main() -> None:
    """Print a table for each teacher: of both kinds of letters, a made-up one, and of any files of logits named."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        contest, logits = open_contest(Path(folder) / "letters", letters_task())
        table = fidelity_table(
            logits, lambda record: [_teach(contest, record, seed) for seed in range(SEEDS)]
        )
        print(f"\n200 letters\n\n{table}", flush=True)
        _, logits = open_contest(Path(folder) / "rare", rare_letters_task())
        print(f"\n151 rare letters\n\n{fidelity_table(logits)}", flush=True)
    sources: list[TeacherLogits] = [SyntheticLogits(VIEWS, "shuffled")]
    sources += [RecordedLogits(Path(name), "shuffled") for name in sys.argv[1:]]
    for source in sources:
        print(f"\n{source.about}\n\n{fidelity_table(torch.cat(list(source.blocks())))}", flush=True)


if __name__ == "__main__":
    main()
