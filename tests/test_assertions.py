"""A test that could not fail is none: no assertion stands where its failure would be swallowed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SWALLOWS_ASSERTIONS = {"BaseException", "Exception", "AssertionError"}


def swallowed_assertions(code: str) -> list[int]:
    """Return the lines of assertions whose failure nobody would hear of."""
    return sorted({at for node in ast.walk(ast.parse(code)) for at in _swallowed(node)})


def _swallowed(node: ast.AST) -> Iterator[int]:
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        quiet = any(
            ast.unparse(call.func).rpartition(".")[2] == "suppress" and SWALLOWS_ASSERTIONS & _names(call)
            for call in calls
        )
    elif isinstance(node, ast.Try):
        quiet = any(
            (handler.type is None or SWALLOWS_ASSERTIONS & _names(handler.type))
            and not any(isinstance(part, ast.Raise) for part in ast.walk(handler))
            for handler in node.handlers
        )
    else:
        return
    if quiet:
        inside = (part for statement in node.body for part in ast.walk(statement))
        yield from (part.lineno for part in inside if isinstance(part, ast.Assert))


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


@pytest.mark.parametrize(
    "code",
    [
        "with suppress(Exception):\n    assert found",
        "with contextlib.suppress(OSError, AssertionError):\n    for one in found:\n        assert one",
        "try:\n    assert found\nexcept Exception:\n    pass",
        "try:\n    assert found\nexcept:\n    pass",
    ],
)
def test_an_assertion_that_is_swallowed_is_found(code: str) -> None:
    assert len(swallowed_assertions(code)) == 1
    assert not swallowed_assertions(code.replace("Exception", "OSError").replace("AssertionError", "E")) or (
        "except:" in code
    )


def test_no_test_swallows_its_assertions() -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if (lines := swallowed_assertions(file.read_text(encoding="utf-8")))
    }
    assert not found
