"""Recipes that mix images."""

from logitcache.format.identity import RecipeSpec, StepSpec

CROP = StepSpec("RandomCrop", {"size": 8, "padding": 1})

BOTH = (StepSpec("MixUp", {"alpha": 0.8, "probability": 0.4}), StepSpec("CutMix", {"probability": 0.4}))


def a_recipe(*mixes: StepSpec) -> RecipeSpec:
    return RecipeSpec("mixed", 1, (CROP, *mixes), "identity")
