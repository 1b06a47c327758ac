"""What people see of runs: while they train, and when they are done."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logitcache.train.events import (
    EpochDone,
    OnTrainEvent,
    StepDone,
    StudentFailed,
    StudentNoted,
    TrainEvent,
)
from logitcache.units import rate

from .progress import Advance
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.train.loop import RunReport


def reporter(advance: Advance) -> OnTrainEvent:
    """Return a handler of what `train` reports: steps move the bar, an epoch is a line."""

    def report(event: TrainEvent) -> None:
        if isinstance(event, StudentFailed):
            say(f"{event.run}: ended early: {event.error}")
        elif isinstance(event, StudentNoted):
            say(f"note: {event.note}")
        elif isinstance(event, EpochDone):
            row = event.row
            score = f", top-1 {100 * row['top1']:.1f} %" if "top1" in row else ""
            say(f"{event.run}: epoch {event.epoch + 1} of {event.epochs}, loss {row['loss']:.4f}{score}")
        elif isinstance(event, StepDone):
            losses = "".join(f", {name} {value:.3f}" for name, value in event.losses.items())
            done, total = event.epoch * event.steps + event.step, event.epochs * event.steps
            advance(done, total, f"{rate(event.views_per_second)} views/s{losses}")

    return report


def show_runs(reports: "Sequence[RunReport]", *, as_json: bool) -> None:
    """Print what runs came to; there may be none that came to their end."""
    rows = [row for report in reports for row in _rows(report)]
    show({"runs": [report.to_dict() for report in reports]}, rows, as_json=as_json)


def _rows(report: "RunReport") -> list[tuple[str, str]]:
    best = f" (best {100 * (report.best_top1 or 0):.1f} %)"
    score = "" if report.top1 is None else f", top-1 {100 * report.top1:.1f} %{best}"
    return [
        ("run", report.out),
        ("student", f"{report.student}, {report.parameters:,} parameters"),
        ("result", f"loss {report.loss:.4f}{score} after {report.epochs} epochs"),
        ("time", f"{report.seconds:.1f} s, {rate(report.views_per_second)} views/s"),
        *(("export", file) for file in report.exported),
    ]
