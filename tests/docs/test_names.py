"""Names in backticks, in docstrings, comments and pages, are those of something: module, class, path or option."""

from pathlib import Path

import pytest
from console import PAGES, ROOT
from names import CODE, unresolved

HERE = Path(__file__)


@pytest.mark.parametrize(
    "wrong",
    [
        "bench.digits",
        "logitcache.bench.digits",
        "audit.rules",
        "CacheSpec.nothing",
        "CacheReader.read.more",
        "torch.nothing.here",
        "Nobody" + "IsCalledSo",
        "tests/test_none.py",
        "logitcache/none/",
        "cli/none",
        "--no-such-option",
    ],
)
def test_a_name_that_nothing_bears_is_found(wrong: str) -> None:
    assert unresolved(HERE, f"as `{wrong}` says") == [wrong]


@pytest.mark.parametrize(
    "right",
    [
        "loader.view_loader",
        "logitcache.store.reader.CacheReader",
        "CacheSpec.arrays()",
        "Model.adapter",
        "torch.compile",
        "F.kl_div",
        "tests/docs/test_names.py",
        "logitcache/views/",
        "cli/train",
        "teacher.pth",
        "seeds.json",
        "--top-k 4",
        "k + 1",
    ],
)
def test_a_name_that_something_bears_is_not(right: str) -> None:
    assert unresolved(HERE, f"as `{right}` says") == []


def test_paths_need_no_backticks() -> None:
    assert unresolved(HERE, "docs/none.md says how (docs/format.md too)") == ["docs/none.md"]


@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in CODE])
def test_names_in_docstrings_and_comments_resolve(file: str) -> None:
    assert unresolved(ROOT / file) == []


@pytest.mark.parametrize("page", PAGES)
def test_names_on_pages_resolve(page: str) -> None:
    assert unresolved(ROOT / page) == []
