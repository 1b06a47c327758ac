"""The public surface: sorted, whole, and quick to import."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from console import run_python

import logitcache

FACES = [
    module.name
    for module in pkgutil.iter_modules(logitcache.__path__, "logitcache.")
    if module.ispkg and hasattr(importlib.import_module(module.name), "__all__")
]


def test_the_public_names_are_sorted_and_there() -> None:
    assert logitcache.__all__ == sorted(logitcache.__all__)
    for name in logitcache.__all__:
        assert getattr(logitcache, name) is not None


@pytest.mark.parametrize("face", ["logitcache", *FACES])
def test_dir_lists_every_public_name_and_star_imports_them(face: str) -> None:
    package = importlib.import_module(face)
    listed = dir(package)
    assert set(package.__all__) <= set(listed)
    assert "lazy" not in listed
    assert "TYPE_CHECKING" not in listed
    for name in listed:
        assert getattr(package, name, None) is not None or name.startswith("__")
    names: dict[str, object] = {}
    exec(f"from {face} import *", names)
    assert set(package.__all__) == names.keys() - {"__builtins__"}


def test_a_fresh_package_lists_names_and_wings_before_any_is_imported() -> None:
    code = (
        "import logitcache, sys\nlisted = dir(logitcache)\nassert 'torch' not in sys.modules\n"
        "assert {'Stream', 'Objective', 'dump', 'train', 'losses'} <= set(listed), listed\n"
        "assert callable(logitcache.train.TrainConfig)\nassert 'TrainConfig' in dir(logitcache.train)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_help_runs_and_names_all_that_is_public(tmp_path: Path) -> None:
    text = logitcache.__doc__ or ""
    assert all(name in text for name in logitcache.__all__ if name != "__version__")
    example = text.partition("::\n")[2].partition("\nStream  ")[0]
    dump = (
        "from dumping import dump_digits\nfrom pathlib import Path\nimport torch\n"
        "dump_digits(Path('c.zarr'), n=1437, seeds=(0,))\n"
        "student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    support = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent / 'support')!r})\n"
    run_python(support + dump + inspect.cleandoc(example), tmp_path)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = logitcache.nonsense


def test_importing_logitcache_imports_neither_torch_nor_zarr() -> None:
    code = "import sys, logitcache; print([m for m in ('torch', 'zarr', 'numpy') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
