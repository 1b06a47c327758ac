"""`CacheSpec`: what identifies a cache, and which arrays a seed holds, with their dtypes, shapes and chunks.

Nothing else in the library knows these. `docs/format.md` says the same in prose, for other readers.
"""

import dataclasses
import functools
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from logitcache.errors import Difference, FormatError, OptionError
from logitcache.format.identity import (
    DatasetSpec,
    PartSpec,
    Profile,
    RecipeSpec,
    TeacherSpec,
    join_background,
    profile_named,
)
from logitcache.format.shard_layout import ShardLayout
from logitcache.format.spec import Spec, require

FORMAT_VERSION = 3  # the newest that is read
CHUNK_SAMPLES = 65_536
SHARD_SAMPLES = 131_072
SMALLEST_SHARD = 256
SHARD_BYTES = 1 << 28  # before compression: a writer holds a shard or two in memory
CANARIES = 8
MOST_PARTS = 256

Codec = Literal["bitshuffle", "shuffle", "pcodec", "zstd"]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a seed: dtype (little-endian), shape, chunk and shard shapes, dimension names, compression."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dimensions: tuple[str, ...]
    codec: Codec


@dataclass(frozen=True)
class CacheSpec(Spec):
    """Everything that identifies a cache; the value of ``attrs["logitcache"]`` in its root group.

    `parts` says how the data set grew, oldest first; the last one is `dataset` as it is now. It is empty if the data
    set never grew. Each part begins a new shard, so that no shard is ever written again.

    `calibrated` says that the cache began with class statistics. They tell more of a row's tail than its variance,
    which such a cache does not keep.
    """

    teacher: TeacherSpec
    dataset: DatasetSpec
    recipe: RecipeSpec
    recipe_sha256: str
    k: int
    profile: Profile
    shard_samples: int
    chunk_samples: int
    canaries: int
    versions: dict[str, str]
    format_version: int = 1
    parts: tuple[PartSpec, ...] = ()
    calibrated: bool = False

    def __post_init__(self) -> None:
        classes = self.dataset.num_classes
        version = _fit_version(self.recipe, self.calibrated)
        require(
            self.format_version == version, f"format_version must be {version}, found {self.format_version}"
        )
        require(not self.calibrated or self.k < classes, "a cache of all classes has no class statistics")
        require(1 <= self.k <= classes, f"k must be 1 to {classes} (the number of classes), found {self.k}")
        require(
            1 <= self.chunk_samples <= self.shard_samples <= 1 << 24
            and self.shard_samples % self.chunk_samples == 0,
            f"a shard must be a whole number of chunks, found {self.shard_samples} / {self.chunk_samples}",
        )
        require(1 <= self.canaries <= 1024, f"canaries must be 1 to 1024, found {self.canaries}")
        require(
            self.recipe_sha256 == self.recipe.sha256,
            f"recipe_sha256 must be {self.recipe.sha256}, found {self.recipe_sha256}",
        )
        require(
            self.profile.name != "exact" or self.k == classes,
            f"profile exact keeps every class: k must be {classes}, found {self.k}",
        )
        counts = [part.n for part in self.parts]
        now = PartSpec(self.dataset.n, self.dataset.fingerprint)
        grew = 2 <= len(counts) <= MOST_PARTS and counts[0] > 0 and counts == sorted(set(counts))
        require(
            not counts or (grew and self.parts[-1] == now),
            f"parts must grow, from 2 to {MOST_PARTS} of them, to what the data set is now ({now.n} samples), "
            f"found {reprlib.repr(counts)}",
        )

    @classmethod
    def new(
        cls,
        teacher: TeacherSpec,
        dataset: DatasetSpec,
        recipe: RecipeSpec,
        *,
        k: int,
        profile: str = "default",
        versions: Mapping[str, str],
        shard_samples: int | None = None,
        calibrated: bool = False,
    ) -> Self:
        """Make the spec of a new cache; `k` is capped at the class count, the shard size fitted to n.

        Raises:
            OptionError: `k` or `shard_samples` is out of range.
            UnknownNameError: no profile of that name.
        """
        if k < 1:
            raise OptionError(f"top-k must be at least 1, found {k}; 8 is a good start")
        if shard_samples is not None and not 1 <= shard_samples <= 1 << 24:
            raise OptionError(f"shard size must be 1 to 2^24 samples, found {shard_samples}")
        spec = cls(
            teacher=teacher,
            dataset=dataset,
            recipe=recipe,
            recipe_sha256=recipe.sha256,
            k=dataset.num_classes if profile == "exact" else min(k, dataset.num_classes),
            profile=profile_named(profile),
            shard_samples=1,
            chunk_samples=1,
            canaries=CANARIES,
            versions=dict(versions),
            format_version=_fit_version(recipe, calibrated),
            calibrated=calibrated,
        )
        shard = shard_samples or fit_shard_size(dataset.n, spec.sample_bytes)
        chunk = CHUNK_SAMPLES if shard % CHUNK_SAMPLES == 0 else shard
        return dataclasses.replace(spec, shard_samples=shard, chunk_samples=chunk)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Parse the root attribute; a newer format version is refused before anything else is parsed."""
        version = data.get("format_version") if isinstance(data, Mapping) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatError(
                f"this cache has format version {version}, this logitcache reads up to {FORMAT_VERSION}; "
                "upgrade logitcache"
            )
        return super().from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Return this spec as JSON values; `parts` only if the data set grew, `calibrated` only if it is."""
        data = super().to_dict()
        for name in ("parts", "calibrated"):
            if not data[name]:
                del data[name]
        return data

    def grown(self, dataset: DatasetSpec) -> Self:
        """Return the spec of this cache after its data set has grown to `dataset`, old samples first; or this one."""
        now = PartSpec(dataset.n, dataset.fingerprint)
        if now == self._parts()[-1]:
            return self
        grown = dataclasses.replace(self.dataset, n=now.n, fingerprint=now.fingerprint)
        return dataclasses.replace(self, dataset=grown, parts=(*self._parts(), now))

    def history(self) -> list[Self]:
        """Return this spec as it was after each part, oldest first; the last is this one."""
        parts = self._parts()
        states = []
        for count, part in enumerate(parts[:-1], 1):
            dataset = dataclasses.replace(self.dataset, n=part.n, fingerprint=part.fingerprint)
            earlier = parts[:count] if count > 1 else ()
            states.append(dataclasses.replace(self, dataset=dataset, parts=earlier))
        return [*states, self]

    def _parts(self) -> tuple[PartSpec, ...]:
        return self.parts or (PartSpec(self.dataset.n, self.dataset.fingerprint),)

    @property
    def tail_size(self) -> int:
        """Number of classes outside the top-k."""
        return self.dataset.num_classes - self.k

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's view before compression."""
        arrays = [a for a in self.arrays() if a.dimensions[0] == "sample"]
        return sum(itemsize(a.dtype) * math.prod(a.shape[1:]) for a in arrays)

    @functools.cached_property
    def layout(self) -> ShardLayout:
        """Which samples each shard of a seed holds."""
        return ShardLayout(self._parts(), self.shard_samples, self.canaries)

    def arrays(self) -> tuple[ArraySpec, ...]:
        """Return the data arrays of one seed, in the order in which the commit digest takes them."""
        rows, k, profile = self.layout.rows, self.k, self.profile

        codec: Codec = "pcodec" if profile.codec == "pcodec" else "bitshuffle"
        of_gaps: Codec = "shuffle" if profile.codec == "blosc" and profile.gap_step is None else codec

        def per_sample(name: str) -> ArraySpec:
            chunks, shards = (self.chunk_samples,), (self.shard_samples,)
            return ArraySpec(name, "float32", (rows,), chunks, shards, ("sample",), codec)

        def per_rank(name: str, dtype: str, codec: Codec) -> ArraySpec:
            chunks, shards = (self.chunk_samples, k), (self.shard_samples, k)
            return ArraySpec(name, dtype, (rows, k), chunks, shards, ("sample", "rank"), codec)

        tail = ("tail_lse", "tail_mean", "tail_var")[: 2 if self.calibrated else 3] if self.tail_size else ()
        return (
            per_rank("ids", "uint16" if self.dataset.num_classes <= 1 << 16 else "uint32", codec),
            per_rank("gap", profile.stored_gap, of_gaps),
            per_sample("top"),
            *(per_sample(name) for name in tail),
            self.canary_array(),
        )

    def slice_of(self, array: ArraySpec, shard: int) -> slice:
        """Return where along its first dimension one shard of a data array lies."""
        return self.layout.rows_of(shard) if array.dimensions[0] == "sample" else slice(shard, shard + 1)

    def canary_array(self) -> ArraySpec:
        """Return the array of view digests: CRC-32 of `canary_samples` of each shard."""
        c = self.canaries
        return ArraySpec(
            "canary", "uint32", (self.layout.shards, c), (1, c), None, ("shard", "canary"), "zstd"
        )

    def commit_array(self) -> ArraySpec:
        """Return the array of commit digests; 0 (also: no file) for a shard that is not committed."""
        return ArraySpec("commit", "uint64", (self.layout.shards,), (1,), None, ("shard",), "zstd")

    def key_array(self) -> ArraySpec:
        """Return the array of sample keys, in the root: placed as samples are, a chunk per shard."""
        return ArraySpec(
            "sample_key", "uint64", (self.layout.rows,), (self.shard_samples,), None, ("sample",), "zstd"
        )

    def statistics_arrays(self, factors: int) -> tuple[ArraySpec, ArraySpec]:
        """Return the arrays of class statistics, in the root: mean and factors, a chunk each."""

        def by_class(name: str, shape: tuple[int, ...], dimensions: tuple[str, ...]) -> ArraySpec:
            return ArraySpec(name, "float32", shape, shape, None, dimensions, "zstd")

        classes = self.dataset.num_classes
        return (
            by_class("mean", (classes,), ("class",)),
            by_class("factors", (classes, factors), ("class", "factor")),
        )

    def differences(self, found: "CacheSpec") -> list[Difference]:
        """List the fields in which `found` is another cache than this one, which is what a cache has recorded.

        Versions and the names of places do not count.
        """
        mine, theirs = dict(_flatten(self.to_dict())), dict(_flatten(found.to_dict()))
        keys = [key for key in {**mine, **theirs} if key not in _WHERE and not key.startswith(_NOT_IDENTITY)]
        fields = [
            Difference(key, *(_describe(key, flat) for flat in (mine, theirs)))
            for key in keys
            if mine.get(key) != theirs.get(key)
        ]
        others = [field for field in fields if field.field != "parts"]
        return (
            others if any(field.field in DATA for field in others) else fields
        )  # `parts` would say it at length


def _fit_version(recipe: RecipeSpec, calibrated: bool) -> int:
    """Return the lowest format version that says what there is to know of such a cache."""
    if recipe.background is not None:
        return 3
    return 2 if calibrated else 1


def _describe(key: str, flat: Mapping[str, Any]) -> object:
    """Return the value of a field for messages; the recipe's digest with its name."""
    if key != "recipe_sha256":
        return flat.get(key)
    return f"{join_background(flat['recipe.name'], flat.get('recipe.background'))} ({flat[key][:12]}…)"


_NOT_IDENTITY = ("versions.", "recipe.")  # recipe_sha256 stands for all steps of the recipe
_WHERE = ("teacher.weights", "dataset.name")
DATA = ("dataset.n", "dataset.fingerprint", "parts")  # the fields in which a data set that grew differs


def fit_shard_size(n: int, sample_bytes: int) -> int:
    """Return a shard size for n samples of so many bytes each: a power of two near n / 8.

    It is 256 to 131,072 samples; fewer if they would exceed 2^28 bytes.
    """
    eighth = 1 << max(0, -(-n // 8) - 1).bit_length()
    most = 1 << max(1, SHARD_BYTES // sample_bytes).bit_length() - 1
    return min(SHARD_SAMPLES, max(SMALLEST_SHARD, eighth), most)


@dataclass(frozen=True)
class RowLayout(Spec):
    """How one sample's arrays are packed into one row of bytes of a spool: fields of (name, dtype, count, offset).

    Scalars first, then ids, then gaps, each at a multiple of its element's size, since arrays are views of the row
    and must be aligned; little-endian; `row_bytes` is a multiple of 4.
    """

    fields: tuple[tuple[str, str, int, int], ...]
    row_bytes: int
    num_classes: int
    gap_coding: Literal["values", "differences"]
    gap_step: float | None

    @classmethod
    def of(cls, spec: CacheSpec) -> Self:
        """Return the layout of the rows of `spec`."""
        arrays = [a for a in spec.arrays() if a.dimensions[0] == "sample"]
        fields, offset = [], 0
        for array in sorted(arrays, key=lambda a: (len(a.shape), a.name != "ids")):
            count = 1 if len(array.shape) == 1 else array.shape[1]
            offset = -(-offset // itemsize(array.dtype)) * itemsize(array.dtype)
            fields.append((array.name, array.dtype, count, offset))
            offset += count * itemsize(array.dtype)
        profile = spec.profile
        row_bytes, classes = -(-offset // 4) * 4, spec.dataset.num_classes
        return cls(tuple(fields), row_bytes, classes, profile.gap_coding, profile.gap_step)

    @property
    def top(self) -> slice:
        """The bytes of a row that hold the top logit, float32: NaN where a sample has no teacher."""
        start = next(offset for name, _, _, offset in self.fields if name == "top")
        return slice(start, start + 4)


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of a dtype of this format."""
    return int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
