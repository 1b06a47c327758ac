"""A cache at a glance: whose answers, of what, how confident, how large, and what it takes to use them."""

from typing import Any

import numpy as np

from logitcache.errors import FormatError
from logitcache.format.identity import RecipeSpec
from logitcache.store import CacheReader, seed_list
from logitcache.teacher.sparse import SparseTeacher
from logitcache.teacher.spool import decode
from logitcache.versions import library_versions

LOOKED_AT = 3  # seeds; a shard of each: enough for two digits of a mean
TEMPERATURES = (1.0, 4.0)


def glance(reader: CacheReader) -> dict[str, Any]:
    """Describe a cache in JSON values: `CacheReader.info`, and

    - `complete`: its complete seeds, for people;
    - `confidence`: mean top-1 probability and mean tail mass by temperature, from one shard of at most three seeds;
      None where nothing is committed;
    - `damaged`: why these cannot be told, or None;
    - `view_size`: side of its views in pixels, or None where the images' own decides;
    - `other_versions`: libraries whose version here is another than where it was made, as [there, here].
    """
    here = library_versions()
    confidence, damaged = None, None
    try:
        confidence = _confidence(reader)
    except FormatError as error:
        damaged = str(error)
    return {
        **reader.info(),
        "complete": seed_list(reader.complete()),
        "confidence": confidence,
        "damaged": damaged,
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
        if ":" in step.transform:  # your own code may do anything
            size = None
        found = step.args.get("size")
        size = found if isinstance(found, int) else size
    return size


def _confidence(reader: CacheReader) -> dict[str, Any] | None:
    """Measure one committed shard of at most `LOOKED_AT` seeds, evenly spaced among those that have one."""
    begun = [(seed, commits) for seed in reader.seeds() if (commits := reader.commits(seed)).any()]
    parts = [
        _answered(decode(reader, seed, int(np.flatnonzero(commits)[0])))
        for seed, commits in begun[:: max(1, -(-len(begun) // LOOKED_AT))]
    ]
    views = sum(len(part) for part in parts)
    if not views:
        return None
    top1 = sum(float(part.at(1.0).probs[:, 0].double().sum()) for part in parts)
    mass = {t: sum(float(part.at(t).tail_mass.double().sum()) for part in parts) for t in TEMPERATURES}
    return {
        "views": views,
        "mean_top1_probability": top1 / views,
        "mean_tail_mass": {f"{t:g}": total / views for t, total in mass.items()},
    }


def _answered(teacher: SparseTeacher) -> SparseTeacher:
    return teacher[~teacher.top.isnan()]
