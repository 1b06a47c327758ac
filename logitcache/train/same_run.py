"""Is a run that would go on the one that was begun? Its config.json says, and messages say what differs."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from logitcache.errors import Difference, MismatchError
from logitcache.format.spec import jsonable
from logitcache.paths import write_path
from logitcache.store import seed_list

MISSING = "stream.missing"  # images that are left out
NAME_OF_DATA = "stream.data.name"  # where images lie; their fingerprint, beside it, says which they are

SAME_IMAGES = (
    "a run goes on with the images that it began with: let the same ones be there, or choose another --out"
)


def require_same(path: Path, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Insist that a run folder holds a run of this configuration.

    Args:
        path: of the folder.
        found: its config.json.
        config: of the run that would go on.

    Raises:
        MismatchError: it holds one of another; `fields` says what differs.
    """
    fields: list[Difference] = []
    for name, value in json.loads(json.dumps(jsonable(config))).items():
        fields += _differences(name, found.get(name), value)
    fields = [field for field in fields if field.field != NAME_OF_DATA]
    if any(field.field == "stream.seeds" for field in fields):  # then what is held of each differs too
        fields = [field for field in fields if not field.field.startswith("stream.teacher.cached.")]
    if not fields:
        return
    advice = "resume with its own options, or choose another --out"
    if (weights := path / "last.safetensors").exists():
        advice = (
            "resume with its own options, which a run keeps, or begin another from its weights: "
            f"--weights {shlex.quote(write_path(weights))} --out ANOTHER"
        )
    if any(field.field.startswith(MISSING) for field in fields):
        then, now = (parts.get("stream", {}).get("missing") for parts in (found, config))
        fields = [field for field in fields if not field.field.startswith(MISSING)]
        fields.append(Difference("missing images", *_count_missing(then, now)))
        advice = SAME_IMAGES
    then, now = (parts.get("stream", {}).get("data", {}) for parts in (found, config))
    if (
        then.get("name") == now["name"] and then.get("fingerprint") != now["fingerprint"]
    ):  # files have changed
        advice = SAME_IMAGES
    parts = [(part, found.get(part, {}), config[part]) for part in ("config", "student")]
    if unknown := [f"{part}.{k}" for part, then, now in parts for k in now if k not in then]:
        advice = (
            f"it was begun by a logitcache that did not keep {unknown[0]}: go on with that one, or "
            "choose another --out"
        )
    raise MismatchError(f"{path} holds a run of another configuration", fields, advice)


def _differences(name: str, expected: object, found: object) -> Iterator[Difference]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for k in {**expected, **found}:
            yield from _differences(f"{name}.{k}", expected.get(k), found.get(k))
    elif expected != found:
        yield Difference(name, _shorten(expected), _shorten(found))


def _count_missing(then: Any, now: Any) -> tuple[str, str]:
    """Say how many images were missing and how many are; where as many are, that they are others."""
    were, are = (str(part["n"]) if part else "none" for part in (then, now))
    return were, f"{are} others" if were == are else are


def _shorten(value: object) -> object:
    """Write whole numbers in a row as their range, as seeds mostly are."""
    if isinstance(value, list) and len(value) > 2 and all(type(number) is int for number in value):
        return seed_list(value).removeprefix("seeds ")
    return value
