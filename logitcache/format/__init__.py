"""Format: what a cache is, as facts in frozen dataclasses. No torch, no files; every wing may import it.

- `spec`: dataclasses that round-trip through JSON, with every field checked;
- `identity`: what makes two caches the same: teacher, data set, recipe, profile;
- `schema`: `CacheSpec`, the cache as a whole, its arrays, and a sample's row of bytes in a spool;
- `class_statistics`: how a teacher's classes vary together, once per cache;
- `shard_layout`: which samples a shard holds, as the data set grew;
- `quantize`: how numbers are rounded, and gaps coded.

`docs/format.md` says the same for other readers.
"""

from typing import TYPE_CHECKING

from logitcache.lazy import lazy

if TYPE_CHECKING:
    from logitcache.format.class_statistics import ClassStatistics
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
    "ClassStatistics",
    "DatasetSpec",
    "Profile",
    "RecipeSpec",
    "StepSpec",
    "TeacherSpec",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "class_statistics": "ClassStatistics",
        "identity": "AdapterSpec DatasetSpec PROFILES Profile RecipeSpec StepSpec TeacherSpec",
        "schema": "CacheSpec",
    },
)
