"""The public surface: sorted, whole, and quick to import."""

import subprocess
import sys

import pytest

import logitcache


def test_the_public_names_are_sorted_and_there() -> None:
    assert logitcache.__all__ == sorted(logitcache.__all__)
    for name in logitcache.__all__:
        assert getattr(logitcache, name) is not None


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = logitcache.nonsense


def test_importing_logitcache_imports_neither_torch_nor_zarr() -> None:
    code = "import sys, logitcache; print([m for m in ('torch', 'zarr', 'numpy') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
