import json
import re

import dense
import pytest
import torch
import torch.nn.functional as F
from refusals import refused

from logitcache.errors import OptionError, UnknownNameError
from logitcache.losses import LOSSES, Objective
from logitcache.teacher.sparse import SparseTeacher


def test_cross_entropy_alone_needs_no_teacher():
    s, _, _, y = dense.batch()
    objective = Objective.parse("ce", label_smoothing=0.1)
    total, terms = objective(s, None, y)
    assert not objective.needs_teacher
    assert list(terms) == ["ce"]
    torch.testing.assert_close(total, F.cross_entropy(s, y, label_smoothing=0.1))


def test_cross_entropy_can_be_a_term_with_its_weight():
    s, _, teacher, y = dense.batch()
    for text, weight in {"kd:0.5+ce:0.25": 0.25, "ce:0+kd:0.5": 0.0, "ce+kd:0.5": 0.7}.items():
        objective = Objective.parse(text, ce_weight=0.7 if weight == 0.7 else 1.0)
        expected = Objective.parse("kd:0.5", ce_weight=weight)
        assert objective.spec() == expected.spec()
        torch.testing.assert_close(objective(s, teacher, y)[0], expected(s, teacher, y)[0])
    assert not Objective.parse("ce:0.5").needs_teacher
    with pytest.raises(OptionError, match=r"cross-entropy takes one weight, found 0\.5, 0\.3"):
        Objective.parse("kd+ce:0.5", ce_weight=0.3)


def test_no_target_is_needed_where_nothing_asks_for_labels():
    s, _, teacher, y = dense.batch()
    objective = Objective.parse("kd+cmkd", ce_weight=0)
    total, terms = objective(s, teacher, None)
    assert list(terms) == ["kd", "cmkd"]
    torch.testing.assert_close(total, objective(s, teacher, y)[0])
    with pytest.raises(OptionError, match="cross-entropy of weight 1 needs labels"):
        Objective.parse("kd")(s, teacher, None)
    with pytest.raises(OptionError, match="loss dkd needs labels"):
        Objective.parse("dkd", ce_weight=0)(s, teacher, None)


def test_a_sum_is_the_weighted_sum_of_its_terms():
    s, _, teacher, y = dense.batch()
    objective = Objective.parse(
        "kd:0.5+cmkd(temperature=2, strength=0.5):1e+1 + kd(temperature=2)", ce_weight=0.25
    )
    total, terms = objective(s, teacher, y)
    assert list(terms) == ["ce", "kd", "cmkd", "kd#2"]
    assert not any(value.requires_grad for value in terms.values())
    expected = (
        0.25 * terms["ce"] + 0.5 * terms["kd"] + 10 * terms["cmkd"] + LOSSES["kd"].weight * terms["kd#2"]
    )
    torch.testing.assert_close(total.detach(), expected)
    total.backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("text", ["ce", "kd", "kd:0.5+cmkd(temperature=2.0):1", "kd(temperature=1e0):1e-3"])
def test_the_spec_is_json_and_restores_the_objective(text):
    spec = Objective.parse(text, ce_weight=0.5, label_smoothing=0.1).spec()
    assert json.loads(json.dumps(spec)) == spec
    again = Objective.parse(
        spec["expression"], ce_weight=spec["ce_weight"], label_smoothing=spec["label_smoothing"]
    )
    assert again.spec() == spec
    assert all(term.options.keys() == LOSSES[term.name].options().keys() for term, _ in again.terms)


def test_unlabelled_rows_do_not_count_in_cross_entropy():
    s, _, _, y = dense.batch()
    y[2:] = -1
    torch.testing.assert_close(Objective.parse("ce")(s, None, y)[0], F.cross_entropy(s[:2], y[:2]))


def test_no_label_at_all_is_a_cross_entropy_of_zero():
    s, _, _, _ = dense.batch()
    total, _ = Objective.parse("ce")(s, None, torch.full((6,), -1))
    total.backward()
    assert total.item() == 0
    assert s.grad.eq(0).all()


def test_a_missing_teacher_is_named():
    s, _, _, y = dense.batch()
    with pytest.raises(OptionError, match="kd needs a teacher"):
        Objective.parse("kd")(s, None, y)


def test_an_unknown_loss_is_met_with_near_names():
    with pytest.raises(UnknownNameError, match="did you mean cmkd"):
        Objective.parse("kd+cmdk")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "found ''"),
        ("kd+", "found ''"),
        ("kd:", "weight must be"),
        ("kd:-1", "weight must be"),
        ("kd:nan", "weight must be"),
        ("kd:inf", "weight must be"),
        ("kd(", "found 'kd\\('"),
        ("kd(4.0)", "options of kd read"),
        ("kd(**x)", "options of kd read"),
        ("kd(temperature=)", "options of kd read"),
        ("kd(heat=4)", "no option 'heat'; it has temperature"),
        ("kd(temperature=hot)", "must be a number, found 'hot'"),
        ("kd(temperature=True)", "must be a number"),
        ("kd(temperature=1e999)", "must be a number"),
        ("kd(temperature=__import__('os').getcwd())", "must be a number"),
        ("kd(temperature=0)", "temperature must be above 0"),
        ("kd(tail=uniform)", "no option 'tail'; it has temperature"),
        ("cmkd(support=topk+tail)", "must be all or listed, found 'topk\\+tail'"),
        ("cmkd(strength=-1)", "strength must be above 0"),
        ("ce(label_smoothing=0.1)+kd", "cross-entropy takes label smoothing as an option of its own"),
        ("ce:0.5+kd+ce", "cross-entropy takes one weight, found 0.5, 1,"),
        ("kd+ce:-1", "a weight must be a number of 0 or more, found '-1'"),
    ],
)
def test_a_bad_expression_is_refused_in_one_line(text, says):
    with pytest.raises(OptionError, match=says) as refusal:
        Objective.parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "options", [{"ce_weight": -1.0}, {"ce_weight": float("nan")}, {"label_smoothing": 1.5}]
)
def test_bad_cross_entropy_options_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Objective.parse("kd", **options)


# Wrapped losses, progress, two heads --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["logit_std", "logit_std(loss=dkd(beta=2.0)):3", "logit_std(loss=cmkd(support=listed))"]
)
def test_a_loss_can_wrap_another(text):
    objective = Objective.parse(text)
    again = Objective.parse(objective.spec()["expression"])
    assert again.spec() == objective.spec()
    s, t, teacher, y = dense.batch()
    inner = objective.terms[0][0].options["loss"]
    z = SparseTeacher.from_logits(dense.z(t), 20)
    torch.testing.assert_close(objective(s, teacher, y)[1]["logit_std"], inner(dense.z(s), z, y).detach())


def test_a_wrapped_loss_is_checked_like_any_other():
    with pytest.raises(UnknownNameError, match="unknown loss 'kdd'"):
        Objective.parse("logit_std(loss=kdd)")
    with pytest.raises(OptionError, match="no option 'heat'"):
        Objective.parse("logit_std(loss=kd(heat=1))")


def test_progress_reaches_the_losses_that_follow_it():
    s, t, teacher, y = dense.batch()
    objective = Objective.parse("taid + logit_std(loss=taid)")
    for progress in (0.0, 0.5, 1.0):
        _, terms = objective(s, teacher, y, progress=progress)
        torch.testing.assert_close(terms["taid"], dense.taid(s, t, y, progress=progress).detach())
        wrapped = dense.taid(dense.z(s), dense.z(t), y, progress=progress)
        torch.testing.assert_close(terms["logit_std"], wrapped.detach())


def test_two_heads_learn_from_labels_and_teacher_apart():
    s, t, teacher, y = dense.batch(heads=2)
    objective = Objective.parse("dho(temperature=3.0) + mse")
    assert objective.heads == 2
    assert objective.mixes_heads
    total, terms = objective(s, teacher, y)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(s[:, 0], y).detach())
    torch.testing.assert_close(terms["dho"], dense.kd(s[:, 1], t, y, 3.0).detach())
    torch.testing.assert_close(terms["mse"], dense.mse(s[:, 1], t, y).detach())
    (gradient,) = torch.autograd.grad(total, s)
    (from_labels,) = torch.autograd.grad(F.cross_entropy(s[:, 0], y), s)
    torch.testing.assert_close(gradient[:, 0], from_labels[:, 0])


def test_both_heads_answer_after_dho_alone():
    assert Objective.parse("mse + dho").mixes_heads
    assert not Objective.parse("kd").mixes_heads
    assert not Objective.parse("dhkd").mixes_heads


def test_dhkd_warns_where_the_teacher_does_not_list_all_classes():
    s, _, _, _ = dense.batch(heads=2)
    with pytest.warns(UserWarning, match="of which the teacher lists"):
        Objective.parse("dhkd")(s, SparseTeacher.from_logits(torch.randn(6, 20), 4), torch.zeros(6).long())


@pytest.mark.parametrize(("expression", "shape"), [("kd", (4, 2, 10)), ("dho", (4, 10))])
def test_logits_of_another_number_of_heads_are_refused(expression, shape):
    teacher = SparseTeacher.from_logits(torch.randn(4, 10), 3)
    with pytest.raises(OptionError, match="needs student logits of shape"):
        Objective.parse(expression)(torch.randn(shape), teacher, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("1*kd", "its weight stands behind it, as in kd:0.5"),
        ("kd:0.5,ce:0.5", "several are joined by +, as in kd:0.5+ce:0.5"),
        ("kd(temperature=4", "a bracket is open"),
        ("kd+", "name one, such as cmkd, kd or ce"),
        ("ce:0", "every weight of 'ce:0' is 0, so nothing would be learnt; give one above 0"),
    ],
)
def test_what_no_objective_is_says_how_one_reads(text: str, advice: str) -> None:
    with pytest.raises(OptionError, match=re.escape(advice) + "$"):
        Objective.parse(text)
    with pytest.raises(OptionError, match="every weight"):
        Objective.parse("kd:0", ce_weight=0.0)


# What is refused of a batch -----------------------------------------------------------------------------------


def test_rows_and_labels_of_another_number_are_refused_in_a_line():
    s, _, teacher, y = dense.batch()
    for expression in ("kd", "cmkd", "dkd"):
        objective = Objective.parse(expression)
        told = f"the teacher's answers are of {len(s)} rows, the student's logits of 2"
        refused(OptionError, lambda o=objective: o(s[:2], teacher, y[:2]), told)
        told = rf"labels must be of shape ({len(s)},), one to a row of logits, found (2,)"
        refused(OptionError, lambda o=objective: o(s, teacher, y[:2]), told)
    refused(OptionError, lambda: Objective.parse("ce")(s, None, y[:, None]), "labels must be of shape")


def test_a_call_that_is_refused_uses_no_warning_up():
    s, _, teacher, y = dense.batch()
    objective = Objective.parse("dkd")
    for target, rows in ((None, s), (y[:2], s), (y, s[:2])):
        with pytest.raises(OptionError):
            objective(rows, teacher, target)
    with pytest.warns(UserWarning, match="dkd learns from rows with labels alone"):
        objective(s, teacher, torch.full_like(y, -1))


def test_an_objective_prints_as_what_it_minimises():
    found = {text: repr(Objective.parse(text)) for text in ("ce", "kd", "kd:0.5+cmkd(temperature=3.0):2")}
    assert found["ce"] == "Objective(ce, ce_weight=1)"
    assert found["kd"] == "Objective(kd:1, ce_weight=1)"
    assert "kd:0.5+cmkd(temperature=3.0):2, ce_weight=1" in found["kd:0.5+cmkd(temperature=3.0):2"]
