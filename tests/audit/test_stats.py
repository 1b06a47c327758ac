"""Statistics of a cache: what a plain reading of all of it gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from dumping import RECIPE, a_teacher
from pictures import picture_folder
from small import few_digits
from typer.testing import CliRunner

from logitcache.audit.pictures import draw_stats
from logitcache.audit.stats import BINS, compute_stats
from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import IncompleteError, MismatchError
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.teacher.cached import CachedTeacher
from logitcache.units import share
from logitcache.views.datasets import open_images
from logitcache_cli.main import app


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    out = tmp_path_factory.mktemp("stats") / "c.zarr"
    config = DumpConfig(seeds=(0, 1, 5), top_k=4, workers=0, precision="float32", shard_samples=64)
    dump(out, few_digits(), RECIPE, a_teacher(), config)
    return CacheReader(out)


def test_statistics_are_those_of_a_plain_reading(cache: CacheReader) -> None:
    images = few_digits()
    labels = torch.from_numpy(images.labels)
    found = compute_stats(cache, images, most=10)
    taken = {seed: CachedTeacher(cache).take(torch.arange(300), seed) for seed in (0, 1, 5)}
    for one, (seed, teacher) in zip(found.seeds, taken.items(), strict=True):
        assert (one.seed, one.views) == (seed, 300)
        assert one.top1 == pytest.approx(float((teacher.ids[:, 0] == labels).double().mean()))
        assert one.top5 is None  # of four classes a view
        soft = teacher.listed_at(1.0)
        assert one.confidence == pytest.approx(float(soft.probs[:, 0].mean()), rel=1e-5)
        assert teacher.is_whole
        assert one.entropy == pytest.approx(float(teacher.at(1.0).entropy().mean()), rel=1e-5)
        assert one.tail_mass == pytest.approx(float(soft.tail_mass.mean()), rel=1e-5)
    first, second, last = (teacher.ids[:, 0] for teacher in taken.values())
    agreeing = torch.cat([first == second, second == last]).double().mean()
    assert found.agreement == pytest.approx(float(agreeing))

    entropy = torch.cat([teacher.at(1.0).entropy() for teacher in taken.values()]).numpy()
    assert list(found.entropy_bins) == np.histogram(entropy, BINS, (0, np.log(10)))[0].tolist()
    tail = torch.cat([teacher.listed_at(1.0).tail_mass for teacher in taken.values()]).numpy()
    assert list(found.tail_bins) == np.histogram(np.log10(tail.clip(1e-10)), BINS, (-10, 0))[0].tolist()

    own = torch.stack([teacher.at(1.0).prob_of(labels) for teacher in taken.values()]).double().mean(0)
    assert [hard.sample for hard in found.hardest] == own.argsort()[:10].tolist()
    assert [hard.probability for hard in found.hardest] == pytest.approx(own.sort().values[:10].tolist())
    assert all(hard.label == labels[hard.sample] for hard in found.hardest)

    sums = torch.zeros(10, 10, dtype=torch.float64)
    for teacher in taken.values():
        probs = teacher.listed_at(1.0).probs.double()
        for row in range(300):
            sums[labels[row], teacher.ids[row]] += probs[row]
    mean = sums / (3 * torch.bincount(labels, minlength=10))[:, None]
    mean.fill_diagonal_(0)
    assert [pair.probability for pair in found.neighbours] == pytest.approx(
        mean.flatten().sort(descending=True).values[:10].tolist()
    )
    for pair in found.neighbours:
        assert pair.probability == pytest.approx(float(mean[pair.of, pair.other]))


def test_without_labels_the_top_class_stands_for_the_label(cache: CacheReader) -> None:
    found = compute_stats(cache, seeds=(1,), most=5)
    teacher = CachedTeacher(cache).take(torch.arange(300), 1)
    assert found.seeds[0].top1 is None
    assert found.agreement is None
    assert [hard.sample for hard in found.hardest] == teacher.listed_at(1.0).probs[:, 0].argsort()[
        :5
    ].tolist()
    assert all(hard.label == -1 for hard in found.hardest)


def test_samples_without_a_teacher_do_not_count(tmp_path: Path) -> None:
    images = open_images(f"imagefolder:{picture_folder(tmp_path / 'pictures', bad=3)}")
    config = DumpConfig(seeds=(0,), top_k=2, workers=0, precision="float32", on_bad_image="skip")
    teacher = build_model("digits_tiny", num_classes=2, view_size=8, weights="random")
    dump(tmp_path / "c.zarr", images, RECIPE, teacher, config)
    found = compute_stats(CacheReader(tmp_path / "c.zarr"), images, most=len(images))
    assert found.seeds[0].views == len(images) - 1
    assert sum(found.entropy_bins) == len(images) - 1
    assert 3 not in {hard.sample for hard in found.hardest}
    assert found.tail_bins == ()  # k = C
    answered = CachedTeacher(CacheReader(tmp_path / "c.zarr")).take(
        torch.tensor([sample for sample in range(len(images)) if sample != 3]), 0
    )
    assert found.seeds[0].confidence == pytest.approx(
        float(answered.listed_at(1.0).probs[:, 0].mean()), rel=1e-5
    )


def test_other_images_and_missing_seeds_are_refused(cache: CacheReader) -> None:
    with pytest.raises(MismatchError, match="other images"):
        compute_stats(cache, few_digits(200))
    with pytest.raises(IncompleteError, match="seed 3"):
        compute_stats(cache, seeds=(3,))


def test_pictures_are_drawn(cache: CacheReader, tmp_path: Path) -> None:
    from PIL import Image

    drawn = draw_stats(compute_stats(cache, few_digits()), tmp_path / "new", few_digits())
    assert [file.name for file in drawn] == ["stats.png", "hardest.png"]
    for file in drawn:
        with Image.open(file) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_the_command_says_so_in_words_and_in_json(tmp_path: Path) -> None:
    config = DumpConfig(seeds=(0,), top_k=4, workers=0, precision="float32")
    dump(tmp_path / "c.zarr", open_images("digits"), RECIPE, a_teacher(), config)
    words = ["stats", str(tmp_path / "c.zarr"), "--most", "3"]
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0, text.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    for hard in found["hardest"]:
        given = f"which the teacher gives {share(hard['probability'])}; it says {hard['teacher']}"
        assert f"{hard['name']}, label {hard['label']}, {given}" in text.stdout
    (seed,) = found["seeds"]
    assert f"confidence {seed['confidence']:.3f}, entropy {seed['entropy']:.3f} nats" in text.stdout
    assert "] 2.3 nats, log of 10 classes" in text.stdout
    assert len(found["hardest"]) == 3
    assert found["seeds"][0]["views"] == 1437


def test_a_caches_word_opens_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = open_images(f"imagefolder:{picture_folder(Path('pictures'))}")
    config = DumpConfig(seeds=(0,), top_k=2, workers=0, precision="float32")
    teacher = build_model("digits_tiny", num_classes=2, view_size=8, weights="random")
    dump("c.zarr", images, RECIPE, teacher, config)
    told = CliRunner().invoke(app, ["stats", "c.zarr"])
    assert told.exit_code == 0
    assert ".jpg" not in told.output
    assert "note: without labels and names: only data sets that you name are opened" in told.stderr
    advice = told.stderr.split("the cache says ")[1].split()
    told = CliRunner().invoke(app, ["stats", "c.zarr", *advice]).stdout
    labels = set(re.findall(r"\.jpg, label (.+?), which the teacher gives", told))
    assert labels
    assert labels <= set(images.class_names)
