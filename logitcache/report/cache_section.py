"""The half of the page about caches: what the teacher says, what the top k keep, hard samples, views by seed."""

import math
import os
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import numpy as np

from logitcache.audit.stats import BINS, LEAST_TAIL, StatsReport
from logitcache.report.cache_facts import TEMPERATURES, CacheFacts
from logitcache.report.charts import Axis, Numbers, Series, bars, histogram, lines
from logitcache.report.html import Ids, table, tag
from logitcache.report.metrics import percent
from logitcache.report.thumbnails import Picture, Pictures, Sample
from logitcache.store import seed_list
from logitcache.units import share, size

MOST_PAIRS = 10


def headings(caches: Sequence[CacheFacts]) -> list[str]:
    """Call each cache by teacher and data; by its split or its path too, where others are called the same."""
    abouts = [cache.about for cache in caches]
    names = [f"Cache: {about['teacher']['name']} on {about['dataset']['name']}" for about in abouts]
    for told in ([about["dataset"]["split"] for about in abouts], [about["path"] for about in abouts]):
        names = [
            name if names.count(name) == 1 else f"{name}, {part}"
            for name, part in zip(names, told, strict=True)
        ]
    return names


def about_cache(ids: Ids, cache: CacheFacts, shown: Pictures) -> Element:
    """Write the section about a cache."""
    charts = tag("div", list(_charts(ids, cache)), class_="charts")
    told = [_confused(cache.stats, shown), _note(shown), _hardest(cache.stats, shown)]
    seen = [_by_seed(sample, shown) for sample in shown.samples]
    return tag("div", _facts(cache), charts, told, seen)


def _facts(cache: CacheFacts) -> Element:
    about = cache.about
    teacher, data, recipe = about["teacher"], about["dataset"], about["recipe"]
    held = about["bytes_on_disk"]
    rows = [
        ("cache", about["path"]),
        ("teacher", f"{teacher['name']}, weights {teacher['weights']}, {teacher['precision']}"),
        ("data", f"{data['name']}, {data['split']}: {about['n']:,} images, {about['num_classes']:,} classes"),
        ("views", f"recipe {recipe['name']} v{recipe['version']}"),
        ("kept", f"top {about['k']} of {about['num_classes']:,} logits, profile {about['profile']}"),
        ("seeds", f"{about['complete']} complete"),
        ("teacher right", _right(cache)),
        (
            "size",
            "not told by its host"
            if held is None
            else f"{size(held)}, {about['bytes_per_sample_view']:.1f} bytes a view",
        ),
    ]
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in rows if value])


def _right(cache: CacheFacts) -> str:
    told = [(short, cache.right(name)) for name, short in (("top1", "top-1"), ("top5", "top-5"))]
    text = ", ".join(f"{short} {percent(value)}" for short, value in told if value is not None)
    many = f", mean of {len(cache.stats.seeds)} seeds" if len(cache.stats.seeds) > 1 else ""
    return text and f"{text} on the {'test images' if cache.tests else 'training views'}{many}"


# Charts ---------------------------------------------------------------------------------------------------


def _charts(ids: Ids, cache: CacheFacts) -> Iterator[Element]:
    found, of = cache.stats, _of_seeds(cache)
    edges = np.linspace(0, math.log(found.num_classes), BINS + 1).tolist()
    entropy = sum(seed.entropy * seed.views for seed in found.seeds) / max(
        1, sum(s.views for s in found.seeds)
    )
    yield histogram(
        ids,
        "Entropy of the teacher",
        f"Views by entropy at T = 1 in nats, from 0 (certain) to log C (no idea); mean {entropy:.3g}. {of}",
        Axis("entropy, nats"),
        edges,
        found.entropy_bins,
        _binned(edges, found.entropy_bins, "entropy"),
    )
    if found.tail_bins:
        edges = np.linspace(math.log10(LEAST_TAIL), 0, BINS + 1).tolist()
        yield histogram(
            ids,
            f"Probability outside the top {found.k}",
            f"Views by log₁₀ of the tail's mass at T = 1; the first bin has all of 10⁻¹⁰ or less. {of}",
            Axis("log₁₀ of the tail's mass"),
            edges,
            found.tail_bins,
            _binned(edges, found.tail_bins, "log₁₀ mass"),
        )
    if len(cache.kept) > 1:
        yield _mass(ids, cache)
        yield _error(ids, cache)
    if cache.array_bytes:
        named = [(name, count, f"{count:.2f}") for name, count in cache.array_bytes.items()]
        numbers = Numbers(("array", "bytes a view"), tuple((name, text) for name, _, text in named))
        total = sum(cache.array_bytes.values())
        note = f"Bytes of a view in the shards of one seed, compressed; {total:.1f} together."
        yield bars(ids, "Bytes by array", note, named, numbers)
    if len(found.seeds) > 1:
        yield _seeds(ids, cache)


def _mass(ids: Ids, cache: CacheFacts) -> Element:
    note = f"Probability of the k likeliest classes at temperature T; mean of {cache.tried:,} views."
    rows = tuple((str(kept.k), *(f"{100 * mass:.2f} %" for mass in kept.mass)) for kept in cache.kept)
    numbers = Numbers(("k", *map(_at, TEMPERATURES)), rows)
    curves = [
        Series(_at(t), tuple((float(kept.k), kept.mass[n]) for kept in cache.kept), n, marks=True)
        for n, t in enumerate(TEMPERATURES)
    ]
    log = cache.kept[-1].k > 16
    y = Axis(percent=True, high=1.0)
    return lines(
        ids, "Top-k mass against k", note, Axis("k", log=log, whole=True), y, curves, numbers, named=True
    )


def _error(ids: Ids, cache: CacheFacts) -> Element:
    fewer = cache.kept[:-1]
    note = (
        f"KL in nats from what this cache holds to what one of fewer would (derive --top-k), "
        f"the tail spread evenly; mean of {cache.tried:,} views, logarithmic scale."
    )
    rows = tuple((str(kept.k), *(f"{kl:.3g}" for kl in kept.kl)) for kept in fewer)
    curves = [
        Series(_at(t), tuple((float(kept.k), kept.kl[n]) for kept in fewer), n, marks=True)
        for n, t in enumerate(TEMPERATURES)
    ]
    x = Axis("k", log=cache.kept[-1].k > 16, whole=True)
    numbers = Numbers(("k", *map(_at, TEMPERATURES)), rows)
    return lines(ids, "What fewer logits would lose", note, x, Axis(log=True), curves, numbers, named=True)


def _seeds(ids: Ids, cache: CacheFacts) -> Element:
    found = cache.stats
    told = [("mean top-1 probability", tuple((float(s.seed), s.confidence) for s in found.seeds))]
    told += [("top-1 accuracy", tuple((float(s.seed), s.top1) for s in found.seeds if s.top1 is not None))]
    told = [(name, points) for name, points in told if points]
    curves = [Series(name, points, number, marks=True) for number, (name, points) in enumerate(told)]
    note = f"On the {'test images' if cache.tests else 'training views'}, seed by seed."
    if found.agreement is not None:
        note += f" From one to the next {100 * found.agreement:.1f} % of samples keep their top class."
    columns = [dict(points) for _, points in told]
    rows = tuple(
        (str(s.seed), *(f"{100 * column[s.seed]:.2f} %" if s.seed in column else "–" for column in columns))
        for s in found.seeds
    )
    numbers = Numbers(("seed", *(name for name, _ in told)), rows)
    x = Axis("augmentation seed", whole=True)
    return lines(ids, "The teacher by seed", note, x, Axis(percent=True), curves, numbers, named=True)


def _binned(edges: Sequence[float], counts: Sequence[int], quantity: str) -> Numbers:
    rows = tuple((f"{a:.3g} to {b:.3g}", f"{n:,}") for a, b, n in zip(edges, edges[1:], counts, strict=False))
    return Numbers((quantity, "views"), rows)


# Classes and samples --------------------------------------------------------------------------------------


def _confused(found: StatsReport, shown: Pictures) -> Element | None:
    pairs = found.neighbours[:MOST_PAIRS]
    if not pairs:
        return None
    rows = [
        [shown.name_of(pair.of), shown.name_of(pair.other), f"{100 * pair.probability:.2f} %"]
        for pair in pairs
    ]
    heads = ["class", "taken for", "mean probability"]
    return tag(
        "div", tag("h3", "What the teacher confuses"), table(None, heads, rows, name="Confused classes")
    )


def _hardest(found: StatsReport, shown: Pictures) -> Element | None:
    if not found.hardest:
        return None
    labelled = any(hard.label >= 0 for hard in found.hardest)
    folder = _folder([hard.name for hard in found.hardest])
    cards = []
    for hard in found.hardest:
        image, says = shown.hardest.get(hard.sample), shown.name_of(hard.teacher)
        label = shown.name_of(hard.label) if hard.label >= 0 else None
        alt = f"{hard.name}, {f'label {label}, ' if label else ''}taken for {says}"
        cards.append(
            tag(
                "li",
                _image(image, alt) if image else None,
                label and tag("b", f"label {label}"),
                tag("span", f"p = {hard.probability:.2g}, teacher says {says}"),
                tag("span", hard.name.removeprefix(folder).removeprefix(f"{label}/"), title=hard.name),
            )
        )
    what = "their label has" if labelled else "their likeliest class has"
    lede = f"Samples by p, the mean probability that {what} over the seeds; the teacher's word is the last seed's."
    where = f" Files are below {folder}" if folder else ""
    return tag(
        "div",
        tag("h3", "Hardest samples"),
        tag("p", lede + where, class_="note"),
        tag("ol", cards, class_="cards"),
    )


def _by_seed(sample: Sample, shown: Pictures) -> Element:
    label = f", label {shown.name_of(sample.label)}" if sample.label >= 0 else ""
    cards = [tag("li", _image(sample.picture, f"{sample.name} as it is"), tag("b", "the image"))]
    for look in sample.looks:
        answers = [
            tag(
                "li",
                tag("span", shown.name_of(class_), title=shown.name_of(class_)),
                tag("span", share(p)),
                style=f"--p:{p:.4f}",
            )
            for class_, p in look.answers
        ]
        picture = _image(look.picture, f"{sample.name} viewed under seed {look.seed}")
        cards.append(tag("li", picture, tag("b", f"seed {look.seed}"), tag("ol", answers, class_="answers")))
    lede = f"{sample.name}{label}; below each view the teacher's first classes and their probabilities."
    return tag(
        "div",
        tag("h3", f"{sample.why.capitalize()} under several seeds"),
        tag("p", lede, class_="note"),
        tag("ul", cards, class_="cards"),
    )


def _folder(names: Sequence[str]) -> str:
    """Return the folders that all of these names begin with."""
    shared = os.path.commonpath({os.path.dirname(name) for name in names})
    return shared and os.path.join(shared, "")


def _note(shown: Pictures) -> Element | None:
    return tag("p", shown.note, class_="note") if shown.note else None


def _image(picture: Picture, alt: str) -> Element:
    small = "pixels" if max(picture.width, picture.height) <= 48 else None
    return tag("img", src=picture.uri, width=picture.width, height=picture.height, alt=alt, class_=small)


# Words ----------------------------------------------------------------------------------------------------


def _of_seeds(cache: CacheFacts) -> str:
    seeds = [seed.seed for seed in cache.stats.seeds]
    text = seed_list(seeds)
    if len(seeds) == cache.complete:
        return f"Measured on {text}."
    numbers = text.removeprefix("seeds ").removeprefix("seed ")
    return (
        f"Measured on {len(seeds)} of {cache.complete} complete seeds ({numbers}), a sample, to stay quick."
    )


def _at(temperature: float) -> str:
    return f"T = {temperature:g}"
