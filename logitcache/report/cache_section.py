"""The section of the page about a cache: charts of the teacher's answers, hard samples, views by seed."""

import math
import os
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from logitcache.audit.stats import BINS, LEAST_TAIL, StatsReport
from logitcache.format.identity import join_background
from logitcache.report.cache_facts import TEMPERATURES, CacheFacts
from logitcache.report.charts import Axis, ChartTable, Series, draw_bars, draw_histogram, draw_lines
from logitcache.report.html import Ids, table, tag
from logitcache.report.metrics import percent
from logitcache.report.thumbnails import CacheImages, SeenSample, Thumbnail
from logitcache.store import seed_list
from logitcache.units import count, share, size
from logitcache.views.bad_images import UNDECODABLE

MOST_PAIRS = 10


def cache_headings(caches: Sequence[CacheFacts]) -> list[str]:
    """Name each cache by teacher and data; by its split or its path too, where others have the same name."""
    abouts = [cache.about for cache in caches]
    names = [f"Cache: {about['teacher']['name']} on {about['dataset']['name']}" for about in abouts]
    for parts in ([about["dataset"]["split"] for about in abouts], [about["path"] for about in abouts]):
        names = [
            name if names.count(name) == 1 else f"{name}, {part}"
            for name, part in zip(names, parts, strict=True)
        ]
    return names


def make_cache_section(ids: Ids, cache: CacheFacts, images: CacheImages) -> Element:
    """Make the section about a cache."""
    return tag(
        "div",
        _facts(cache),
        tag("div", list(_charts(ids, cache)), class_="charts"),
        _confused_classes(cache.stats, images),
        tag("p", images.note, class_="note") if images.note else None,
        _hardest_samples(cache.stats, images),
        [_views_by_seed(sample, images) for sample in images.samples],
    )


def _facts(cache: CacheFacts) -> Element:
    about = cache.about
    teacher, data, recipe = about["teacher"], about["dataset"], about["recipe"]
    views = join_background(f"{recipe['name']} v{recipe['version']}", recipe.get("background"))
    disk = about["bytes_on_disk"]
    rows = [
        ("cache", about["path"]),
        ("teacher", f"{teacher['name']}, weights {teacher['weights']}, {teacher['precision']}"),
        (
            "data",
            f"{data['name']}, {data['split']}: {count(about['n'], 'image')}, {about['num_classes']:,} classes",
        ),
        ("views", f"recipe {views}"),
        *([("left out", count(len(about["left_out"]), *UNDECODABLE))] if about["left_out"] else []),
        ("kept", f"top {about['k']} of {about['num_classes']:,} logits, profile {about['profile']}"),
        ("seeds", f"{about['complete']} complete"),
        ("teacher right", _accuracy(cache)),
        (
            "size",
            "not told by its host"
            if disk is None
            else f"{size(disk)}, {about['bytes_per_sample_view']:.1f} bytes a view",
        ),
    ]
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in rows if value])


def _accuracy(cache: CacheFacts) -> str:
    values = [(short, cache.accuracy(name)) for name, short in (("top1", "top-1"), ("top5", "top-5"))]
    text = ", ".join(f"{short} {percent(value)}" for short, value in values if value is not None)
    seeds = f", mean of {len(cache.stats.seeds)} seeds" if len(cache.stats.seeds) > 1 else ""
    return text and f"{text} on the {_which_views(cache)}{seeds}"


# Charts ---------------------------------------------------------------------------------------------------


def _charts(ids: Ids, cache: CacheFacts) -> Iterator[Element]:
    stats, measured = cache.stats, _measured_on(cache)
    edges = np.linspace(0, math.log(stats.num_classes), BINS + 1).tolist()
    views = sum(seed.views for seed in stats.seeds)
    entropy = sum(seed.entropy * seed.views for seed in stats.seeds) / max(1, views)
    yield draw_histogram(
        ids,
        "Entropy of the teacher",
        f"Views by entropy at T = 1 in nats, from 0 (certain) to log C (no idea); mean {entropy:.3g}. {measured}",
        Axis("entropy, nats"),
        edges,
        stats.entropy_bins,
        _bin_table(edges, stats.entropy_bins, "entropy"),
    )
    if stats.tail_bins:
        edges = np.linspace(math.log10(LEAST_TAIL), 0, BINS + 1).tolist()
        yield draw_histogram(
            ids,
            f"Probability outside the top {stats.k}",
            f"Views by log₁₀ of the tail's mass at T = 1; the first bin has all of 10⁻¹⁰ or less. {measured}",
            Axis("log₁₀ of the tail's mass"),
            edges,
            stats.tail_bins,
            _bin_table(edges, stats.tail_bins, "log₁₀ mass"),
        )
    if len(cache.kept) > 1:
        yield _chart_mass(ids, cache)
        yield _chart_kl(ids, cache)
    if cache.array_bytes:
        rows = [(name, count, f"{count:.2f}") for name, count in cache.array_bytes.items()]
        numbers = ChartTable(("array", "bytes a view"), tuple((name, text) for name, _, text in rows))
        total = sum(cache.array_bytes.values())
        note = f"Bytes of a view in the shards of one seed, compressed; {total:.1f} together."
        yield draw_bars(ids, "Bytes by array", note, rows, numbers)
    if len(stats.seeds) > 1:
        yield _chart_seeds(ids, cache)


def _chart_mass(ids: Ids, cache: CacheFacts) -> Element:
    note = f"Probability of the k likeliest classes at temperature T; mean of {cache.tried:,} views."
    rows = tuple((str(first.k), *(f"{100 * mass:.2f} %" for mass in first.mass)) for first in cache.kept)
    numbers = ChartTable(("k", *map(_temperature, TEMPERATURES)), rows)
    curves = [
        Series(_temperature(t), tuple((float(first.k), first.mass[n]) for first in cache.kept), n, marks=True)
        for n, t in enumerate(TEMPERATURES)
    ]
    log = cache.kept[-1].k > 16
    y = Axis(percent=True, high=1.0)
    return draw_lines(
        ids, "Top-k mass against k", note, Axis("k", log=log, whole=True), y, curves, numbers, legend=True
    )


def _chart_kl(ids: Ids, cache: CacheFacts) -> Element:
    tail = "spread evenly"
    if cache.about["class_statistics"]:
        tail = "completed by the class statistics"
    elif cache.about["k"] == cache.about["num_classes"]:
        tail = "completed by class statistics of other views, unless an even one is nearer"
    fewer = cache.kept[:-1]
    note = (
        f"KL in nats from what this cache holds to what one of fewer would (derive --top-k), "
        f"the tail {tail}; mean of {cache.tried:,} views, logarithmic scale."
    )
    rows = tuple((str(first.k), *(f"{kl:.3g}" for kl in first.kl)) for first in fewer)
    curves = [
        Series(_temperature(t), tuple((float(first.k), first.kl[n]) for first in fewer), n, marks=True)
        for n, t in enumerate(TEMPERATURES)
    ]
    x = Axis("k", log=cache.kept[-1].k > 16, whole=True)
    numbers = ChartTable(("k", *map(_temperature, TEMPERATURES)), rows)
    return draw_lines(
        ids, "What fewer logits would lose", note, x, Axis(log=True), curves, numbers, legend=True
    )


def _chart_seeds(ids: Ids, cache: CacheFacts) -> Element:
    stats = cache.stats
    curves = {
        "mean top-1 probability": {float(s.seed): s.confidence for s in stats.seeds},
        "top-1 accuracy": {float(s.seed): s.top1 for s in stats.seeds if s.top1 is not None},
    }
    curves = {name: curve for name, curve in curves.items() if curve}
    series = [
        Series(name, tuple(curve.items()), number, marks=True)
        for number, (name, curve) in enumerate(curves.items())
    ]
    note = f"On the {_which_views(cache)}, seed by seed."
    if stats.agreement is not None:
        note += f" From one to the next {100 * stats.agreement:.1f} % of samples keep their top class."
    rows = tuple(
        (
            str(s.seed),
            *(f"{100 * curve[s.seed]:.2f} %" if s.seed in curve else "–" for curve in curves.values()),
        )
        for s in stats.seeds
    )
    numbers = ChartTable(("seed", *curves), rows)
    x = Axis("augmentation seed", whole=True)
    return draw_lines(ids, "The teacher by seed", note, x, Axis(percent=True), series, numbers, legend=True)


def _bin_table(edges: Sequence[float], counts: Sequence[int], quantity: str) -> ChartTable:
    rows = tuple((f"{a:.3g} to {b:.3g}", f"{n:,}") for a, b, n in zip(edges, edges[1:], counts, strict=False))
    return ChartTable((quantity, "views"), rows)


# Classes and samples --------------------------------------------------------------------------------------


def _confused_classes(stats: StatsReport, images: CacheImages) -> Element | None:
    pairs = stats.neighbours[:MOST_PAIRS]
    if not pairs:
        return None
    rows = [
        [images.name_of(pair.of), images.name_of(pair.other), f"{100 * pair.probability:.2f} %"]
        for pair in pairs
    ]
    headers = ["class", "taken for", "mean probability"]
    return tag(
        "div", tag("h3", "What the teacher confuses"), table(None, headers, rows, name="Confused classes")
    )


def _hardest_samples(stats: StatsReport, images: CacheImages) -> Element | None:
    if not stats.hardest:
        return None
    labelled = any(hard.label >= 0 for hard in stats.hardest)
    folder = _folder([hard.name for hard in stats.hardest])
    cards = []
    for hard in stats.hardest:
        thumbnail, answer = images.hardest.get(hard.sample), images.name_of(hard.teacher)
        label = images.name_of(hard.label) if hard.label >= 0 else None
        alt = f"{hard.name}, {f'label {label}, ' if label else ''}taken for {answer}"
        cards.append(
            tag(
                "li",
                _image(thumbnail, alt) if thumbnail else None,
                label and tag("b", f"label {label}"),
                tag("span", f"p = {hard.probability:.2g}, teacher says {answer}"),
                tag("span", hard.name.removeprefix(folder).removeprefix(f"{label}/"), title=hard.name),
            )
        )
    which = "their label has" if labelled else "their likeliest class has"
    note = f"Samples by p, the mean probability that {which} over the seeds; the teacher's word is the last seed's."
    where = f" Files are below {folder}" if folder else ""
    return tag(
        "div",
        tag("h3", "Hardest samples"),
        tag("p", note + where, class_="note"),
        tag("ol", cards, class_="cards"),
    )


def _views_by_seed(sample: SeenSample, images: CacheImages) -> Element:
    label = f", label {images.name_of(sample.label)}" if sample.label >= 0 else ""
    cards = [tag("li", _image(sample.thumbnail, f"{sample.name} as it is"), tag("b", "the image"))]
    for view in sample.views:
        answers = [
            tag(
                "li",
                tag("span", images.name_of(class_), title=images.name_of(class_)),
                tag("span", share(p)),
                style=f"--p:{p:.4f}",
            )
            for class_, p in view.answers
        ]
        image = _image(view.thumbnail, f"{sample.name} viewed under seed {view.seed}")
        cards.append(tag("li", image, tag("b", f"seed {view.seed}"), tag("ol", answers, class_="answers")))
    note = f"{sample.name}{label}; below each view the teacher's first classes and their probabilities."
    return tag(
        "div",
        tag("h3", f"{sample.why.capitalize()} under several seeds"),
        tag("p", note, class_="note"),
        tag("ul", cards, class_="cards"),
    )


def _folder(names: Sequence[str]) -> str:
    """Return the folders that all of these names share."""
    shared = os.path.commonpath({os.path.dirname(name) for name in names})
    return shared and os.path.join(shared, "")


def _image(thumbnail: Thumbnail, alt: str) -> Element:
    width, height = thumbnail.width, thumbnail.height
    small = "pixels" if max(width, height) <= 48 else None
    return tag("img", src=thumbnail.uri, width=width, height=height, alt=alt, class_=small)


# Words ----------------------------------------------------------------------------------------------------


def _which_views(cache: CacheFacts) -> str:
    return "test images" if cache.of_test_images else "training views"


def _measured_on(cache: CacheFacts) -> str:
    seeds = [seed.seed for seed in cache.stats.seeds]
    text = seed_list(seeds)
    if len(seeds) == cache.complete:
        return f"Measured on {text}."
    numbers = text.removeprefix("seeds ").removeprefix("seed ")
    return (
        f"Measured on {len(seeds)} of {cache.complete} complete seeds ({numbers}), a sample, to stay quick."
    )


def _temperature(temperature: float) -> str:
    return f"T = {temperature:g}"
