"""Going on with a cache by the names of the command line: what these leave open is as the cache has it."""

import shlex
from collections.abc import Callable

from logitcache.dump.inputs import DumpInputs
from logitcache.dump.settings import DumpConfig
from logitcache.format.identity import RecipeSpec
from logitcache.store import CacheReader
from logitcache.views.recipes import NO_BACKGROUND

INPUT_FIELDS = ("weights", "data", "split", "recipe", "background", "input_size")
AS_ALWAYS = ("train", NO_BACKGROUND)  # of what is adopted, not worth a word
CONFIG_FIELDS = ("top_k", "profile", "precision")


def adopt_defaults(
    cache: CacheReader | None,
    inputs: DumpInputs,
    config: DumpConfig,
    on_note: Callable[[str], None] | None = None,
) -> tuple[DumpInputs, DumpConfig]:
    """Return inputs and settings of a dump that goes on with a cache; those left open are the cache's.

    Nothing is proved by that: `dump` compares all that identifies the cache.

    Args:
        cache: as `CacheWriter.find` reads it; None, where there is none yet, leaves all as it is.
        inputs: teacher, data and recipe by name.
        config: settings.
        on_note: called with a line that names what was taken from the cache, as options.

    Raises:
        OptionError: the cache names code that is not your own, or a file of weights, which must be given.
    """
    if cache is None:
        return inputs, config
    filled_inputs, filled_config = inputs.with_defaults_of(cache), config.with_defaults_of(cache.spec)
    options = _changed_options(inputs, filled_inputs, INPUT_FIELDS)
    options += _changed_options(config, filled_config, CONFIG_FIELDS)
    if options and on_note:
        on_note(f"{cache.path} is there, and goes on with its own {' '.join(options)}")
    return filled_inputs, filled_config


def _changed_options(before: object, after: object, names: tuple[str, ...]) -> list[str]:
    changed = [
        (name, getattr(after, name)) for name in names if getattr(after, name) != getattr(before, name)
    ]
    texts: list[tuple[str, str]] = []
    for name, value in changed:
        texts.append((name, value.name if isinstance(value, RecipeSpec) else str(value)))
        if isinstance(value, RecipeSpec) and value.background:
            texts.append(("background", value.background))
    return [
        f"--{name.replace('_', '-')} {shlex.quote(text)}" for name, text in texts if text not in AS_ALWAYS
    ]
