"""Going on with a cache by the names of the command line: what these leave open is as the cache has it."""

import shlex
from collections.abc import Callable
from pathlib import Path

from logitcache.dump.inputs import Sources
from logitcache.dump.job import DumpConfig
from logitcache.format.identity import RecipeSpec
from logitcache.store import CacheWriter

SOURCES = ("weights", "data", "split", "recipe", "input_size")
KEPT = ("top_k", "profile", "precision")


def adopted(
    out: str | Path, sources: Sources, config: DumpConfig, on_note: Callable[[str], None] | None = None
) -> tuple[Sources, DumpConfig]:
    """Return what a dump into `out` starts from and its settings, with nothing left open that a cache there says.

    Nothing is proved by that: `dump` compares all that identifies the cache, as ever.

    Args:
        out: path or URL of the cache, which need not be there yet.
        sources: teacher, data and recipe by name.
        config: settings.
        on_note: called with a line that names what was taken from the cache, as options.

    Raises:
        OptionError: the cache names code that is not your own, or a file of weights, which must be given.
        LogitCacheError: as `CacheWriter.there` does.
    """
    cache = CacheWriter.there(out)
    if cache is None:
        return sources, config
    named, settled = sources.as_in(cache), config.as_in(cache.spec)
    taken = _taken(sources, named, SOURCES) + _taken(config, settled, KEPT)
    if taken and on_note:
        on_note(f"{out} is there, and goes on with its own {' '.join(taken)}")
    return named, settled


def _taken(before: object, after: object, names: tuple[str, ...]) -> list[str]:
    changed = [
        (name, getattr(after, name)) for name in names if getattr(after, name) != getattr(before, name)
    ]
    texts = [(name, value.name if isinstance(value, RecipeSpec) else str(value)) for name, value in changed]
    return [f"--{name.replace('_', '-')} {shlex.quote(text)}" for name, text in texts if text != "train"]
