"""How much worse students get as caches lose more of the teacher: what `plan` advises by, tables of docs/results.md.

    python -m logitcache.bench.closeness

On both kinds of letters, with the contest's teachers and students: caches of few and of many logits, their tails
completed and even. What a cache loses is `calibration.share_lost`, of views that no statistics saw; what students
make of it is measured in pairs with the same students taught from all logits.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from logitcache.bench.anchors import LETTERS, open_contest
from logitcache.bench.contest import (
    ContestConfig,
    Entry,
    mean_and_std,
)
from logitcache.bench.table import markdown
from logitcache.bench.tasks import Task, letters_task, rare_letters_task
from logitcache.dump.calibration import (
    TEMPERATURES,
    measure_divergence,
    measure_information,
    share_lost,
)
from logitcache.report.opening import Gain
from logitcache.teacher.completion import Completion, fit_statistics

KINDS = (*((k, True) for k in (1, 2, 4, 8, 16, 32)), *((k, False) for k in (4, 8, 16, 32)))  # k, completed?
SEEDS = 5
TASKS: dict[str, tuple[Callable[[], Task], Sequence[Entry]]] = {  # with what validation chose in the contests
    "200 letters": (letters_task, (Entry("kd", 4.0, 0.4), Entry("cmkd", 16.0, 0.4))),
    "151 rare letters": (rare_letters_task, (Entry("kd", 1.0, 1.6), Entry("cmkd", 4.0, 0.8))),
}


def closeness_table(
    out: Path,
    task: Task,
    entries: Sequence[Entry],
    seeds: int = SEEDS,
    config: ContestConfig = LETTERS,
    kinds: Sequence[tuple[int, bool]] = KINDS,
) -> str:
    """Train students from caches of every kind, and compare with those from all logits, in a Markdown table.

    Args:
        out: a folder to work in.
        task: what is learnt.
        entries: losses, with their weights and rates.
        seeds: students of each.
        config: the budget.
        kinds: numbers of logits, and whether their tail is completed.
    """
    contest, logits = open_contest(out, task, config)
    held_out = len(logits) // 5
    completion = Completion.of(fit_statistics(logits[:-held_out]))
    information = measure_information(logits[-held_out:])
    scores_of_all: list[list[float]] = []
    rows = []
    for k, completed in [(logits.shape[1], True), *kinds]:
        all_listed = k == logits.shape[1]
        kl = measure_divergence(logits[-held_out:], k, completion if completed and not all_listed else None)
        scores = [contest.top1(entries, seed, k, completed=completed) for seed in range(seeds)]
        scores_of_all = scores_of_all or scores
        name = "all logits" if all_listed else f"top {k}, {'completed' if completed else 'even tail'}"
        row = [name, *(f"{x:.3f}" for x in kl), f"{100 * share_lost(kl, information):.1f} %"]
        for mine, theirs in zip(zip(*scores, strict=True), zip(*scores_of_all, strict=True), strict=True):
            row += [mean_and_std(mine), "–" if all_listed else str(Gain.of_pairs(mine, theirs))]
        print(*row, file=sys.stderr, flush=True)
        rows.append(row)
    columns = [name for entry in entries for name in (f"`{entry.loss}`", "minus all")]
    return markdown(["cache", *(f"KL at T = {t:g}" for t in TEMPERATURES), "lost", *columns], rows)


def main() -> None:
    """Print a table for each task."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of an even tail; what it does is what the table shows
    for name, (task, entries) in TASKS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{name}\n\n{closeness_table(Path(folder), task(), entries)}", flush=True)


if __name__ == "__main__":
    main()
