"""Class statistics as they lie in the root of a cache: the files of one small group, packed, unpacked and checked.

The group's zarr.json holds the digest of all the rest and is written last: without it there are none.
"""

import errno
import hashlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import zarr

from logitcache.errors import FormatError, OptionError, StorageError
from logitcache.format.class_statistics import MOST_FACTORS, ClassStatistics
from logitcache.format.schema import ArraySpec, CacheSpec, itemsize
from logitcache.format.spec import Spec
from logitcache.store.codecs import pack, unpack
from logitcache.store.disk import reading
from logitcache.store.place import CLASS_STATISTICS, Place
from logitcache.store.shards import group_metadata, open_group, require_form, shard_file

MOST_STATISTICS_BYTES = 1 << 28  # before compression: a reader holds them in memory
HOW_TO_RENEW = (
    "restore them with `logitcache copy` from a copy, or make them anew with `logitcache calibrate`"
)

_DATA = ("mean/c/0", "factors/c/0/0")
_METADATA = ("mean/zarr.json", "factors/zarr.json", "zarr.json")
STATISTICS_FILES = tuple(f"{CLASS_STATISTICS}/{name}" for name in (*_DATA, *_METADATA))  # as they are written


@dataclass(frozen=True)
class StatisticsGroup(Spec):
    """The attributes of the group: what is no array of the statistics, and the digest of all."""

    noise: float
    views: int
    digest: str


def statistics_digest(spec: CacheSpec, statistics: ClassStatistics) -> str:
    """Return 16 hex digits: a digest of class statistics and of whose they are.

    Their identity is the teacher, the data as it was before it grew, the recipe and the number of classes. It is the
    same in a cache that is derived from another.
    """
    teacher = spec.teacher
    identity = (
        teacher.weights_sha256,
        teacher.precision,
        spec.layout.fingerprint_of(0),
        spec.recipe_sha256,
        *statistics.factors.shape,
        statistics.views,
    )
    digest = hashlib.blake2b("/".join(map(str, identity)).encode(), digest_size=8)
    digest.update(struct.pack("<d", statistics.noise))
    for array in (statistics.mean, statistics.factors):
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


def pack_statistics(spec: CacheSpec, statistics: ClassStatistics) -> dict[str, bytes]:
    """Return the files of class statistics by name from the root, in the order in which they are written.

    Raises:
        OptionError: they are of another number of classes, or larger than a reader takes.
    """
    classes, factors = statistics.factors.shape
    if classes != spec.dataset.num_classes:
        raise OptionError(f"expected class statistics of {spec.dataset.num_classes} classes, found {classes}")
    if (size := classes * factors * itemsize("float32")) > MOST_STATISTICS_BYTES:
        raise OptionError(
            f"class statistics of {factors} factors take {size} bytes, more than {MOST_STATISTICS_BYTES}; "
            "keep fewer factors"
        )
    attributes = StatisticsGroup(
        float(statistics.noise), int(statistics.views), statistics_digest(spec, statistics)
    )
    arrays = spec.statistics_arrays(factors)
    packed = (
        pack(values, a) for values, a in zip((statistics.mean, statistics.factors), arrays, strict=True)
    )
    files = {shard_file(a, 0): file for a, file in zip(arrays, packed, strict=True) if file is not None}
    files |= group_metadata(arrays, attributes.to_dict())
    return {f"{CLASS_STATISTICS}/{name}": files[name] for name in (*_DATA, *_METADATA) if name in files}


def read_statistics(place: Place, spec: CacheSpec) -> ClassStatistics | None:
    """Read the class statistics of the cache at `place`; None if it has none.

    Raises:
        FormatError: they are damaged, or lost from a cache that began with them.
        StorageError: the disk or the host said no.
    """
    if files := fetch_statistics(place, spec):
        return unpack_statistics(files, spec, place)
    if spec.calibrated:
        raise FormatError(f"{place} has lost its class statistics; {HOW_TO_RENEW}")
    return None


def fetch_statistics(place: Place, spec: CacheSpec) -> dict[str, bytes]:
    """Read the files of the class statistics of the cache at `place`, by name from the root; none if it has none.

    Raises:
        FormatError: one is too large, or no file.
        StorageError: the disk or the host said no.
    """
    own = place.at(CLASS_STATISTICS)
    with _reading(own):
        try:
            files = own.fetch(_METADATA)
        except StorageError as error:
            if error.errno == errno.EACCES and not place.writable and not spec.calibrated:
                return {}  # so S3 answers on the web, for what is not there, those who may not list
            raise
        if "zarr.json" not in files:
            return {}
        classes = spec.dataset.num_classes
        most = min(MOST_STATISTICS_BYTES, classes * min(classes, MOST_FACTORS) * itemsize("float32"))
        files |= own.fetch(_DATA, 2 * most + (1 << 20))
    return {f"{CLASS_STATISTICS}/{name}": data for name, data in files.items()}


def fetch_attributes(place: Place) -> StatisticsGroup | None:
    """Read what the group's zarr.json tells of class statistics, be the rest damaged; None if it tells nothing.

    Raises:
        StorageError: the disk or the host said no.
    """
    own = place.at(CLASS_STATISTICS)
    try:
        with _reading(own):
            files = own.fetch(["zarr.json"])
            return StatisticsGroup.from_dict(open_group(files).attrs.asdict()) if files else None
    except FormatError:
        return None


def unpack_statistics(files: Mapping[str, bytes], spec: CacheSpec, where: object) -> ClassStatistics:
    """Unpack the files of class statistics, and check them against their digest.

    Raises:
        FormatError: they are damaged, or another cache's.
    """
    own = f"{where}/{CLASS_STATISTICS}"
    data = {name.removeprefix(f"{CLASS_STATISTICS}/"): file for name, file in files.items()}
    with _reading(own):
        group = open_group({name: data[name] for name in _METADATA if name in data})
        attributes = StatisticsGroup.from_dict(group.attrs.asdict())
        arrays = _require_arrays(group, spec, own)
        mean, factors = (
            unpack(data.get(shard_file(a, 0)), a, a.shape[0]).astype(np.float32, copy=False) for a in arrays
        )
        statistics = ClassStatistics(mean, factors, attributes.noise, attributes.views)
        if (found := statistics_digest(spec, statistics)) != attributes.digest:
            expected = attributes.digest[:16]
            raise FormatError(
                f"these are not the numbers that were written for this cache (digest {found!r}, not {expected!r})"
            )
    return statistics


def _require_arrays(group: zarr.Group, spec: CacheSpec, where: str) -> tuple[ArraySpec, ...]:
    """Check the form of the group's arrays before a byte of them is unpacked; return what they are.

    Raises:
        FormatError: one is missing, has another form, or is too large.
    """
    classes, array = spec.dataset.num_classes, group.get("factors")
    factors = array.shape[1] if isinstance(array, zarr.Array) and array.ndim == 2 else 1
    most = min(classes, MOST_FACTORS, MOST_STATISTICS_BYTES // (classes * itemsize("float32")))
    if not 1 <= factors <= most:
        raise FormatError(f"expected 1 to {most} factors of {classes} classes, found {factors}")
    arrays = spec.statistics_arrays(factors)
    for form in arrays:
        require_form(group, [form], where)
    return arrays


@contextmanager
def _reading(where: object) -> Iterator[None]:
    """Raise whatever damaged files raise as `FormatError`, with what to do about it."""
    with reading(where, HOW_TO_RENEW):
        try:
            yield
        except FormatError as error:
            place = "" if str(error).startswith(str(where)) else f"{where}: "
            raise FormatError(f"{place}{error}; {HOW_TO_RENEW}") from error
