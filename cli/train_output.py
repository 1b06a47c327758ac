"""What people see of runs: while they train, and when they are done."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .progress import Advance
from .terminal import say, show

if TYPE_CHECKING:
    from logitcache.train.loop import TrainReport


def reporter(advance: Advance) -> Callable[[dict[str, Any]], None]:
    """Return what `train.train` tells its progress to: steps move the bar, an epoch is a line."""

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
            rate = f"{event['views_per_second']:,.0f} views/s"
            advance(done, event["epochs"] * event["steps"], f"{rate}{losses}")

    return report


def show_runs(reports: "Sequence[TrainReport]", *, as_json: bool) -> None:
    """Print what runs came to."""
    rows = [row for report in reports for row in _rows(report)]
    show({"runs": [report.to_dict() for report in reports]}, rows, as_json=as_json)


def _rows(done: "TrainReport") -> list[tuple[str, str]]:
    best = f" (best {100 * (done.best_top1 or 0):.1f} %)"
    score = "" if done.top1 is None else f", top-1 {100 * done.top1:.1f} %{best}"
    return [
        ("run", done.out),
        ("student", f"{done.student}, {done.parameters:,} parameters"),
        ("result", f"loss {done.loss:.4f}{score} after {done.epochs} epochs"),
        ("time", f"{done.seconds:.1f} s, {done.views_per_second:,.0f} views/s"),
        *(("export", file) for file in done.exported),
    ]
