"""What errors advise: never the command just given, and nothing that it does not take."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import fails, logitcache, succeeds
from dumping import RECIPE, a_teacher, dump_digits
from pictures import picture_folder
from small import few_digits
from training import a_run
from typer.main import get_command

from logitcache.audit.verify import verify_cache
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import DataError, ImageError, NonFiniteError
from logitcache.models.build import build_model
from logitcache.models.forward import ViewModel
from logitcache.store import CacheReader
from logitcache.stream.stream import Stream
from logitcache.train.config import TrainConfig
from logitcache.train.evaluation import Evaluation, evaluate
from logitcache.train.loop import train
from logitcache.views.recipes import recipe_named
from logitcache_cli import exit_codes
from logitcache_cli.main import app
from logitcache_cli.shared_options import advise_skip

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, good.zarr, and a run."""
    folder = tmp_path_factory.mktemp("advice")
    words = ("--seeds", 0, "--out", "good.zarr", "--shard-samples", 1024)
    succeeds("dump", "--teacher", "digits_small", *words, cwd=folder)
    words = ("--loss", "ce", "--epochs", 1, "--out", "run", "--workers", 0)
    succeeds("train", "--student", "digits_tiny", *words, cwd=folder)
    return folder


def nothing(place: Path) -> None:
    pass


def an_empty_folder(place: Path) -> None:
    place.mkdir()


def a_folder_of_something_else(place: Path) -> None:
    place.mkdir()
    (place / "thesis.tex").write_text("\\end")


def a_file(place: Path) -> None:
    place.write_text("\\end")


def a_cache_without_its_root(place: Path) -> None:
    shutil.copytree(place.with_name("good.zarr"), place)
    (place / "zarr.json").unlink()


def a_cache_with_a_damaged_root(place: Path) -> None:
    shutil.copytree(place.with_name("good.zarr"), place)
    (place / "zarr.json").write_text("{")


def a_cache_with_a_damaged_seed(place: Path) -> None:
    shutil.copytree(place.with_name("good.zarr"), place)
    (place / "seed-0" / "ids" / "zarr.json").write_text("{")


def another_cache(place: Path) -> None:
    dump_digits(place, 100)


FOUND = [
    nothing,
    an_empty_folder,
    a_folder_of_something_else,
    a_file,
    a_cache_without_its_root,
    a_cache_with_a_damaged_root,
    a_cache_with_a_damaged_seed,
    another_cache,
]
GIVEN = [
    "info X",
    "verify X",
    "verify X --repair",
    "stats X",
    "report X",
    "copy X other.zarr",
    "copy good.zarr X",
    "derive X other.zarr --top-k 2",
    "derive good.zarr X --top-k 2",
    "dump --teacher digits_small --seeds 0 --shard-samples 1024 --out X",
    "train --student digits_tiny --workers 0 --epochs 1 --cache X",
    "train --student digits_tiny --workers 0 --epochs 1 --loss ce --teacher-cache X",
    "evaluate run --teacher-cache X",
]


def assert_new_advice(words: list[str], said: str) -> None:
    """Insist that what is advised is another command than these words, and options are those of the command."""
    for advised in re.findall(r"`logitcache ([^`]+)`", said):
        assert not set(shlex.split(advised)) <= set(words), said
    known = {name for one in COMMANDS[words[0]].params for name in (*one.opts, *one.secondary_opts)}
    others = re.sub(r"`[^`]*`", "", said)  # options of other commands
    assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", others)) <= known, said


@pytest.mark.parametrize("found", FOUND)
@pytest.mark.parametrize("given", GIVEN)
def test_no_command_advises_itself(
    given: str, found: Callable[[Path], None], things: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(things, tmp_path / "here"))
    found(folder / "X")
    words = given.split()
    ended = logitcache(*words, cwd=folder)
    if ended.exit_code:
        assert ended.exit_code == 1, (ended.output, ended.exception)
        assert_new_advice(words, ended.output)
    if ended.exit_code and words[0] != "verify":
        assert ended.stderr.splitlines()[-1].startswith("logitcache: ")


def test_a_file_of_defaults_that_is_not_there_or_damaged_does_not_keep_init_from_writing_one(
    tmp_path: Path,
) -> None:
    line = fails("--config", "mine.toml", "info", "c.zarr", cwd=tmp_path)
    assert "`logitcache init --out mine.toml` writes one" in line
    succeeds("init", "--out", "mine.toml", cwd=tmp_path)
    assert "no cache at c.zarr" in fails("--config", "mine.toml", "info", "c.zarr", cwd=tmp_path)
    succeeds("--config", "none.toml", "init", cwd=tmp_path)
    (tmp_path / "logitcache.toml").write_text("dump = [\n")
    assert "--force replaces it" in fails("init", cwd=tmp_path)
    succeeds("init", "--force", cwd=tmp_path)


def test_a_recipe_file_that_is_not_there_says_what_one_holds(tmp_path: Path) -> None:
    line = fails("dump", "--teacher", "digits_tiny", "--recipe", "mine.toml", cwd=tmp_path)
    assert "recipe file mine.toml is not there; expected TOML with `name`" in line


def test_images_that_do_not_decode_are_left_out_by_commands_that_can(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", bad=3)
    words = ["--teacher", "resnet8", "--data", f"imagefolder:{pictures}", "--recipe", "imagenet@32"]
    words += ["--workers", "0"]
    line, skip = fails("plan", *words, cwd=tmp_path), "leave it out with --on-bad-image skip"
    assert line.endswith(
        f" does not decode (it is not an image that Pillow knows); mend or remove it, or {skip}"
    )
    succeeds("plan", *words, "--on-bad-image", "skip", cwd=tmp_path)
    line = fails("dump", *words, cwd=tmp_path)  # the cache is begun by now, and knows the file by its size
    assert line.endswith(f" Pillow knows); {skip}, or mend it and give another --out")
    succeeds("dump", *words, "--on-bad-image", "skip", cwd=tmp_path)


@pytest.mark.parametrize(
    ("cache", "ending"),
    [
        ({}, "it is empty); mend or remove it, or leave it out with --on-bad-image skip"),
        (
            {"out": "nowhere.zarr"},
            "it is empty); mend or remove it, or leave it out with --on-bad-image skip",
        ),
        (
            {"out": "s3://b/c"},
            "it is empty); leave it out with --on-bad-image skip, or mend it and give another --out",
        ),
        ({"cached": True}, "it is empty); put it back as it was, or leave it out with --on-bad-image skip"),
    ],
)
def test_a_cache_that_knows_an_image_is_not_to_lose_it(cache: dict[str, Any], ending: str) -> None:
    broken = "a.png does not decode (it is empty); mend or remove it"
    with pytest.raises(ImageError) as refused, advise_skip("error", **cache):
        raise DataError(broken)
    assert str(refused.value) == f"a.png does not decode ({ending}"
    for asked, which in (("skip", ""), ("error", "test image ")):
        with pytest.raises(DataError) as refused, advise_skip(asked, which, **cache):
            raise DataError(broken)
        assert str(refused.value) == broken


def test_a_lost_seed_is_told_without_advice_to_do_what_is_being_done(tmp_path: Path) -> None:
    dump_digits(tmp_path / "c.zarr")
    (tmp_path / "c.zarr" / "seed-1" / "commit" / "zarr.json").unlink()
    (problem,) = verify_cache(CacheReader(tmp_path / "c.zarr")).problems
    assert "is lost" in problem.reason
    assert "verify" not in problem.reason


@pytest.mark.parametrize("size", [0, 16])
def test_a_size_that_was_chosen_is_not_advised(size: int) -> None:
    model = build_model("resnet8", num_classes=10, view_size=8, weights="random", input_size=size)
    assert model.describe_resizing(model.adapter.size, size) is None
    assert ("--input-size" in str(model.describe_resizing(24, size))) == (size == 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_precision_is_advised_that_was_taken(precision: str, tmp_path: Path) -> None:
    teacher = a_teacher()
    with torch.no_grad():
        next(teacher.module.parameters()).fill_(np.nan)
    config = DumpConfig((0,), 4, workers=0, precision=precision, shard_samples=64)
    told = []
    with pytest.raises(NonFiniteError) as refused:
        dump(tmp_path / "c.zarr", few_digits(60), RECIPE, teacher, config)
    told.append(str(refused.value))
    evaluation = Evaluation(few_digits(60, "test"), recipe_named("identity"))
    with pytest.raises(NonFiniteError) as refused:
        evaluate(ViewModel(teacher, precision), evaluation, 10)  # type: ignore[arg-type]
    told.append(str(refused.value))
    wild = TrainConfig(2, lr=1e30, warmup_epochs=0.0, precision=precision)
    stream = Stream.plain(few_digits(60), RECIPE, seeds=(0,), batch_size=20, workers=0)
    with pytest.raises(NonFiniteError) as refused:
        train([a_run(tmp_path / "run", "ce", wild)], stream)
    told.append(str(refused.value))
    for message in told:
        assert ("--precision float32" in message) == (precision != "float32")
    clipped = TrainConfig(2, lr=1e30, warmup_epochs=0.0, precision=precision, clip_norm=1.0)
    with pytest.raises(NonFiniteError) as refused:
        train([a_run(tmp_path / "clipped", "ce", clipped)], stream)
    assert "--clip-norm" in told[-1]
    assert "--clip-norm" not in str(refused.value)


def test_who_is_interrupted_hears_how_that_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str) -> str:
        def command() -> None:
            raise KeyboardInterrupt

        command.__name__ = name
        with pytest.raises(exit_codes.typer.Exit):
            exit_codes.exit_on_error(command)()
        return capsys.readouterr().err

    assert "run the same command again to go on" in interrupted("dump")
    assert "--resume" in interrupted("train")
    assert interrupted("info") == "logitcache: interrupted\n"
    assert set(exit_codes.GOES_ON) <= set(COMMANDS)
