"""A cache and a run name images as they lay where it was made; from elsewhere it is said what to do."""

from pathlib import Path

from command import fails, succeeds
from pictures import picture_folder


def test_from_another_folder_the_images_are_asked_for(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    picture_folder(here / "pets")
    views = ("--data", "imagefolder:pets", "--recipe", "imagenet@32")
    succeeds("dump", "--teacher", "resnet8", *views, "--seeds", 0, "--out", "c.zarr", cwd=here)
    cache, pets, run = here / "c.zarr", f"imagefolder:{here / 'pets'}", here / "run"
    train = ("train", "--student", "resnet8", "--loss", "kd", "--cache", cache, "--epochs", 1, "--out", run)
    asked = "names imagefolder:pets as it lay where that was made, seen from there: say with --data"
    assert f"{cache} {asked}" in fails(*train, cwd=there)
    assert asked in fails("verify", cache, "--replay", 1, cwd=there)
    succeeds(*train, cwd=here)
    assert f"{run} {asked}" in fails("evaluate", run, cwd=there)
    succeeds("evaluate", run, "--data", pets, cwd=there)
    succeeds("verify", cache, "--replay", 1, "--data", pets, cwd=there)
    succeeds(*train[:-1], "moved", "--data", pets, cwd=there)
    (here / "pets" / "val").rename(here / "pets" / "unused")
    line = fails("evaluate", run, cwd=here)
    assert "pets/val does not exist" in line
    assert asked not in line
