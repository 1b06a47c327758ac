"""Options that several commands share, and how their values are read."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from logitcache.errors import DataError, ImageError, NotFoundError, OptionError
from logitcache.files import is_stray
from logitcache.paths import expand_home

CACHES = Path("caches")
TEST_SUFFIX = ".test.zarr"
MOST_NUMBERS = 100_000
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

MACHINE = "Machine"  # panels of --help
STUDENT = "Student"
OUTPUT = "Evaluation and output"
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE, metavar="NAME")
]
PrecisionName = Annotated[
    str,
    typer.Option(
        help="auto (bfloat16 on CUDA), float32, bfloat16 or float16.", rich_help_panel=MACHINE, metavar="NAME"
    ),
]
Workers = Annotated[
    int,
    typer.Option(help="Processes that make views; -1: as fits data and machine.", rich_help_panel=MACHINE),
]

Cache = Annotated[str, typer.Argument(help="A cache: path or URL.")]
CompleteSeeds = Annotated[
    str | None,
    typer.Option(help="Augmentation seeds, such as 0-3,7; all complete ones by default.", metavar="LIST"),
]

OnBadTestImage = Annotated[
    Literal["error", "skip"],
    typer.Option(
        "--on-bad-image",
        help="A test image that does not decode: stop, or leave it out of the scores.",
        rich_help_panel=OUTPUT,
    ),
]

Student = Annotated[
    Path, typer.Argument(help="A run folder, or a file of weights.", parser=expand_home, metavar="RUN")
]
BestOrLast = Annotated[Literal["best", "last"], typer.Option(help="Which of a run folder.")]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--student",
        help="Its architecture, where the file does not say.",
        rich_help_panel=STUDENT,
        metavar="NAME",
    ),
]
StudentInputSize = Annotated[
    int,
    typer.Option(
        "--input-size",
        min=0,
        help="Pixels a side that it sees; 0: as its weights say, else as the views.",
        rich_help_panel=STUDENT,
    ),
]


@contextmanager
def advise_skip(on_bad_image: str, which: str = "", *, out: str = "", cached: bool = False) -> Iterator[None]:
    """Add to the error of an image that does not decode how to leave it out, unless that has been asked for.

    Args:
        on_bad_image: what has been asked for.
        which: how the error of an image begins that can be left out.
        out: the cache that is made; once it is begun it knows the image by its size.
        cached: whether a cache is at hand that was made of the images.
    """
    try:
        yield
    except DataError as error:  # a batch carries only the message of an ImageError
        if on_bad_image == "skip" or not str(error).startswith(which):
            raise
        from logitcache.views.ordered_images import NO_VIEW

        text, skip = str(error), "leave it out with --on-bad-image skip"
        bare = text.removesuffix("; mend or remove it")
        if text.endswith(NO_VIEW):  # of one that has no teacher, and is gone or changed
            raise ImageError(f"{text}; {skip}") from error
        if "does not decode (" not in text:
            raise
        if out and ("://" in out or Path(out).exists()):
            raise ImageError(f"{bare}; {skip}, or mend it and give another --out") from error
        if cached:
            raise ImageError(f"{bare}; put it back as it was, or {skip}") from error
        raise ImageError(f"{text}, or {skip}") from error


def parse_output_path(path: str | Path) -> Path:
    """Read where a command writes to, which is not what an empty variable of a shell says.

    Raises:
        BadParameter: the path is empty.
        OptionError: it begins with `~`, and there is no such home.
    """
    return expand_home(parse_output_place(str(path)))


def parse_output_place(path: str) -> str:
    """Read the path or URL of a cache to write, as `parse_output_path` does."""
    if not path.strip():
        raise typer.BadParameter("the path is empty; name a place to write to")
    return path


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as "0-3,7".

    Raises:
        OptionError: the text is not a list of seeds.
    """
    return _parse_ranges(text, "seeds", "0-3,7")


def parse_ks(text: str) -> tuple[int, ...]:
    """Read numbers of logits such as "4,8,16".

    Raises:
        OptionError: the text is not a list of them.
    """
    return _parse_ranges(text, "numbers of logits", "4,8,16")


def _parse_ranges(text: str, name: str, example: str) -> tuple[int, ...]:
    if (ranges := _read_ranges(text)) is None:
        raise OptionError(f"{name} read like {example}; found {text!r}{_advise_range(text)}")
    if sum(map(len, ranges)) > MOST_NUMBERS:
        raise OptionError(f"{text} are more than {MOST_NUMBERS:,} {name}; name fewer")
    return tuple(dict.fromkeys(chain(*ranges)))


def _read_ranges(text: str) -> list[range] | None:
    """Read numbers and rising ranges between commas; None where something else stands there."""
    matches = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part) for part in _tighten(text).split(",")]
    ranges = [range(int(match[1]), int(match[2] or match[1]) + 1) for match in matches if match]
    return ranges if all(matches) and all(ranges) else None


def _tighten(text: str) -> str:
    """Leave out spaces beside commas and dashes, but not those between numbers: 1 2 is not 12."""
    return re.sub(r"\s*([,-])\s*", r"\1", text.strip())


def _advise_range(text: str) -> str:
    """Say how a range reads that is written as other programs have it."""
    if back := [m for m in map(_RANGE.fullmatch, _tighten(text).split(",")) if m and int(m[1]) > int(m[2])]:
        return f"; {back[0][0]} runs backwards, write {back[0][2]}-{back[0][1]}"
    plain = re.sub(r"\s+", ",", _tighten(re.sub(r"\.\.+|:|–", "-", text.strip("[]() "))))
    if plain != text and _read_ranges(plain):
        return f"; did you mean {plain}?"
    if re.fullmatch(r"\s*-\d+\s*", text):
        return "; they are 0 or more"
    return ""


def describe_single_seed(text: str) -> str | None:
    """Say that a number alone is one seed and not so many of them; None of other texts."""
    if re.fullmatch(r"\s*[1-9]\d{0,4}\s*", text) and int(text) > 1:
        return f"--seeds {int(text)} is seed {int(text)} alone; {int(text)} seeds are 0-{int(text) - 1}"
    return None


def parse_weights(text: str) -> tuple[float, ...]:
    """Read weights of an ensemble such as "2,1".

    Raises:
        OptionError: the text is not a list of numbers.
    """
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise OptionError(f"weights of an ensemble read like 2,1; found {text!r}") from error


def is_given(context: typer.Context, name: str) -> bool:
    """Was an option given on the command line?"""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def pick_fields(options: Mapping[str, object], kind: type[Any]) -> dict[str, Any]:
    """Pick those of a command's options that are fields of a dataclass and are not None."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in options.items() if name in names and value is not None}


def default_cache_path(teacher: str, data: str = "auto", split: str | None = None) -> Path:
    """Return where a cache goes without --out: caches/TEACHER-DATA.zarr, of the test split ….test.zarr."""
    from logitcache.views.datasets import choose_shipped

    name = choose_shipped([teacher]) if data == "auto" else data
    name = name.removeprefix("imagefolder:").removeprefix("folder:").rstrip("/").rsplit("/", 1)[-1]
    suffix = TEST_SUFFIX if split == "test" else ".zarr"
    return CACHES / (re.sub(r"[^\w.-]+", "_", f"{teacher}-{name}") + suffix)


def find_only_cache() -> Path:
    """Find the only cache in caches/ to train from: those of test images are left out.

    Raises:
        NotFoundError: there is none.
        OptionError: there are several.
    """
    found = (path for path in CACHES.glob("*.zarr") if not is_stray(path.name))
    caches = sorted(path for path in found if not path.name.endswith(TEST_SUFFIX))
    if not caches:
        raise NotFoundError(
            f"no cache in ./{CACHES}; make one with `logitcache dump --teacher NAME`, name one with --cache, "
            "or train without a teacher with --loss ce"
        )
    if len(caches) > 1:
        raise OptionError(f"several caches in ./{CACHES}: {', '.join(map(str, caches))}; choose with --cache")
    return caches[0]
