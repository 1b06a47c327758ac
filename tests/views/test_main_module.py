"""Scripts without `if __name__ == "__main__"`, where workers are started by spawn or forkserver."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from console import ROOT, blocks
from dumping import RECIPE, dump_digits
from small import few_digits
from torch.utils.data import DataLoader

from logitcache.format.identity import RecipeSpec, StepSpec
from logitcache.views.datasets import ArrayImages
from logitcache.views.keyed_views import KeyedViews
from logitcache.views.loader import _advise_on_death, view_loader
from logitcache.views.main_module import _is_guarded, needs_main

SCRIPT = """
import multiprocessing
from pathlib import Path
from small import few_digits
from logitcache import Stream

multiprocessing.set_start_method("forkserver", force=True)
{snippet}
print("student", student(views / 255).shape[1])
stream = Stream.from_cache("cache.zarr", few_digits(64), batch_size=16, workers=1, start_method="spawn")
print("stream", sum(len(batch.views) for batch in stream.epoch(0)))
"""


def test_the_snippet_of_the_integrations_and_a_stream_run_without_a_guard(tmp_path: Path):
    page = (ROOT / "docs" / "integrations" / "README.md").read_text(encoding="utf-8")
    snippet = next(code for kind, code in blocks(page) if kind == "python" and "CachedViews(None" in code)
    assert "num_workers=" in snippet
    code = SCRIPT.format(snippet=snippet.replace("CachedViews(None,", "CachedViews(few_digits(64),"))
    assert "__main__" not in code
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    dump_digits(tmp_path / "cache.zarr", n=64, seeds=(0,))
    environment = {"LOGITCACHE_SPOOL": str(tmp_path / "spool"), "PYTHONPATH": str(ROOT / "tests" / "support")}
    words = [sys.executable, "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "student 10\nstream 64\n", "")


@pytest.mark.parametrize(
    ("script", "guarded"),
    [
        ("import os\nif __name__ == '__main__':\n    os.getpid()\n", True),
        ("def main(): pass\nif '__main__' == __name__: main()\n", True),
        ("import os\nos.getpid()\n", False),
        ("name = __name__\n", False),
        ("this is no Python", True),
        (None, True),
    ],
)
def test_a_script_that_may_be_imported_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, guarded: bool
):
    file = tmp_path / "script.py"
    if script is not None:
        file.write_text(script, encoding="utf-8")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(file), raising=False)
    assert _is_guarded() == guarded


class Mine(ArrayImages):
    pass


@pytest.mark.parametrize("place", ["data", "recipe", "nothing"])
def test_what_comes_from_the_main_module_is_seen(place: str, monkeypatch: pytest.MonkeyPatch):
    few, recipe = few_digits(5), RECIPE
    if place == "data":
        few = Mine("few", "train", few.images, few.labels, 10, "digits")
        monkeypatch.setattr(Mine, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    if place == "recipe":
        monkeypatch.setattr(sys.modules["__main__"], "invert", lambda image: 255 - image, raising=False)
        recipe = RecipeSpec("mine", 1, (StepSpec("__main__:invert"),))
    assert needs_main(KeyedViews(few, recipe), np.zeros(3), torch.zeros(3)) == (place != "nothing")


def test_where_workers_need_the_script_their_death_is_told_with_that_reason(monkeypatch: pytest.MonkeyPatch):
    few = few_digits(5)
    mine = Mine("few", "train", few.images, few.labels, 10, "digits")
    for method, main, said in (("spawn", True, True), ("fork", True, False), ("spawn", False, False)):
        monkeypatch.setattr(Mine, "__module__", "__main__" if main else __name__)
        monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
        loader = view_loader(KeyedViews(mine, RECIPE), [[(0, 0)]], workers=1, start_method=method)
        assert isinstance(loader, DataLoader)
        advice = _advise_on_death(loader)
        assert ('below `if __name__ == "__main__":`' in advice) == said
        assert "memory" in advice
