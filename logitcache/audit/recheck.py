"""Run the teacher again on random views: are its logits those in the cache?"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from logitcache.errors import IncompleteError
from logitcache.format.identity import Precision
from logitcache.format.quantize import clipped_gaps, decode_gaps, gap_error, scalar_error
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.models.build import Model
from logitcache.models.forward import ViewModel, choose_device
from logitcache.store.reader import CacheReader
from logitcache.store.shards import Arrays
from logitcache.teacher.live import require_same_teacher
from logitcache.teacher.reach import MASKED, require_logits
from logitcache.views.alignment import align_images
from logitcache.views.changes import find_newer_images
from logitcache.views.images import Images
from logitcache.views.keyed_views import KeyedViews, check_batch
from logitcache.views.keys import key, permutation
from logitcache.views.replay import Drift, find_drift

NOISE: dict[Precision, float] = {"float32": 2.0**-10, "float16": 2.0**-8, "bfloat16": 2.0**-5}
"""Relative: by how much one teacher's logits may differ between batches and machines (float32 also as TF32)."""


@dataclass(frozen=True)
class RecheckReport(Spec):
    """How the teacher's logits differ from those in the cache.

    Attributes:
        clean: no canary view differs, and `off` is 0.
        views: how many were compared; samples without a teacher are left out.
        drift: how canary views of the seeds drawn differ; None if none does.
        max_error: largest absolute difference of a listed logit, top − gap, from the teacher's.
        mean_error: the mean of the same.
        off: views with a logit that differs by more than the profile's rounding and the precision's noise.
        worst: (sample, seed) of the largest difference.
        worst_image: the file of this sample, or what else says which image it is; None where `worst` is.
        top1_agreement: share of views whose first class is the teacher's.
    """

    clean: bool
    views: int
    drift: Drift | None
    max_error: float
    mean_error: float
    off: int
    worst: tuple[int, int] | None
    top1_agreement: float
    worst_image: str | None = None


def recheck_views(
    reader: CacheReader,
    images: Images,
    teacher: Model,
    count: int,
    *,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
) -> RecheckReport:
    """Run the teacher again on `count` views, drawn by the key `seed` from all committed shards.

    Images that are newer than the cache (`changes.find_newer_images`) come first: one view of each, then others.

    Args:
        reader: the cache.
        images: the images that it was made of; a warning tells of those that are missing, which are left out.
        teacher: the model that it was made by.
        count: how many views; all if there are fewer.
        seed: of the draw.
        device: as `choose_device` takes it.
        batch_size: views per forward.

    Raises:
        MismatchError: teacher or images are others than the cache's.
        IncompleteError: nothing is committed.
        DataError: an image that decoded when the cache was made no longer does.
        FormatError: a shard is damaged.
        NonFiniteError: the teacher gave NaN, infinity, or what is no logit.
    """
    images = align_images(reader, images, missing="skip")
    require_same_teacher(reader, teacher)
    chosen = _draw(reader, count, seed, find_newer_images(reader, images))
    views = KeyedViews(images, reader.spec.recipe)
    drift = find_drift(reader, views, sorted({pair[0] for pair in chosen}))
    torch_device = choose_device(device)
    model = ViewModel(teacher, reader.spec.teacher.precision).on(torch_device).eval()
    by_shard = groupby(chosen, lambda pair: (pair[0], reader.spec.layout.shard_of(pair[1])))
    parts = [_compare(reader, views, model, torch_device, list(pairs), batch_size) for _, pairs in by_shard]
    compared = [part for part in parts if part]
    pairs = [pair for part in compared for pair in part.pairs]
    if not compared:
        return RecheckReport(drift is None, 0, drift, 0.0, 0.0, 0, None, 1.0)
    errors = np.concatenate([part.errors for part in compared])
    off = int(np.concatenate([part.off for part in compared]).sum())
    worst_seed, worst_sample = pairs[int(errors.max(1).argmax())]
    return RecheckReport(
        clean=drift is None and not off,
        views=len(pairs),
        drift=drift,
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        off=off,
        worst=(worst_sample, worst_seed),
        top1_agreement=float(np.concatenate([part.agree for part in compared]).mean()),
        worst_image=images.describe(worst_sample),
    )


def _draw(reader: CacheReader, count: int, seed: int, first: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Draw distinct (seed, sample) pairs of committed shards, sorted; those of some samples `first`."""
    spec = reader.spec
    shards = [(s, int(j)) for s, commits in reader.all_commits().items() for j in np.flatnonzero(commits)]
    if not shards:
        raise IncompleteError(f"{reader.path} has no committed shard yet; run the dump again")
    ends = np.cumsum([len(spec.layout.samples_of(j)) for _, j in shards])
    total = int(ends[-1])
    stretches = [spec.layout.samples_of(j) for _, j in shards]
    within = [first[(samples.start <= first) & (first < samples.stop)] for samples in stretches]
    before = [end - samples.stop for end, samples in zip(ends, stretches, strict=True)]
    suspects = np.concatenate([some + start for some, start in zip(within, before, strict=True)])
    order = permutation(len(suspects), seed)
    views_before = _count_before(np.concatenate(within)[order])
    order = order[np.argsort(views_before, kind="stable")]  # a view of each image, then a second of each, ...
    chosen: set[int] = {*suspects[order[:count]].tolist()}
    number = 0
    while len(chosen) < min(count, total):
        chosen.add(key(seed, number) % total)
        number += 1
    pairs = []
    for index in chosen:
        at = int(np.searchsorted(ends, index, side="right"))
        samples = spec.layout.samples_of(shards[at][1])
        pairs.append((shards[at][0], samples[index - int(ends[at])]))  # counted from the shard's end
    return sorted(pairs)


def _count_before(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how often each value, (m,), stands before its place: 5 7 5 5 gives 0 0 1 2."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.arange(len(values)) - np.searchsorted(ranked, ranked)
    return counts


@dataclass(frozen=True)
class _Compared:
    """Views of one shard: (seed, sample) pairs; |difference| of listed logits, (m, k); `off` and `agree`, (m,)."""

    pairs: list[tuple[int, int]]
    errors: npt.NDArray[np.float32]
    off: npt.NDArray[np.bool_]
    agree: npt.NDArray[np.bool_]


@torch.inference_mode()
def _compare(
    reader: CacheReader,
    views: KeyedViews,
    model: ViewModel,
    device: torch.device,
    pairs: list[tuple[int, int]],
    batch_size: int,
) -> _Compared | None:
    """Compare some samples of one shard with the teacher's logits; None if none of them has a teacher."""
    spec = reader.spec
    shard = spec.layout.shard_of(pairs[0][1])
    arrays = reader.read(pairs[0][0], shard)
    start = spec.layout.samples_of(shard).start
    makeable = views.makeable(pairs[0][0])
    pairs = [pair for pair in pairs if makeable[pair[1]] and not np.isnan(arrays["top"][pair[1] - start])]
    results = []
    for first in range(0, len(pairs), batch_size):
        part = pairs[first : first + batch_size]
        rows = {name: arrays[name][[i - start for _, i in part]] for name in ("ids", "gap", "top")}
        batch = check_batch(views.__getitems__([(sample, seed) for seed, sample in part]))

        def where(row: int, pairs: list[tuple[int, int]] = part) -> str:
            seed, sample = pairs[row]
            return f"{views.images.describe(sample)} under seed {seed}"

        half = spec.teacher.precision != "float32"
        logits = require_logits(model(batch.views.to(device)).cpu(), batch.valid, where, half=half)
        results.append(_compare_rows(spec, rows, logits.numpy()))
    if not results:
        return None
    errors, off, agree = (np.concatenate(part) for part in zip(*results, strict=True))
    return _Compared(pairs, errors, off, agree)


def _compare_rows(
    spec: CacheSpec, rows: Arrays, logits: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Compare m stored rows with (m, C) logits; return errors, off and agree of `_Compared`."""
    profile = spec.profile
    ids, top, gap = rows["ids"].astype(np.int64), rows["top"][:, None], decode_gaps(rows["gap"], profile)
    gap = np.minimum(gap, MASKED)  # caches of earlier versions keep how far a class was masked
    clipped = clipped_gaps(rows["gap"], profile)
    now = np.take_along_axis(logits, ids, axis=1)
    errors = np.abs(top - gap - now)
    errors[clipped & (now < top - gap)] = 0  # a larger gap is stored as the largest
    noise = NOISE[spec.teacher.precision] * (1 + np.abs(top) + gap)
    allowed = gap_error(gap, profile) + scalar_error(top, profile) + noise
    rest = logits.copy()
    np.put_along_axis(rest, ids, -np.inf, axis=1)
    risen = rest.max(1) > (top - gap + allowed)[:, -1]
    return errors, (errors > allowed).any(1) | risen, ids[:, 0] == logits.argmax(1)
