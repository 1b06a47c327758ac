"""What people see of runs: while they train, and when they are done."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.train.events import (
    EpochDone,
    ImagesDecoded,
    OnTrainEvent,
    StepDone,
    StudentFailed,
    StudentNoted,
    TrainEvent,
)
from logitcache.units import count, rate

from .progress import Advance
from .terminal import say, show, show_table

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
        elif isinstance(event, ImagesDecoded):
            advance(event.done, event.total, "which of them decode", of="images")
        elif isinstance(event, StepDone):
            losses = "".join(f", {name} {value:.3f}" for name, value in event.losses.items())
            done, total = event.epoch * event.steps + event.step, event.epochs * event.steps
            advance(done, total, f"{rate(event.views_per_second)} views/s{losses}")

    return report


def show_runs(reports: "Sequence[RunReport]", *, as_json: bool) -> None:
    """Print what runs came to: one by itself, several side by side; there may be none that came to their end."""
    repeats = _summarize(reports)
    if len(reports) < 2 or as_json:
        rows = [row for report in reports for row in _rows(report)]
        about = {"repeats": repeats} if repeats else {}
        show({"runs": [report.to_dict() for report in reports], **about}, rows, as_json=as_json)
        return
    show_table(*_compare(reports))
    if repeats:
        show_table(["student and loss", "runs", "top-1", "gain"], [_write_repeats(each) for each in repeats])
    rows = [("export", file) for report in reports for file in report.exported]
    rows += _rows_left_out(reports[0])  # one pass over the data, the same images for all
    if rows:
        show({}, rows, as_json=False)


def _summarize(reports: "Sequence[RunReport]") -> list[dict[str, Any]]:
    """Return what repeats came to together, a kind of run each, and its gain over the student's first."""
    from logitcache.report.opening import compare_groups
    from logitcache.report.run_facts import group_runs, read_run

    if len(reports) < 2:
        return []
    groups = [group for group in group_runs([read_run(report.out) for report in reports]) if group.finished]
    if not any(len(group.runs) > 1 for group in groups):
        return []
    found = []
    for group in groups:
        top1 = group.spread("top1")
        first = next(other for other in groups if other.runs[0].student == group.runs[0].student)
        gain = compare_groups(group, first) if top1 and group is not first else None
        mean, deviation = top1 or (None, None)
        deviation = deviation if len(group.runs) > 1 else None  # the others of it ended early
        about = {"name": group.name, "runs": len(group.runs), "top1": mean, "top1_deviation": deviation}
        found.append({**about, "gain": gain and gain.mean, "gain_error": gain and gain.error})
    return found


def _write_repeats(repeats: dict[str, Any]) -> list[str]:
    from logitcache.report.opening import Gain

    mean, deviation, gain = repeats["top1"], repeats["top1_deviation"], repeats["gain"]
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    top1 = "–" if mean is None else f"{100 * mean:.1f}{spread} %"
    difference = "–" if gain is None else str(Gain(gain, repeats["gain_error"]))
    return [repeats["name"], f"{repeats['runs']}", top1, difference]


def _compare(reports: "Sequence[RunReport]") -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of runs: what differs between them, and what they came to."""
    from logitcache.train.run_folder import RunFolder

    records = [RunFolder(Path(report.out)).read_config() for report in reports]
    settings = [{**record["objective"], **record["config"]} for record in records]
    losses = _shorten_losses([str(each.pop("expression")) for each in settings])
    differing = [
        name for name, value in settings[0].items() if any(each.get(name) != value for each in settings)
    ]
    columns = ["student", "loss", *differing, "top-1", "best", "epochs", "seconds", "run"]
    rows = [
        [
            report.student,
            loss,
            *(_write(each.get(name)) for name in differing),
            _percent(report.top1),
            _percent(report.best_top1),
            f"{report.epochs}",
            f"{report.seconds:.1f}",
            report.out,
        ]
        for report, loss, each in zip(reports, losses, settings, strict=True)
    ]
    return columns, rows


def _rows_left_out(report: "RunReport") -> list[tuple[str, str]]:
    """Say which training images were left out, as they do not decode."""
    from logitcache.views.bad_images import UNDECODABLE, list_bad_images

    if not (bad := report.left_out):
        return []
    return [("left out", f"{count(len(bad), *UNDECODABLE)}: {list_bad_images(bad, '--json lists all')}")]


def _shorten_losses(expressions: list[str]) -> list[str]:
    """Leave options and weights out, unless losses differ in these."""
    short = [
        re.sub(r":[\d.]+(e[+-]?\d+)?", "", re.sub(r"\([^()]*\)", "", expression))
        for expression in expressions
    ]
    return short if len(set(short)) == len(set(expressions)) else expressions


def _write(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value).strip("[]")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _rows(report: "RunReport") -> list[tuple[str, str]]:
    best = f" (best {100 * (report.best_top1 or 0):.1f} %)"
    score = "" if report.top1 is None else f", top-1 {100 * report.top1:.1f} %{best}"
    return [
        ("run", report.out),
        ("student", f"{report.student}, {report.parameters:,} parameters"),
        ("result", f"loss {report.loss:.4f}{score} after {count(report.epochs, 'epoch')}"),
        ("time", f"{report.seconds:.1f} s, {rate(report.views_per_second)} views/s"),
        *_rows_left_out(report),
        *(("export", file) for file in report.exported),
    ]
