"""The page: facts of runs and caches in one HTML file that needs nothing else, and no script."""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from xml.etree.ElementTree import Element

from logitcache.errors import NotFoundError, OptionError, StorageError
from logitcache.files import replacing
from logitcache.format.spec import Spec
from logitcache.report.cache_facts import CacheFacts, read_cache
from logitcache.report.cache_section import about_cache, headings
from logitcache.report.html import Ids, tag, written
from logitcache.report.metrics import measure
from logitcache.report.run_facts import Group, RunFacts, grouped, read_run
from logitcache.report.run_section import about_runs, teachers
from logitcache.report.thumbnails import Pictures, open_for, pictures
from logitcache.store import CacheReader
from logitcache.train.run_folder import RunFolder
from logitcache.train.trained import list_runs
from logitcache.versions import library_versions
from logitcache.views.datasets import Images, open_images

MOST_IMAGES = 96  # of hardest samples, in all caches
# No script, no address: whatever a name in a run may try, the browser asks nobody for anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class ReportFacts(Spec):
    """What a report says, without its pictures; `notes` says, cache by cache, what could not be shown and why."""

    groups: tuple[Group, ...]
    caches: tuple[CacheFacts, ...]
    notes: tuple[str, ...]


Shown = Sequence[tuple[CacheFacts, Pictures]]


def report(
    out: str | Path,
    paths: Sequence[str | Path],
    *,
    data: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> ReportFacts:
    """Write a page about runs and caches.

    Args:
        out: the file to write, .html.
        paths: run folders and caches; caches may be URLs.
        data: images of the caches, as `open_images` takes them; no others are opened, but the digits that ship.
        on_progress: called with (seeds read, seeds to read), cache by cache.

    Raises:
        OptionError: nothing to report on, `out` is a folder, or `data` names images of none of the caches.
        NotFoundError, UnknownNameError: a path is neither a run folder nor a cache, or there is no such `data`.
        FormatError: something is damaged.
        IncompleteError: a run has no epoch yet, or a cache no complete seed.
        StorageError: the page cannot be written.
    """
    named = list(dict.fromkeys(path if "://" in path else os.path.normpath(path) for path in map(str, paths)))
    if not named:
        raise OptionError("a report needs run folders, caches, or both; found none")
    if Path(out).is_dir():
        raise OptionError(f"{out} is a folder; name the file to write, such as {Path(out) / 'report.html'}")
    found = [_found(path) for path in named]
    readers = [one for one in found if isinstance(one, CacheReader)]
    groups = grouped([one for one in found if isinstance(one, RunFacts)])
    opened = [open_for(reader, data) for reader in readers]
    if unused := [name for name in data if name not in [taken for _, taken, _ in opened]]:
        open_images(unused[0])  # which may say that there is no such thing
        why = next((f" ({note})" for _, _, note in opened if note), "")
        raise OptionError(f"--data {unused[0]} is of none of the caches here; leave it out{why}")
    most = MOST_IMAGES // max(1, len(readers))
    shown = [
        _cache(reader, images, note, max(4, most), on_progress)
        for reader, (images, _, note) in zip(readers, opened, strict=True)
    ]
    _write(Path(out), page(groups, shown, on=datetime.date.today()))
    notes = tuple(f"{cache.about['path']}: {seen.note}" for cache, seen in shown if seen.note)
    return ReportFacts(groups, tuple(cache for cache, _ in shown), notes)


def _found(path: str) -> RunFacts | CacheReader:
    if "://" not in path and RunFolder(Path(path)).has_run():
        return read_run(path)
    try:
        return CacheReader(path)
    except NotFoundError as error:
        inside = list_runs(Path(path))
        advice = f"; did you mean {inside[0] if len(inside) == 1 else f'{path}/*'}?" if inside else ""
        raise NotFoundError(f"{path} is neither a run folder (config.json) nor a cache{advice}") from error


def _cache(
    reader: CacheReader,
    images: Images | None,
    note: str,
    most: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[CacheFacts, Pictures]:
    facts = read_cache(reader, images, most=min(most, 12), on_progress=on_progress)
    return facts, pictures(reader, images, facts.stats) if images else Pictures({}, (), note)


# The page -------------------------------------------------------------------------------------------------


def page(groups: Sequence[Group], caches: Shown, *, on: datetime.date) -> str:
    """Write the page, made on a day."""
    ids = Ids()
    facts = [facts for facts, _ in caches]
    told = zip(headings(facts), (about_cache(ids, *one) for one in caches), strict=True)
    sections = [*(about_runs(ids, groups, facts) if groups else []), *told]
    named = [(ids.new("section"), heading, body) for heading, body in sections]
    main = [
        tag("section", tag("h2", heading, id=name), body, aria_labelledby=name)
        for name, heading, body in named
    ]
    contents = [tag("li", tag("a", heading, href=f"#{name}")) for name, heading, _ in named]
    title = _title(groups, caches)
    return written(
        tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
                tag("title", f"{title} – logitcache report"),
                tag("style", resources.files("logitcache.report").joinpath("page.css").read_text()),
            ),
            tag(
                "body",
                tag("a", "Skip to content", href="#main", class_="skip"),
                tag(
                    "header",
                    tag("p", "logitcache report", class_="eyebrow"),
                    tag("h1", title),
                    _lede(groups, facts),
                    tag("nav", tag("ul", contents), aria_label="Contents"),
                ),
                tag("main", main, id="main"),
                tag("footer", f"Made by logitcache {library_versions()['logitcache']} on {on:%d %B %Y}."),
            ),
            lang="en",
        )
    )


def _title(groups: Sequence[Group], caches: Shown) -> str:
    runs = sum(len(group.runs) + len(group.copies) for group in groups)
    data = {run.settings.get("stream.data.name") for group in groups for run in group.runs}
    data |= {cache.about["dataset"]["name"] for cache, _ in caches}
    data.discard(None)
    parts = [f"{runs} run{'s' if runs > 1 else ''}"] if runs else []
    parts += [f"{len(caches)} cache{'s' if len(caches) > 1 else ''}"] if caches else []
    return ", ".join(parts) + (f" on {data.pop()}" if len(data) == 1 else "")


def _lede(groups: Sequence[Group], caches: Sequence[CacheFacts]) -> Element | None:
    """Say what came out highest, and what the teachers have."""
    if groups and not any(group.finished for group in groups):
        return tag("p", "No run has come to its end yet.")
    told = [(found, group) for group in groups if group.finished and (found := group.spread("top1"))]
    if not told:
        return None
    (mean, deviation), best = max(told, key=lambda one: one[0][0])
    many = len(best.runs)
    text = (
        f"{100 * mean:.1f} ± {100 * deviation:.1f} % over {many} runs" if many > 1 else f"{100 * mean:.2f} %"
    )
    if many == 1 and best.copies:
        text += f" ({1 + len(best.copies)} runs of the same seed)"
    tied = [group.name for (other, _), group in told if group is not best and round(mean - other, 4) == 0]
    also = f", a tie with {', '.join(tied[:3])}{' and others' if tied[3:] else ''}" if tied else ""
    beside = [
        f" {name[0].upper()}{name[1:]}: {measure('top1').text(cache.right('top1'))}."
        for name, cache in teachers(groups, caches).items()
    ]
    return tag("p", f"Highest top-1 after the last epoch: {best.name}, {text}{also}.", *beside)


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as aside:
            aside.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror or error}") from error
