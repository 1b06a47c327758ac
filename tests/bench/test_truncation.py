import torch

from logitcache.bench.truncation import logits_of_trained, measure_truncation, truncation_table


def test_errors_shrink_as_more_classes_are_listed():
    images = torch.eye(10).repeat(4, 1)
    labels = torch.arange(10).repeat(4)
    teacher, target = logits_of_trained(images, labels, 2, width=64, steps=100, batch=64)
    student, _ = logits_of_trained(images, labels, 2, width=16, steps=20, batch=64, seed=1)
    assert (teacher.argmax(1) == target).float().mean() > (student.argmax(1) == target).float().mean()
    rows = measure_truncation(student, teacher, target, {"kd": [{}], "dho": [{}], "kendall": [{}]})
    for name in ("kd", "dho"):
        for temperature in (1.0, 2.0, 4.0):
            errors = [r.error for r in rows if (r.name, r.temperature) == (name, temperature)]
            cosines = [r.cosine for r in rows if (r.name, r.temperature) == (name, temperature)]
            assert len(errors) == 3  # k = 8, 16 and 32 of 100
            assert cosines == sorted(cosines)
            assert cosines[-1] > 0.9
    assert len([r for r in rows if r.name == "kendall"]) == 3
    assert truncation_table(rows).count("\n") == 1 + 3 + 3 + 1
