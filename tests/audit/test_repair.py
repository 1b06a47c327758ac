"""What is broken is mended to the same bits, and nothing is taken back before all is proved the same."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from breaking import SPEED, N, flip, rewrite
from dumping import a_teacher, dump_digits
from growing import NEW, OLD, dump_folder, folder_images, folder_teacher, paint
from small import Pixels, few_digits
from small_caches import files_of

from logitcache.audit.repair import repair_cache
from logitcache.audit.verify import verify_cache
from logitcache.dump.calibration import LEAST_VIEWS
from logitcache.errors import BusyError, DriftError, MismatchError, StorageError
from logitcache.store import CacheReader, CacheWriter
from logitcache.store.statistics import STATISTICS_FILES


class Unnoticed(Pixels):
    """Digits one of which changes, and their fingerprint does not."""

    @property
    def fingerprint(self) -> str:
        return few_digits(N).fingerprint


def mend(cache: Path, **options: object):
    found = verify_cache(CacheReader(cache))
    return repair_cache(cache, found, SPEED, lambda: (few_digits(N), a_teacher()), **options)


FAULTS = {
    "a flipped bit": ("seed-0/gap/c/1/0", lambda f: flip(f, 0.4), (0, 1, "damaged")),
    "a flipped bit of an index": ("seed-1/top/c/2", lambda f: flip(f, 1.0), (1, 2, "damaged")),
    "a truncated file": ("seed-0/ids/c/2/0", lambda f: os.truncate(f, 40), (0, 2, "damaged")),
    "an empty file": ("seed-0/tail_lse/c/2", lambda f: os.truncate(f, 0), (0, 2, "damaged")),
    "random bytes": ("seed-0/ids/c/2/0", lambda f: f.write_bytes(os.urandom(999)), (0, 2, "damaged")),
    "a deleted file": ("seed-1/tail_mean/c/2", lambda f: f.unlink(), (1, 2, "digest")),
    "another shard's file": (
        "seed-1/top/c/0",
        lambda f: f.write_bytes(f.with_name("1").read_bytes()),
        (1, 0, "digest"),
    ),
    "a damaged canary": ("seed-1/canary/c/1/0", lambda f: flip(f, 0.5), (1, 1, "damaged")),
    "a damaged commit": ("seed-2/commit/c/2", lambda f: flip(f, 0.5), (2, 2, "commit")),
    "an empty commit": ("seed-0/commit/c/0", lambda f: os.truncate(f, 0), (0, 0, "commit")),
    "another shard's commit": (
        "seed-0/commit/c/0",
        lambda f: f.write_bytes(f.with_name("1").read_bytes()),
        (0, 0, "digest"),
    ),
    "metadata that is not JSON": ("seed-1/ids/zarr.json", lambda f: flip(f, 0.0), (1, None, "metadata")),
    "metadata of another shape": (
        "seed-1/ids/zarr.json",
        lambda f: f.write_text(f.read_text().replace(str(N), str(N + 1))),
        (1, None, "metadata"),
    ),
    "metadata lost": ("seed-0/top/zarr.json", lambda f: f.unlink(), (0, None, "metadata")),
    "a group's metadata": ("seed-0/zarr.json", lambda f: f.write_text("[]"), (0, None, "metadata")),
    "a sample key": ("sample_key/c/1", lambda f: flip(f, 0.5), (None, None, "keys")),
    "sample keys cut off": ("sample_key/c/0", lambda f: os.truncate(f, 9), (None, None, "keys")),
    "sample keys' metadata": ("sample_key/zarr.json", lambda f: f.write_text("{"), (None, None, "keys")),
    "commit's metadata lost": ("seed-2/commit/zarr.json", lambda f: f.unlink(), (2, None, "metadata")),
    "commit's metadata empty": (
        "seed-0/commit/zarr.json",
        lambda f: os.truncate(f, 0),
        (0, None, "metadata"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_mended_to_the_same_bits(fault: str, whole: Path, cache: Path) -> None:
    name, damage, (seed, shard, kind) = FAULTS[fault]
    damage(cache / name)
    found = verify_cache(CacheReader(cache))
    assert not found.clean
    assert [(p.seed, p.shard, p.kind) for p in found.problems] == [(seed, shard, kind)]
    done = repair_cache(cache, found, SPEED, lambda: (few_digits(N), a_teacher()))
    assert done.after.clean
    assert done.redumped == (() if shard is None else ((seed, shard),))
    assert done.mended == ((name,) if shard is None else ())
    assert files_of(cache) == files_of(whole)  # same libraries, so not only the arrays: every byte


def test_many_faults_at_once_are_mended_and_sound_shards_are_not_written(whole: Path, cache: Path) -> None:
    faults = ["a flipped bit", "a truncated file", "a deleted file", "a damaged commit", "metadata lost"]
    for fault in faults:
        name, damage, _ = FAULTS[fault]
        damage(cache / name)
    before = {f: (cache / f).stat().st_mtime_ns for f in files_of(cache)}
    done = mend(cache)
    assert done.redumped == ((0, 1), (0, 2), (1, 2), (2, 2))
    assert done.identical == 3  # the fourth's commit could not be read
    assert files_of(cache) == files_of(whole)
    written = {f for f in files_of(cache) if before.get(f) != (cache / f).stat().st_mtime_ns}
    bad = {
        f"seed-{s}/{a}/c/{j}" for s, j in done.redumped for a in ("top", "tail_lse", "tail_mean", "commit")
    }
    assert bad <= written
    assert all("/c/" not in f or f.removesuffix("/0") in {*bad} | _wide(done.redumped) for f in written - bad)


def _wide(shards) -> set[str]:
    return {f"seed-{s}/{a}/c/{j}" for s, j in shards for a in ("ids", "gap", "canary")}


DAMAGE = {"flipped": lambda f: flip(f, 0.6), "cut": lambda f: os.truncate(f, 3), "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", STATISTICS_FILES)
def test_class_statistics_are_mended_to_the_same_bits(
    name: str, damage: str, whole: Path, cache: Path
) -> None:
    DAMAGE[damage](cache / name)
    flip(cache / "seed-0/gap/c/1/0", 0.4)
    done = mend(cache)
    assert done.after.clean
    assert done.redumped == ((0, 1),)
    assert done.mended == ("class_statistics",)
    assert files_of(cache) == files_of(whole)


def test_class_statistics_are_of_the_views_that_they_were_of(tmp_path: Path) -> None:
    """Of as many as were asked for, though seeds came later; even where that number is what is damaged."""
    path = tmp_path / "c.zarr"
    dump_digits(path, N, seeds=(0,), calibration=40)
    dump_digits(path, N, seeds=(1, 2))
    before = files_of(path)
    for name in STATISTICS_FILES[:4]:
        flip(path / name, 0.6)
        assert mend(path).mended == ("class_statistics",)
        assert files_of(path) == before
    shutil.rmtree(path)
    dump_digits(path, N)
    before = files_of(path)
    root = path / STATISTICS_FILES[-1]
    text = root.read_text()
    root.write_text(text.replace(f'"views": {LEAST_VIEWS}', f'"views": {LEAST_VIEWS - 1}'))
    assert root.read_text() != text
    assert mend(path).mended == ("class_statistics",)
    assert files_of(path) == before


def test_class_statistics_of_a_cache_that_grew_are_of_the_images_that_it_began_with(tmp_path: Path) -> None:
    path, pets = tmp_path / "c.zarr", tmp_path / "pets"
    dump_folder(path, folder_images(paint(pets, OLD)), calibration=20)
    assert CacheReader(path).spec.calibrated
    images = folder_images(paint(pets, NEW))
    dump_folder(path, images, grow=True)
    before = files_of(path)
    flip(path / STATISTICS_FILES[1], 0.5)
    found = verify_cache(CacheReader(path))
    done = repair_cache(path, found, replace(SPEED, batch_size=1), lambda: (images, folder_teacher()))
    assert done.after.clean
    assert files_of(path) == before


@pytest.mark.parametrize("who", ["teacher", "images"])
def test_class_statistics_of_another_teacher_or_of_other_images_are_refused(who: str, cache: Path) -> None:
    flip(cache / STATISTICS_FILES[0], 0.4)
    before = files_of(cache)
    images, teacher = few_digits(N - (who == "images")), a_teacher(int(who == "teacher"))
    with pytest.raises(MismatchError):
        repair_cache(cache, verify_cache(CacheReader(cache)), SPEED, lambda: (images, teacher))
    assert files_of(cache) == before


def test_metadata_alone_is_mended_without_a_teacher(whole: Path, cache: Path) -> None:
    (cache / "seed-0/gap/zarr.json").write_text("{}")
    reader = CacheReader(cache)

    def nobody():
        raise AssertionError("asked for a teacher")

    done = repair_cache(cache, verify_cache(reader), SPEED, nobody)
    assert done.mended == ("seed-0/gap/zarr.json",)
    assert files_of(cache) == files_of(whole)


def test_a_broken_invariant_is_repaired_too(whole: Path, cache: Path) -> None:
    rewrite(cache, 0, 2, lambda a: a["ids"].__setitem__((0, 1), a["ids"][0, 0]))
    assert mend(cache).redumped == ((0, 2),)
    assert files_of(cache) == files_of(whole)


@pytest.mark.parametrize("who", ["teacher", "images", "views", "pixels"])
def test_nothing_is_taken_back_before_all_is_proved_the_same(who: str, cache: Path) -> None:
    flip(cache / "seed-0/gap/c/1/0", 0.4)
    flip(cache / "seed-0/canary/c/1/0", 0.4)
    before, images, teacher = files_of(cache), few_digits(N), a_teacher()
    if who == "teacher":
        teacher, refusal = a_teacher(1), (MismatchError, "teacher.weights_sha256")
    if who == "images":
        images, refusal = few_digits(N - 1), (MismatchError, "other images")
    if who == "views":  # canaries that say that the teacher saw others
        rewrite(cache, 1, 0, lambda a: a["canary"].__iadd__(1))
        before, refusal = files_of(cache), (DriftError, "sample 0 of digits under seed 1")
    if who == "pixels":
        images = Unnoticed("digits", "train", images.images, images.labels, 10, "digits")
        images.changed = CacheReader(cache).spec.layout.canary_samples(2)[1]
        refusal = (DriftError, f"sample {images.changed} of digits under seed 0")
    found = verify_cache(CacheReader(cache))
    with pytest.raises(refusal[0], match=refusal[1]):
        repair_cache(cache, found, SPEED, lambda: (images, teacher))
    assert files_of(cache) == before


def test_a_seed_that_is_being_written_is_not_touched(cache: Path) -> None:
    flip(cache / "seed-0/gap/c/1/0", 0.4)
    flip(cache / "seed-1/gap/c/1/0", 0.4)
    before = files_of(cache)
    with (
        CacheWriter.open(cache, CacheReader(cache).spec).seed(1),
        pytest.raises(BusyError, match="seed 1 of"),
    ):
        mend(cache)
    assert files_of(cache) == before
    assert mend(cache).after.clean


def test_what_the_disk_refuses_to_read_is_not_taken_for_damage(cache: Path, monkeypatch) -> None:
    decode = CacheReader.decode

    def refused(self, seed, shard):
        if (seed, shard) == (0, 1):
            raise StorageError("cannot read it: input/output error")
        return decode(self, seed, shard)

    monkeypatch.setattr(CacheReader, "decode", refused)
    (problem,) = verify_cache(CacheReader(cache)).problems
    assert (problem.shard, problem.kind) == (1, "unreadable")
    before = files_of(cache)
    with pytest.raises(StorageError, match="the shard may be sound"):
        mend(cache)
    assert files_of(cache) == before


def test_a_commit_is_deleted_durably_before_any_of_its_files(cache: Path, monkeypatch) -> None:
    done: list[str] = []
    unlink, fsync = Path.unlink, os.fsync
    with CacheWriter.open(cache, CacheReader(cache).spec).seed(0) as own:
        monkeypatch.setattr(Path, "unlink", lambda f, **o: (done.append(f.parts[-3]), unlink(f, **o))[1])
        monkeypatch.setattr(
            os, "fsync", lambda d: (done.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d))[1]
        )
        own.delete(1)
        monkeypatch.undo()
        assert own.committed().tolist() == [True, False, True]
    assert done[0] == "commit"
    assert done[1].endswith("seed-0/commit/c") or any(d.endswith("commit/c") for d in done[1:4])
    assert not set(done[1:4]) & {"ids", "gap", "top", "canary"}
    assert CacheReader(cache).strays(0) == []
