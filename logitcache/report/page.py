"""The report: facts of runs and caches as one HTML page, in a file that needs no other and holds no script."""

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from logitcache.errors import NotFoundError, OptionError
from logitcache.files import require_file, writing
from logitcache.format.spec import Spec
from logitcache.paths import expand_home, find_near_paths, suggest, write_path
from logitcache.report.cache_facts import CacheFacts, OnSeedRead, read_cache
from logitcache.report.cache_section import cache_headings, make_cache_section
from logitcache.report.html import Ids, tag, to_html
from logitcache.report.opening import describe_outcome
from logitcache.report.run_facts import RunFacts, RunGroup, group_runs, read_run
from logitcache.report.run_section import explain_strangers, make_run_sections
from logitcache.report.thumbnails import CacheImages, make_thumbnails, open_images_of
from logitcache.store import CacheReader
from logitcache.store.local import is_cache
from logitcache.train.run_folder import RunFolder
from logitcache.train.trained import list_runs
from logitcache.versions import library_versions
from logitcache.views.datasets import open_images

MOST_IMAGES = 96  # of hardest samples, in all caches
# No script and no address: the browser requests nothing, whatever a name in a run or a cache holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class ReportFacts(Spec):
    """The facts of a report, without its images; `notes` says, cache by cache, what could not be shown and why."""

    groups: tuple[RunGroup, ...]
    caches: tuple[CacheFacts, ...]
    notes: tuple[str, ...]


def report(
    out: str | Path,
    paths: Sequence[str | Path],
    *,
    data: Sequence[str] = (),
    dump_seconds: Mapping[str, float] = MappingProxyType({}),
    on_progress: OnSeedRead | None = None,
) -> ReportFacts:
    """Write a page about runs and caches.

    Args:
        out: the file to write, .html.
        paths: run folders, folders of such, and caches; caches may be URLs.
        data: images of the caches, as `open_images` takes them; no others are opened, but those that ship.
        dump_seconds: how long dumps took, by the path of the cache, where that is known.
        on_progress: called with (seeds read, seeds to read), cache by cache.

    Raises:
        OptionError: nothing to report on, `out` is a folder, or `data` names images of none of the caches.
        NotFoundError, UnknownNameError: a path is neither a run folder nor a cache, or there is no such `data`.
        FormatError: something is damaged.
        IncompleteError: a run has no epoch yet, or a cache no complete seed.
        StorageError: the page cannot be written.
    """
    seconds = {_normalise(path): taken for path, taken in dump_seconds.items()}
    names = dict.fromkeys(map(_normalise, paths))
    names = dict.fromkeys(chain.from_iterable(map(_find_runs, names)))
    if not names:
        raise OptionError("a report needs run folders, caches, or both; found none")
    out = expand_home(out)
    require_file(out, "report.html")
    subjects = [_open(path) for path in names]
    readers = [subject for subject in subjects if isinstance(subject, CacheReader)]
    groups = group_runs([subject for subject in subjects if isinstance(subject, RunFacts)])
    opened = [open_images_of(reader, data) for reader in readers]
    if unused := [name for name in data if name not in [used for _, used, _ in opened]]:
        open_images(unused[0])  # raises where there is no such data set
        why = next((f" ({note})" for _, _, note in opened if note), "")
        raise OptionError(f"--data {unused[0]} is of none of the caches here; leave it out{why}")
    hardest = min(12, max(4, MOST_IMAGES // max(1, len(readers))))
    caches: list[CacheFacts] = []
    images: list[CacheImages] = []
    for reader, (data_set, _, note) in zip(readers, opened, strict=True):
        facts = read_cache(reader, data_set, most=hardest, on_progress=on_progress)
        facts = replace(facts, dump_seconds=seconds.get(str(reader.path)))
        caches.append(facts)
        images.append(
            make_thumbnails(reader, data_set, facts.stats) if data_set else CacheImages({}, (), note)
        )
    text = make_page(groups, caches, images, date=datetime.date.today())
    with writing(out) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    notes = [
        f"{cache.about['path']}: {seen.note}" for cache, seen in zip(caches, images, strict=True) if seen.note
    ]
    notes += [f"{path}: {why}" for path, why in explain_strangers(groups, caches).items()]
    return ReportFacts(groups, tuple(caches), tuple(notes))


def _normalise(path: str | Path) -> str:
    return str(path) if "://" in str(path) else write_path(Path(os.path.normpath(expand_home(path))))


def _find_runs(path: str) -> list[str]:
    """List the run folders in a folder of such; any other path is itself."""
    folder = Path(path)
    if "://" in path or is_cache(folder) or RunFolder(folder).has_run():
        return [path]
    return [write_path(run) for run in list_runs(folder)] or [path]


def _open(path: str) -> RunFacts | CacheReader:
    """Read a run folder, or open a cache."""
    if "://" not in path and RunFolder(Path(path)).has_run():
        return read_run(path)
    try:
        return CacheReader(path)
    except NotFoundError as error:
        advice = suggest(find_near_paths(path, lambda near: bool(list_runs(near)) or is_cache(near)))
        raise NotFoundError(f"{path} is neither a run folder (config.json) nor a cache{advice}") from error


# The page -------------------------------------------------------------------------------------------------


def make_page(
    groups: Sequence[RunGroup],
    caches: Sequence[CacheFacts],
    images: Sequence[CacheImages],
    *,
    date: datetime.date,
) -> str:
    """Make the page, with the images of each cache, as HTML."""
    ids = Ids()
    sections = [*make_run_sections(ids, groups, caches)] if groups else []
    for heading, cache, shown in zip(cache_headings(caches), caches, images, strict=True):
        sections.append((heading, make_cache_section(ids, cache, shown)))
    identified = [(ids.new("section"), heading, body) for heading, body in sections]
    main = [
        tag("section", tag("h2", heading, id=id_), body, aria_labelledby=id_)
        for id_, heading, body in identified
    ]
    contents = [tag("li", tag("a", heading, href=f"#{id_}")) for id_, heading, _ in identified]
    title = _title(groups, caches)
    return to_html(
        tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
                tag("title", f"{title} – logitcache report"),
                tag(
                    "style",
                    resources.files("logitcache.report").joinpath("page.css").read_text(encoding="utf-8"),
                ),
            ),
            tag(
                "body",
                tag("a", "Skip to content", href="#main", class_="skip"),
                tag(
                    "header",
                    tag("p", "logitcache report", class_="eyebrow"),
                    tag("h1", title),
                    *(tag("p", text) for text in describe_outcome(groups, caches)),
                    tag("nav", tag("ul", contents), aria_label="Contents"),
                ),
                tag("main", main, id="main"),
                tag("footer", f"Made by logitcache {library_versions()['logitcache']} on {date:%d %B %Y}."),
            ),
            lang="en",
        )
    )


def _title(groups: Sequence[RunGroup], caches: Sequence[CacheFacts]) -> str:
    runs = sum(len(group.runs) + len(group.copies) for group in groups)
    data = {run.settings.get("stream.data.name") for group in groups for run in group.runs}
    data |= {cache.about["dataset"]["name"] for cache in caches}
    data.discard(None)
    parts = [f"{runs} run{'s' if runs > 1 else ''}"] if runs else []
    parts += [f"{len(caches)} cache{'s' if len(caches) > 1 else ''}"] if caches else []
    return ", ".join(parts) + (f" on {data.pop()}" if len(data) == 1 else "")
