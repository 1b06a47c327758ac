"""A smaller cache from a larger one, without the teacher: fewer logits, coarser gaps, or both.

What the source keeps of the tail and what leaves the top-k are two groups of logits whose log-sum-exp, mean and,
unless the cache is calibrated, variance are known, so those of both together follow exactly. Nothing is invented:
more logits than the source has, or finer gaps, are refused.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitcache.errors import MismatchError, OptionError
from logitcache.format.identity import Profile, profile_named
from logitcache.format.quantize import decode_gaps
from logitcache.format.schema import CacheSpec
from logitcache.format.spec import Spec
from logitcache.store.copy import open_copy
from logitcache.store.reader import CacheReader

Arrays = dict[str, npt.NDArray[Any]]
ROWS = 4096  # at a time, as a few float64 copies of them are held


@dataclass(frozen=True)
class DeriveReport(Spec):
    """What was derived: its views, k and profile, shards written now, shards that were there already."""

    path: str
    seeds: tuple[int, ...]
    k: int
    profile: str
    views: int
    shards_written: int
    shards_there: int


def derive_cache(
    source: str | Path,
    out: str | Path,
    *,
    top_k: int | None = None,
    profile: str | None = None,
    seeds: Sequence[int] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> DeriveReport:
    """Make a cache of fewer or coarser logits from another; started again, go on at the first missing shard.

    Teacher, data, recipe, shards, canaries, class statistics and samples without a teacher stay, so the result can be
    trained from, continued by `dump`, or grown, as if it had been dumped like this; where the source has grown since,
    it follows.
    From an `exact` cache it is what a dump would have stored (the tail to float32 rounding); from another it is
    computed from the gaps stored there, which have been rounded once already.

    Args:
        source: path of the cache to derive from.
        out: path of the cache to make.
        top_k: logits to keep per view; those of the source by default.
        profile: how to store the gaps; by default as the source, of fewer logits from "exact" by "default".
        seeds: complete seeds of the source; all of them by default.
        on_progress: called with (views done, views to do) after every shard.

    Raises:
        OptionError: the source has no such logits or gaps, or already is what is asked for.
        IncompleteError: seeds are not complete in the source.
        MismatchError: there is another cache at `out`, or it has other class statistics.
        BusyError: another process writes one of the seeds.
        FormatError: a shard of the source is damaged.
        StorageError: the disk said no.
    """
    reader = CacheReader(source)
    spec = derive_spec(reader.spec, top_k, profile)
    chosen = reader.choose_complete(seeds or ())
    try:
        writer = open_copy(reader, out, spec)
    except MismatchError as error:
        raise MismatchError(
            f"{out} is another cache than one derived from {reader.path}",
            error.fields,
            "derive to another place",
        ) from error
    done, written, total = 0, 0, len(chosen) * spec.dataset.n
    for seed in chosen:
        with writer.seed(seed) as seed_writer:
            committed = seed_writer.committed()
            for shard in range(spec.layout.shards):
                if not committed[shard]:
                    seed_writer.write(shard, reduce_shard(reader.read(seed, shard), reader.spec, spec))
                    written += 1
                done += len(spec.layout.samples_of(shard))
                if on_progress:
                    on_progress(done, total)
    there = len(chosen) * spec.layout.shards - written
    return DeriveReport(str(out), tuple(chosen), spec.k, spec.profile.name, total, written, there)


def derive_spec(source: CacheSpec, top_k: int | None = None, profile: str | None = None) -> CacheSpec:
    """Return the spec of a cache with `top_k` logits in another profile, and with the shards of `source`.

    Raises:
        OptionError: it would need what the source does not hold, or it is the spec of the source.
        UnknownNameError: no such profile.
    """
    k = source.k if top_k is None else top_k
    fewer = source.profile.name == "exact" and k < source.k  # which exact is not made for
    target = profile_named(profile or "default") if profile or fewer else source.profile
    if k < 1:
        raise OptionError(f"top-k must be at least 1, found {k}")
    if target.name == "exact" != source.profile.name or k > source.k:
        logits = "every class" if target.name == "exact" else f"the top {k} logits"
        raise OptionError(
            f"cannot derive {logits} from a cache that keeps the top {source.k} in profile "
            f"{source.profile.name}; that takes the teacher: use `logitcache dump`"
        )
    if target.name == "exact" and k < source.k:
        raise OptionError(
            f"profile exact keeps every class, found --top-k {k}; choose a profile too, such as default"
        )
    if _gap_step(target) < _gap_step(source.profile) or target.scalar_bits > source.profile.scalar_bits:
        raise OptionError(
            f"cannot derive profile {target.name} ({target.gap_dtype} gaps) from {source.profile.name} "
            f"({source.profile.gap_dtype}), which is coarser; that takes the teacher: use `logitcache dump`"
        )
    if (k, target) == (source.k, source.profile):
        raise OptionError(
            f"nothing to derive: the cache keeps the top {k} in profile {target.name} already; "
            "give another --top-k or --profile"
        )
    return dataclasses.replace(source, k=k, profile=target)


def reduce_shard(stored: Arrays, source: CacheSpec, spec: CacheSpec) -> Arrays:
    """Reduce one shard, as `CacheReader.read` returns it, to the logits of `spec`, as `SeedWriter.write` takes it.

    Args:
        stored: arrays by name, (rows, …), in stored dtypes.
        source: the spec of the cache that they were read from.
        spec: the spec of the cache to write them to, of equal or smaller k.

    Returns:
        Arrays of `spec` by name; gaps float32.
    """
    gap = decode_gaps(stored["gap"], source.profile)
    reduced = {**stored, "ids": stored["ids"][:, : spec.k], "gap": gap[:, : spec.k]}
    if spec.k == source.k:
        return reduced
    names = [a.name for a in source.arrays() if a.name in _TAIL]
    blocks = [slice(start, start + ROWS) for start in range(0, len(gap), ROWS)]
    tails = [
        _merged_tail({name: stored[name][rows] for name in names}, gap[rows, spec.k :], source.tail_size)
        for rows in blocks
    ]
    invalid = np.isnan(stored["top"])
    for name in tails[0]:
        values = np.concatenate([tail[name] for tail in tails])
        reduced[name] = np.where(invalid, 0, values).astype(np.float32)
    return reduced


_TAIL = ("tail_lse", "tail_mean", "tail_var")


def _merged_tail(tail: Arrays, leaving: npt.NDArray[np.float32], size: int) -> Arrays:
    """Merge a tail of `size` classes with d more of rising gaps (rows, d): lse, mean, variance, (rows,) float64.

    Where the variance of the first is not known, that of both is not returned.
    """
    t = -leaving.astype(np.float64)
    largest, d = t[:, :1], t.shape[1]
    lse = largest[:, 0] + np.log(np.exp(t - largest).sum(1))
    if not size:
        return {"tail_lse": lse, "tail_mean": t.mean(1), "tail_var": t.var(1)}
    old = {name: values.astype(np.float64) for name, values in tail.items()}
    mean = (size * old["tail_mean"] + t.sum(1)) / (size + d)
    merged = {"tail_lse": np.logaddexp(old["tail_lse"], lse), "tail_mean": mean}
    if "tail_var" in old:
        squares = size * (old["tail_var"] + (old["tail_mean"] - mean) ** 2)
        merged["tail_var"] = (squares + ((t - mean[:, None]) ** 2).sum(1)) / (size + d)
    return merged


def _gap_step(profile: Profile) -> float:
    """Return the difference between neighbouring gaps near 1 that a profile can store."""
    return profile.gap_step or float(np.finfo(profile.gap_dtype).eps)
