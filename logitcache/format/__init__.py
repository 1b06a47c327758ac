"""Format: what a cache is, as facts in frozen dataclasses. No torch, no files; every wing may import it.

- `spec`: dataclasses that round-trip through JSON, with every field checked;
- `identity`: what makes two caches the same: teacher, data set, recipe, profile;
- `schema`: `CacheSpec`, the cache as a whole, its arrays, and a sample's row of bytes in a spool;
- `shard_layout`: which samples a shard holds, as the data set grew;
- `quantize`: how numbers are rounded, and gaps coded.

`docs/format.md` says the same for other readers.
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.format.identity import (
        PROFILES,
        AdapterSpec,
        DatasetSpec,
        Profile,
        RecipeSpec,
        StepSpec,
        TeacherSpec,
    )
    from logitcache.format.schema import CacheSpec

__all__ = [
    "PROFILES",
    "AdapterSpec",
    "CacheSpec",
    "DatasetSpec",
    "Profile",
    "RecipeSpec",
    "StepSpec",
    "TeacherSpec",
]

__getattr__ = lazy(
    __name__,
    {
        "identity": "AdapterSpec DatasetSpec PROFILES Profile RecipeSpec StepSpec TeacherSpec",
        "schema": "CacheSpec",
    },
)
