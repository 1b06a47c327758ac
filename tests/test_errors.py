"""Errors: the tree in the docstring is the tree that exists, and messages teach."""

import inspect
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache import errors
from logitcache.errors import (
    Difference,
    DriftError,
    LogitCacheError,
    MismatchError,
    NonFiniteError,
    StudentsError,
    UnknownNameError,
)


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """Read {class: (parent, builtin)} from the docstring of the module."""
    tree: dict[str, tuple[str, str | None]] = {}
    parents: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^( *(?:│ *)*(?:[├└]── )?)([A-Z]\w*Error)\b(?: +\((\w+)\))?", line):
            prefix, name, builtin = found.groups()
            depth = len(prefix)
            parent = next((parents[d] for d in sorted(parents, reverse=True) if d < depth), "Exception")
            parents = {d: n for d, n in parents.items() if d < depth} | {depth: name}
            tree[name] = (parent, builtin)
    return tree


def existing() -> dict[str, type[Exception]]:
    return {n: v for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, Exception)}


def test_the_tree_in_the_docstring_is_exactly_the_classes_that_exist():
    assert set(drawn_tree()) == set(existing())


@pytest.mark.parametrize("name", sorted(existing()))
def test_each_class_has_the_parent_and_the_builtin_that_the_tree_draws(name: str):
    parent, builtin = drawn_tree()[name]
    bases = [base.__name__ for base in existing()[name].__bases__]
    assert bases == [parent, *([builtin] if builtin else [])]


@pytest.mark.parametrize("name", sorted(set(existing()) - {"LogitCacheError"}))
def test_every_error_is_caught_by_the_root(name: str):
    assert issubclass(existing()[name], LogitCacheError)


def test_a_near_name_is_suggested_and_without_one_all_are_listed():
    known = ["resnet18", "resnet34", "vgg8"]
    near = str(UnknownNameError("model", "resnet81", known))
    assert "unknown model 'resnet81'; did you mean" in near
    assert "resnet18" in near
    assert "vgg8" not in near
    far = str(UnknownNameError("model", "zzz", known, "(or your own)"))
    assert far == "unknown model 'zzz'; known: resnet18, resnet34, vgg8 (or your own)"
    many = str(UnknownNameError("model", "zzz", [f"net{n}" for n in range(200)], "(all: there)"))
    assert many.endswith(" (all: there)")
    assert many.count("net") == 4


def test_two_or_more_suggestions_read_as_a_sentence():
    text = str(UnknownNameError("model", "aaab", ["aaaa", "aaac", "aaad"]))
    assert text.endswith("did you mean aaad, aaac or aaaa?")


@pytest.mark.parametrize("name", sorted(existing()))
def test_every_error_reads_the_same_in_another_process(name: str):
    difference = Difference("k", 4, 5)
    made = {
        "UnknownNameError": lambda: UnknownNameError("model", "resnet81", ["resnet18"]),
        "MismatchError": lambda: MismatchError("another", [difference], "dump again"),
        "DriftError": lambda: DriftError("drift", [difference], "dump again"),
        "StudentsError": lambda: StudentsError({"runs/a": NonFiniteError("runs/a: nan")}, ["of runs/b"]),
    }.get(name, lambda: existing()[name]("one line"))()
    assert isinstance(made, LogitCacheError)
    for copy, prefix in (
        (pickle.loads(pickle.dumps(made)), ""),
        (made.with_prefix("worker 3"), "worker 3: "),
    ):
        assert type(copy) is type(made)
        assert str(copy) == prefix + str(made)
        assert getattr(copy, "fields", None) == getattr(made, "fields", None)


texts = st.text(min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(texts, st.integers() | texts, st.integers() | texts), min_size=1, max_size=5))
def test_a_mismatch_keeps_its_fields_and_names_each_in_the_message(rows: list[tuple[str, object, object]]):
    for kind in (MismatchError, DriftError):
        error = kind("the cache is another", [Difference(*row) for row in rows], "dump again")
        assert error.fields == tuple(rows)
        assert str(error).startswith("the cache is another: ")
        assert str(error).endswith("; dump again")
        for field, expected, found in rows:
            assert f"{field}: expected {expected}, found {found}" in str(error)


def test_a_reason_that_several_students_share_is_said_once():
    nan = {f"runs/{name}": NonFiniteError(f"runs/{name}: the loss is NaN") for name in "abc"}
    assert str(StudentsError(nan, [])) == "3 of 3 students ended early: the loss is NaN"
    some = str(StudentsError(nan, ["of runs/d"]))
    assert some == "3 of 4 students ended early: runs/a, runs/b, runs/c: the loss is NaN"
    nan["runs/e"] = NonFiniteError("runs/e: the disk is full")
    assert str(StudentsError(nan, [])).endswith("runs/c: the loss is NaN; runs/e: the disk is full")
