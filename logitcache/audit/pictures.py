"""Pictures of what `stats` found, as PNG files by matplotlib (the extra `pictures`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.audit.stats import BINS, LEAST_TAIL, StatsReport
from logitcache.errors import OptionError
from logitcache.files import writing
from logitcache.paths import expand_home
from logitcache.views.images import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 5


def draw_stats(report: StatsReport, folder: Path, images: Images | None = None) -> list[Path]:
    """Draw histograms and seeds into stats.png, and with images the hardest samples into hardest.png.

    Raises:
        OptionError: matplotlib is not installed.
        StorageError: the folder cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("pictures need matplotlib: pip install 'logitcache[pictures]'") from error
    folder = expand_home(folder)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    edges = np.linspace(0, np.log(report.num_classes), BINS + 1)
    axes[0, 0].stairs(report.entropy_bins, edges, fill=True)
    axes[0, 0].set(xlabel="entropy of the teacher, nats (at most log C)", ylabel="views")
    if report.tail_bins:
        axes[0, 1].stairs(report.tail_bins, np.linspace(np.log10(LEAST_TAIL), 0, BINS + 1), fill=True)
    axes[0, 1].set(xlabel=f"log10 of the mass outside the top {report.k}", ylabel="views")
    _draw_seeds(axes[1, 0], report)
    names = [f"{pair.of} → {pair.other}" for pair in report.neighbours[:12]]
    axes[1, 1].barh(names[::-1], [pair.probability for pair in report.neighbours[:12]][::-1])
    axes[1, 1].set(xlabel="mean probability of the other class")
    files = [_save(figure, folder / "stats.png")]
    if images is not None and report.hardest:
        files.append(_save(_draw_hardest(Figure, report, images), folder / "hardest.png"))
    return files


def _draw_seeds(axes: "Axes", report: StatsReport) -> None:
    seeds = [seed.seed for seed in report.seeds]
    axes.plot(seeds, [seed.confidence for seed in report.seeds], "o-", label="mean top-1 probability")
    if all(seed.top1 is not None for seed in report.seeds):
        axes.plot(seeds, [seed.top1 or 0.0 for seed in report.seeds], "s-", label="top-1 accuracy")
    axes.set(xlabel="augmentation seed")
    axes.locator_params(axis="x", integer=True)
    axes.legend()


def _draw_hardest(figure_class: Any, report: StatsReport, images: Images) -> Any:
    rows = -(-len(report.hardest) // COLUMNS)
    figure = figure_class(figsize=(9, 2.2 * rows), layout="constrained")
    for axes, hard in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, report.hardest, strict=False):
        image = images.image(hard.sample)
        axes.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        label = f"label {hard.label}, " if hard.label >= 0 else ""
        axes.set_title(f"{label}teacher {hard.teacher}\np = {hard.probability:.2g}", fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def _save(figure: Any, file: Path) -> Path:
    with writing(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return file
