"""Emoji of several vendors: 256 pictures as three of them draw each, to be told in the drawings of a fourth.

    npm install --prefix emoji emoji-datasource-{apple,facebook,google,twitter}@16.0.0
    LOGITCACHE_EMOJI=emoji/node_modules python -m logitcache.bench.contest emoji

The pictures are not ours to ship. As the packages' README has it: Apple's, © Apple Inc., are not licensed for
commercial usage; Facebook's, © Facebook, Inc., have no clear licence; Google's are under the Apache License 2.0,
Twitter's under Creative Commons Attribution 4.0. The lists that come with them are under the MIT License.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from logitcache.errors import DataError, NotFoundError
from logitcache.format.identity import AdapterSpec, RecipeSpec, StepSpec
from logitcache.models.nets import plain_net
from logitcache.models.weights import first_line
from logitcache.paths import expand_home, read_variable
from logitcache.views.datasets import ArrayImages

TRAIN_VENDORS, TEST_VENDOR = ("apple", "facebook", "google"), "twitter"  # by their names
VENDORS = (*TRAIN_VENDORS, TEST_VENDOR)
CLASSES = 256
SIDE = 24  # pixels
VERSION = "16.0.0"
EMOJI_RECIPE = RecipeSpec(
    "emoji",
    1,
    (
        StepSpec("RandomCrop", {"size": SIDE, "padding": 2, "fill": 255}),
        StepSpec("RandomErasing", {"p": 0.5, "scale": [0.02, 0.15], "value": 255}),
    ),
    "identity",
)


def load_emoji(split: str = "train") -> ArrayImages:
    """Return emoji on white, (3, 24, 24): 768 images of three vendors to train on, 256 of a fourth to test on.

    The packages' folders are looked for in the folder that $LOGITCACHE_EMOJI names.

    Raises:
        NotFoundError: the packages are not there.
        DataError: their list is not this version's, or a picture is not there or does not decode.
    """
    folder = _find_packages()
    emoji = choose_emoji(folder)
    vendors = TRAIN_VENDORS if split == "train" else (TEST_VENDOR,)
    images = torch.stack([_draw(folder, vendor, one["image"]) for vendor in vendors for one in emoji])
    labels = np.tile(np.arange(len(emoji)), len(vendors))
    found = ArrayImages(f"{__name__}:load_emoji", split, images, labels, len(emoji), "identity")
    found.class_names = tuple(one["name"] for one in emoji)
    return found


def choose_emoji(folder: Path) -> list[dict[str, str]]:
    """Choose `CLASSES` entries of the packages' list that all vendors draw, evenly spread in Unicode's order.

    Flags, parts of emoji and sequences of several are left out, and skin tones, which are no entries of their own.

    Raises:
        DataError: it is no such list, or too short.
    """
    path = folder / _package(VENDORS[0]) / "emoji.json"
    try:
        entries = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda entry: entry["sort_order"])
        common = [entry for entry in entries if _is_common(entry)]
        if len(common) < CLASSES:
            raise ValueError(f"{len(common)} of them")
        chosen = [common[n * len(common) // CLASSES] for n in range(CLASSES)]
        return [{"name": entry["short_name"], "image": entry["image"]} for entry in chosen]
    except (ValueError, KeyError, TypeError) as error:
        found = f"no field {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"{path}: expected a list of {CLASSES} emoji or more that {', '.join(VENDORS)} all draw, found {found}; "
            f"install version {VERSION} of the packages"
        ) from error


def _is_common(entry: dict[str, str]) -> bool:
    drawn = all(entry[f"has_img_{vendor}"] for vendor in VENDORS)
    return drawn and entry["category"] not in ("Flags", "Component") and "200D" not in entry["unified"]


def _package(vendor: str) -> str:
    return f"emoji-datasource-{vendor}"


def emoji_small(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    """Build a student of 24 pixels in colour, as `letters_small` is of letters."""
    return _network(num_classes, ((12,), (24,)))


def emoji_teacher(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    """Build a teacher, as `letters_teacher` is of letters."""
    return _network(num_classes, ((48, 48), (96, 96)))


def emoji_large(num_classes: int) -> tuple[nn.Module, AdapterSpec]:
    """Build a teacher twice as wide."""
    return _network(num_classes, ((96, 96), (192, 192)))


def _network(num_classes: int, stages: tuple[tuple[int, ...], ...]) -> tuple[nn.Module, AdapterSpec]:
    adapter = AdapterSpec(3, SIDE, (0.5,) * 3, (0.5,) * 3)
    return plain_net(num_classes, stages=stages, stride=2, channels=3), adapter


def _find_packages() -> Path:
    names = [_package(vendor) for vendor in VENDORS]
    advice = (
        f"install the npm packages {', '.join(names)}, version {VERSION}, and name the folder that they lie in "
        "by LOGITCACHE_EMOJI"
    )
    place = read_variable("LOGITCACHE_EMOJI")
    if place is None:
        raise NotFoundError(f"the emoji do not ship: {advice}")
    folder = expand_home(place)
    for name in names:
        if not (folder / name / "emoji.json").is_file():
            raise NotFoundError(f"expected {name}/emoji.json in {folder}, found none: {advice}")
    return folder


def _draw(folder: Path, vendor: str, name: str) -> Tensor:
    """Read a picture and put it on white, (3, SIDE, SIDE) uint8."""
    path = folder / _package(vendor) / "img" / vendor / "64" / name
    try:
        picture = Image.open(path).convert("RGBA")
    except OSError as error:
        found = "none" if isinstance(error, FileNotFoundError) else first_line(error)
        advice = f"install version {VERSION} of {_package(vendor)} again"
        raise DataError(f"expected a picture {path}, found {found}; {advice}") from error
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return torch.from_numpy(np.array(white.resize((SIDE, SIDE), Image.Resampling.BOX))).permute(2, 0, 1)
