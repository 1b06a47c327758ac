"""What run folders are called."""

import re
import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from logitcache.train.folder_names import find_folders, find_label, name_folders

LABELS = st.lists(st.text(min_size=1, max_size=150).map("digits_tiny-".__add__), unique=True, max_size=4)


@given(LABELS)
def test_folders_are_several_and_no_shell_wants_them_quoted(labels: list[str]) -> None:
    names = name_folders(labels)
    assert len(set(names)) == len(labels)
    for name in names:
        assert shlex.quote(name) == name or set(name) - set("abcdefghijklmnopqrstuvwxyz") <= set("=+")
        assert re.fullmatch(r"[A-Za-z0-9_.+=-]{1,110}", name)
    assert [find_label(f"{name}-3", labels) for name in names] == list(range(len(labels)))


def test_a_loss_is_read_in_its_folder() -> None:
    assert name_folders(["r-kd(temperature=4.0):0.5+cmkd:1", "r-lr=0.1,ema=0.99", "r-ce"]) == [
        "r-kd_temperature=4.0_0.5+cmkd_1",
        "r-lr=0.1_ema=0.99",
        "r-ce",
    ]


def test_folders_of_before_are_found_where_a_run_is_in_them(tmp_path: Path) -> None:
    labels = ["r-lr=0.1,ema=0.99", "nets:one-kd(temperature=2)"]
    assert find_folders(tmp_path, labels) == [tmp_path / name for name in name_folders(labels)]
    for before in ("r-lr=0.1,ema=0.99", "nets_one-kd(temperature=2)"):
        (tmp_path / before).mkdir()
        (tmp_path / before / "config.json").write_text("{}")
        assert find_label(f"{before}-0", labels) is not None
    assert [folder.name for folder in find_folders(tmp_path, labels)] == [
        "r-lr=0.1,ema=0.99",
        "nets_one-kd(temperature=2)",
    ]
