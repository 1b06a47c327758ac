"""What a teacher says of each sample is the plain formula on its logits, the mean over seeds."""

from collections import Counter

import numpy as np
import pytest
import torch
from dumping import RECIPE, dump_digits
from pictures import picture_folder

from logitcache.dump.job import dump
from logitcache.dump.settings import DumpConfig
from logitcache.errors import IncompleteError
from logitcache.models.build import build_model
from logitcache.store import CacheReader
from logitcache.teacher.cached import CachedTeacher
from logitcache.teacher.sample_scores import _find_modes, score_samples
from logitcache.views.datasets import open_images


@pytest.fixture(scope="module", params=[10, 4, 1])
def cache(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "c.zarr"
    dump_digits(out, 150, seeds=(0, 1, 5), top_k=request.param, profile="exact")
    return CacheReader(out)


def test_scores_are_those_of_the_logits_of_all_classes(cache):
    """All listed, or the others completed."""
    found = score_samples(cache, entropy=True)
    assert found.seeds == (0, 1, 5)
    taken = [CachedTeacher(cache).take(torch.arange(150), seed) for seed in (0, 1, 5)]
    probs = torch.stack([teacher.logits.double().softmax(1) for teacher in taken])
    first, second = probs.topk(2, dim=2).values.unbind(2)
    np.testing.assert_allclose(found.confidence, first.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.margin, (first - second).mean(0), atol=1e-6)
    np.testing.assert_allclose(found.entropy, -(probs * probs.log()).sum(2).mean(0), rtol=1e-5)
    for sample in range(150):
        counts = Counter(int(teacher.ids[sample, 0]) for teacher in taken)
        most = max(counts.values())
        assert found.top[sample] == min(c for c, times in counts.items() if times == most)
        assert found.agreement[sample] == most / 3


def test_some_seeds_alone_and_only_complete_ones(cache):
    one = score_samples(cache, (1,))
    teacher = CachedTeacher(cache).take(torch.arange(150), 1)
    np.testing.assert_array_equal(one.top, teacher.ids[:, 0])
    assert (one.agreement == 1).all()
    assert one.entropy is None
    with pytest.raises(IncompleteError):
        score_samples(cache, (7,))


def test_samples_without_a_teacher_have_no_score(tmp_path):
    images = open_images(f"imagefolder:{picture_folder(tmp_path / 'pictures', bad=3)}")
    config = DumpConfig(seeds=(0, 1), top_k=2, workers=0, precision="float32", on_bad_image="skip")
    teacher = build_model("digits_tiny", num_classes=2, view_size=8, weights="random")
    dump(tmp_path / "c.zarr", images, RECIPE, teacher, config)
    found = score_samples(CacheReader(tmp_path / "c.zarr"), entropy=True)
    without = np.flatnonzero(found.top < 0)
    assert without.tolist() == [3]
    for score in (found.confidence, found.margin, found.agreement, found.entropy):
        assert np.isnan(score[3])
        assert np.isfinite(np.delete(score, 3)).all()


def test_the_mode_of_rows():
    top = np.array([[2, 1, 2], [3, 1, 2], [-1, -1, 5], [-1, -1, -1], [4, 0, 0]])
    mode, times = _find_modes(top)
    assert mode.tolist() == [2, 1, 5, -1, 0]
    assert times.tolist() == [2, 1, 1, 0, 2]
