"""Format: what a cache is. Facts only, without torch: specs, identity, schema, how numbers are quantized."""

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
