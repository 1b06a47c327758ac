"""A cache's word opens no images: only those that the user names are shown, and every name stays text."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from command import fails, logitcache, succeeds
from dumping import RECIPE, a_teacher
from pictures import picture_folder
from reports import EVIL, EVIL_CLASS, Page
from small import few_digits

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.models.build import build_model
from logitcache.report.page import POLICY
from logitcache.views.datasets import ArrayImages, open_images
from logitcache.views.recipes import recipe_named


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures in pets/ and secret/, and a cache of each of three kinds of data set."""
    folder = tmp_path_factory.mktemp("gallery")
    config = DumpConfig(seeds=(0, 1), top_k=2, workers=0, precision="float32")
    with contextlib.chdir(folder):
        picture_folder(Path("pets"))
        shutil.copytree(Path("pets") / "train" / "dog", "secret")
        for split in ("train", "val"):
            (Path("pets") / split / "cat").rename(Path("pets") / split / EVIL_CLASS)
        for cache, name, classes in (("pets", "imagefolder:pets", 2), ("secret", "folder:secret", 1000)):
            teacher = build_model("digits_tiny", num_classes=classes, view_size=8, weights="random")
            dump(f"{cache}.zarr", open_images(name), recipe_named("center@8"), teacher, config)
        images = few_digits(300)
        own = ArrayImages("boom:go", "train", images.images, images.labels, 10, "digits")
        dump("own.zarr", own, RECIPE, a_teacher(), dataclasses.replace(config, top_k=4))
        Path("boom.py").write_text("raise SystemExit('a report must not run what a cache names')\n")
    return folder


@pytest.mark.parametrize(
    ("cache", "named"),
    [("pets.zarr", "imagefolder:pets"), ("secret.zarr", "folder:secret"), ("own.zarr", "boom:go")],
)
def test_a_caches_word_opens_no_images(gallery: Path, tmp_path: Path, cache: str, named: str) -> None:
    ended = logitcache("report", cache, "--out", tmp_path / "r.html", cwd=gallery)
    assert ended.exit_code == 0, ended.output
    found = Page(tmp_path / "r.html")
    assert not found.all("img")
    assert "data:image" not in found.source.replace(POLICY, "")
    assert f"only data sets that you name are opened; the cache says --data {named}" in found.source
    assert f"--data {named}" in ended.stderr
    assert ".jpg" not in found.source
    assert EVIL_CLASS not in found.source


def test_images_are_those_that_the_user_named(gallery: Path, tmp_path: Path) -> None:
    words = ("report", "pets.zarr", "secret.zarr", "--out", tmp_path / "r.html", "--data", "imagefolder:pets")
    found = json.loads(succeeds(*words, "--json", cwd=gallery))
    assert [note.partition(": ")[0] for note in found["notes"]] == ["secret.zarr"]
    first = len(Page(tmp_path / "r.html").all("img"))
    assert first > 8
    assert json.loads(succeeds(*words, "--data", "folder:secret", "--json", cwd=gallery))["notes"] == []
    assert len(Page(tmp_path / "r.html").all("img")) > first
    words = ("report", "pets.zarr", "--out", tmp_path / "other.html", "--data")
    said = fails(*words, "folder:secret", cwd=gallery)
    assert "--data folder:secret is of none of the caches here" in said
    assert "made of other images" in said
    assert not (tmp_path / "other.html").exists()
    assert "nowhere" in fails(*words, "folder:nowhere", cwd=gallery)
    words = (*words, "imagefolder:pets", "--data")
    assert "--data folder:secret is of none" in fails(*words, "folder:secret", cwd=gallery)
    assert "unknown data set 'nosuch'" in fails(*words, "nosuch", cwd=gallery)


def test_names_from_caches_and_images_stay_text(gallery: Path, tmp_path: Path) -> None:
    with contextlib.chdir(gallery):
        images = open_images("imagefolder:pets")
        images.name = f"folder:{EVIL[:-2]}"
        teacher = build_model("digits_tiny", num_classes=2, view_size=8, weights="random")
        config = DumpConfig(seeds=(0,), top_k=2, workers=0, precision="float32")
        dump(tmp_path / EVIL_CLASS, images, recipe_named("center@8"), teacher, config)
    words = ("report", tmp_path / EVIL_CLASS, "--out", tmp_path / "r.html")
    for named in ((), ("--data", "imagefolder:pets")):
        succeeds(*words, *named, cwd=gallery)
        found = Page(tmp_path / "r.html")
        assert not {"script", "i"} & {tag for tag, _ in found.elements}
        assert "<script>alert(1)</script>" in found.text["h2"]
        assert all(str(image["src"]).startswith("data:image/") for image in found.all("img"))
    assert any(EVIL_CLASS in str(image["alt"]) for image in found.all("img"))
    assert EVIL_CLASS in {row[0] for row in found.tables["Confused classes"]}
