"""What cannot be done ends in one clear line."""

import sys
from pathlib import Path

import pytest
from command import fails, logitcache, succeeds

PLAIN = ("train", "--student", "digits_tiny", "--loss", "ce")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small cache, caches/digits_small-digits.zarr."""
    folder = tmp_path_factory.mktemp("cli")
    succeeds("dump", "--teacher", "digits_small", "--seeds", "0-1", "--top-k", 4, cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--protocol", "nonsense"), "unknown protocol 'nonsense'"),
        (("--variant", "lrr=0.1"), "unknown setting 'lrr'"),
        (("--variant", "lr=much"), "lr"),
        (("--precision", "float17"), "precision must be"),
        (("--device", "gpu"), "no device 'gpu'"),
        (("--schedule", "multistep", "--milestones", "9,3"), "milestones must rise"),
    ],
)
def test_a_wrong_name_is_told_before_data_is_opened(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    assert told in fails(*PLAIN, "--data", "imagefolder:/none", *words, cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dump", "--teacher", "resnet81"), "unknown model 'resnet81'; did you mean"),
        (("dump", "--teacher", "resnet18", "--weights", "default"), "expected 10 classes"),
        (("dump", "--teacher", "resnet18", "--weights", "no.pt"), "no weights file no.pt"),
        (("dump", "--teacher", "digits_tiny", "--data", "digit"), "did you mean digits"),
        (
            ("dump", "--teacher", "digits_tiny", "--data", "imagefolder:nowhere"),
            "nowhere does not exist",
        ),
        (("dump", "--teacher", "digits_tiny", "--seeds", "3-1"), "seeds read like 0-3,7"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "5,0-999999999"), "more than 100,000 seeds"),
        (("plan", "--teacher", "digits_tiny", "--seeds", "4,x"), "seeds read like 0-3,7; found '4,x'"),
        (
            ("plan", "--teacher", "digits_tiny", "--top-k", "4,x"),
            "numbers of logits read like 4,8,16; found '4,x'",
        ),
        (
            ("plan", "--teacher", "digits_tiny", "--top-k", "1-999999"),
            "1-999999 are more than 100,000 numbers of logits",
        ),
        (("plan", "--teacher", "digits_tiny", "--budget", "4,x"), "a size reads like 20GB or 500MiB"),
        (("train", "--student", "digits_tiny", "--spool-limit", "4,x"), "a size reads like 20GB or 500MiB"),
        (
            ("train", "--student", "digits_tiny", "--mix-weights", "4,x"),
            "weights of an ensemble read like 2,1; found '4,x'",
        ),
        ((*PLAIN, "--betas", "4,x"), "betas: expected two numbers such as 0.9,0.999, found '4,x'"),
        ((*PLAIN, "--milestones", "4,x"), "milestones: expected numbers such as 150,180,210, found '4,x'"),
        ((*PLAIN, "--variant", "4,x"), "a variant reads NAME=VALUE,NAME=VALUE"),
        ((*PLAIN, "--seed", 10**23), "a seed must be 0 to 2^63 - 1, found 1000"),
        ((*PLAIN, "--checkpoint-every", "nan"), "must be 0 seconds or more, found nan"),
        (("dump", "--teacher", "digits_tiny", "--recipe", "digit"), "did you mean digits"),
        (
            ("train", "--student", "digits_tiny", "--recipe", "identity"),
            "made by its own recipe, found --recipe",
        ),
        (("train", "--student", "nets:seven:v[2]"), "nets:seven:v[2]"),
        (("dump", "--teacher", "digits_tiny", "--profile", "tiny"), "unknown profile 'tiny'"),
        (("dump", "--teacher", "digits_tiny", "--top-k", "0"), "top-k must be at least 1"),
        (("dump", "--teacher", "digits_tiny", "--device", "cuda:99"), "device 'cuda:99' is not there"),
        (("dump", "--teacher", "digits_tiny", "--out", "https://x/c.zarr"), "https is for reading"),
        (("train", "--student", "digits_tiny", "--cache", "no.zarr"), "no cache at no.zarr"),
        (("train", "--student", "digits_tiny", "--loss", "kkd"), "unknown loss 'kkd'; did you mean kd"),
        (("train", "--student", "digits_tiny", "--seeds", "0-7"), "lacks seeds 2-7; complete: seeds 0-1"),
        (("train", "--student", "digits_tiny", "--data", "t:f"), "cannot import 't'"),
        (("train", "--student", "digits_tiny", "--lr", "0"), "lr must be above 0"),
        (("info", "caches"), "no cache at caches"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "0..3"), "found '0..3'; did you mean 0-3?"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "0:3"), "found '0:3'; did you mean 0-3?"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "[0,1]"), "found '[0,1]'; did you mean 0,1?"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "0 1 2"), "found '0 1 2'; did you mean 0,1,2?"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "0 - 2 7"), "found '0 - 2 7'; did you mean 0-2,7?"),
        (("plan", "--teacher", "digits_tiny", "--top-k", "4 8"), "found '4 8'; did you mean 4,8?"),
        (("dump", "--teacher", "digits_tiny", "--seeds", "-1"), "found '-1'; they are 0 or more"),
        (("dump", "--teacher", "digits_tiny", "--seeds", ""), "seeds read like 0-3,7; found ''"),
        (("train", "--student", "caches"), "goes by its name, such as resnet18, found the path caches"),
        (("train", "--student", "resnet18,resnet8"), "one model at a time, found 'resnet18,resnet8'"),
        (("evaluate", "caches/digits_small-digits.zarr"), "which is a cache; name a run folder"),
        (("export", "caches/digits_small-digits.zarr"), "which is a cache; name a run folder"),
        (("info", "caches/digits_small-digits.zarr/seed-0"), "name a whole cache"),
        (("info", "runs"), "no cache at runs"),
    ],
)
def test_bad_input_is_one_clear_line(folder: Path, words: tuple[str, ...], message: str) -> None:
    if words[:2] == ("train", "--student") and "--cache" not in words:
        words = (*words, "--cache", "caches/digits_small-digits.zarr")
    assert message in fails(*words, cwd=folder)


def test_train_says_which_caches_there_are(folder: Path, tmp_path: Path) -> None:
    assert "no cache in ./caches" in fails("train", "--student", "digits_tiny", cwd=tmp_path)
    (tmp_path / "caches" / "a.zarr").mkdir(parents=True)
    (tmp_path / "caches" / "b.zarr").mkdir()
    line = fails("train", "--student", "digits_tiny", cwd=tmp_path)
    assert "several caches in ./caches: caches/a.zarr, caches/b.zarr" in line


def test_a_cluster_that_is_none_or_needs_a_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("dump", "--teacher", "digits_small", "--dask")
    assert "local:N or a scheduler's address" in fails(*words, "here", cwd=tmp_path)
    monkeypatch.delitem(sys.modules, "logitcache.dump.dask_cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'logitcache[cluster]'" in fails(*words, "local:2", cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dump", "--teacher", "digits_small", "--out", "https://x.invalid/c.zarr"), "https is for reading"),
        (("copy", "s3://bucket/none.zarr", "d.zarr"), "no cache at s3://bucket/none.zarr"),
        (("train", "--student", "digits_tiny", "--cache", "gopher://hole/c.zarr"), "no file system opens"),
    ],
)
def test_urls_that_cannot_be_used_end_in_one_line(
    words: tuple[str, ...], message: str, s3: str, tmp_path: Path
) -> None:
    assert message in fails(*words, cwd=tmp_path)


def test_a_run_is_told_from_a_cache(tmp_path: Path) -> None:
    succeeds(*PLAIN, "--epochs", 1, "--fraction", 0.1, "--out", "run", cwd=tmp_path)
    for words in (
        ("info",),
        ("verify",),
        ("stats",),
        ("calibrate",),
        ("train", "--student", "resnet8", "--cache"),
    ):
        line = fails(*words, "run", cwd=tmp_path)
        assert "no cache at run, which is a run folder of `logitcache train`; name a cache" in line


@pytest.mark.parametrize(("seeds", "told"), [("3", True), ("0", False), ("0-2", False), ("3,", None)])
def test_a_number_alone_is_said_to_be_one_seed(seeds: str, told: bool | None, tmp_path: Path) -> None:
    ended = logitcache("dump", "--teacher", "digits_tiny", "--seeds", seeds, cwd=tmp_path)
    assert ended.exit_code == (told is None)
    assert ("note: --seeds 3 is seed 3 alone; 3 seeds are 0-2" in ended.stderr) == bool(told)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate",),
        ("export",),
        ("info",),
        ("report",),
        ("train", "--resume", "--out"),
        ("dump", "--teacher", "digits_tiny", "--weights"),
        ("--config",),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    path = "n" * 300
    after = ["train"] if words == ("--config",) else []
    line = fails(*words, path, *after, cwd=tmp_path)
    assert path in line
    assert "File name too long" in line
