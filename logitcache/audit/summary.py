"""A cache in a few lines, as `info` prints them: teacher, data, seeds, size, how confident, and how to use it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from logitcache.audit.left_out import find_samples_left_out, name_samples
from logitcache.errors import FormatError
from logitcache.format.identity import RecipeSpec
from logitcache.store.reader import CacheReader, Commits
from logitcache.store.root import seed_list
from logitcache.teacher.completion import Completion
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import decode_shard
from logitcache.views.replay import view_conditions

COMPLETED = 1024  # rows of a shard whose tail is completed
SEEDS = 3  # a shard of each is read: enough for two digits of a mean
TEMPERATURES = (1.0, 4.0)


def summarize(reader: CacheReader, *, open_data: bool = True) -> dict[str, Any]:
    """Describe a cache in JSON values: `CacheReader.info`, and

    - `complete`: its complete seeds, as text;
    - `confidence`: mean top-1 probability, and mean tail mass by temperature, over one shard of at most three seeds;
      None where nothing is committed;
    - `left_out`: `sample`, `image` and `reason` of each sample without a teacher, as its image did not decode; by
      number where the folder that the cache names is not opened, or not there; None of a cache at a host, where it
      would take all of a seed to know;
    - `damaged`: why there is no `confidence`, or no `left_out`, although something is committed; or None;
    - `view_size`: side of its views in pixels, or None where the images' own decides;
    - `other_versions`: libraries whose version here is another than where it was made, as [there, here]; likewise
      the decoder of `jpeg` files and the kind of `cpu`.

    Raises:
        FormatError: metadata or a commit entry is damaged.
        StorageError: the disk or the host said no.
    """
    here, commits = view_conditions(), reader.all_commits()
    confidence, damaged, left_out = None, None, None
    try:
        confidence = _confidence(reader, commits)
        samples = find_samples_left_out(reader, commits)
        left_out = (
            None
            if samples is None
            else [bad.to_dict() for bad in name_samples(reader, samples, open_data=open_data)]
        )
    except FormatError as error:
        damaged = str(error)
    return {
        **reader.info(commits),
        "complete": seed_list([seed for seed, digests in commits.items() if digests.all()]),
        "confidence": confidence,
        "damaged": damaged,
        "left_out": left_out,
        "view_size": view_size(reader.spec.recipe),
        "other_versions": {
            name: [there, here.get(name)]
            for name, there in reader.spec.versions.items()
            if there != here.get(name)
        },
    }


def view_size(recipe: RecipeSpec) -> int | None:
    """Return the side in pixels of a recipe's views, by the last of its steps that fixes one; None if none does."""
    size = None
    for step in recipe.steps:
        if ":" in step.transform:  # code of the user's own may do anything
            size = None
        found = step.args.get("size")
        size = found if isinstance(found, int) else size
    return size


def _confidence(reader: CacheReader, commits: Mapping[int, Commits]) -> dict[str, Any] | None:
    """Measure the first committed shard of at most `SEEDS` seeds, evenly spaced among those that have one."""
    first = [(seed, int(np.flatnonzero(digests)[0])) for seed, digests in commits.items() if digests.any()]
    statistics = reader.statistics()
    completion = None if statistics is None else Completion.of(statistics)
    shards = [decode_shard(reader, *each, completion) for each in first[:: max(1, -(-len(first) // SEEDS))]]
    parts = [teacher[~teacher.top.isnan()] for teacher in shards]
    views = sum(len(part) for part in parts)
    if not views:
        return None
    top1 = sum(float(part.listed_at(1.0).probs[:, 0].double().sum()) for part in parts)
    mass = {t: sum(len(part) * _tail_mass(part, t) for part in parts) for t in TEMPERATURES}
    return {
        "views": views,
        "mean_top1_probability": top1 / views,
        "mean_tail_mass": {f"{t:g}": total / views for t, total in mass.items()},
    }


def _tail_mass(teacher: SparseTeacher, temperature: float) -> float:
    """Return the mean probability outside the listed classes; of some rows where the tail is to be completed."""
    if not len(teacher) or teacher.completion is None or temperature == 1.0:
        return float(teacher.listed_at(temperature).tail_mass.double().mean()) if len(teacher) else 0.0
    some = teacher[slice(None, None, -(-len(teacher) // COMPLETED))]
    listed = some.at(temperature).probs.gather(1, some.ids).double().sum(1)
    return float((1 - listed).clamp(min=0.0).mean())
