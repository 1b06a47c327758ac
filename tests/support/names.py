"""Names that docstrings, comments and pages put into backticks, and whether there is something that bears them."""

import ast
import builtins
import functools
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from console import FENCED, ROOT
from typer.main import get_command

import logitcache
import logitcache_cli
from logitcache_cli.main import app

CODE = [
    *sorted(ROOT.glob("logitcache/**/*.py")),
    *sorted(ROOT.glob("cli/*.py")),
    *sorted(ROOT.glob("tests/**/*.py")),
    *sorted(ROOT.glob("docs/**/*.py")),
]
# Names of other programs and libraries that stand without theirs.
OF_OTHERS = {"Dataset.take", "ImageFolder", "Raises", "flock", "--nproc-per-node"}
SHORT = {
    "np": "numpy",
    "npt": "numpy.typing",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "dist": "torch.distributed",
    "v2": "torchvision.transforms.v2",
}
ENDINGS = (
    r"css|html|json|jsonl|lock|lmdb|md|new|npy|npz|onnx|owner|partial|png|pt|pth|py|safetensors|spool|svg|toml|"
    r"torchscript|txt|yml|zarr"
)
QUOTED = re.compile(r"``?([^`]+)``?")
WORD = re.compile(r"[A-Za-z_]\w*")
DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?")
PATH = re.compile(rf"(?<![\w/.:$-])(?:tests|docs|cli|logitcache|data)/[\w./-]+\.(?:{ENDINGS})\b")
FOLDER = re.compile(r"(?:tests|docs|cli|logitcache|data)/[\w./-]*")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def unresolved(file: Path, text: str | None = None) -> list[str]:
    """List the names in the prose of a file, or in a text that stands in it, that nothing bears."""
    found = []
    for part in _prose(file) if text is None else [text]:
        found += [path for path in PATH.findall(part) if not (ROOT / path).exists()]
        for quoted in QUOTED.findall(part):
            name = " ".join(quoted.split())
            if not _resolves(name, file):
                found.append(name)
            if file.suffix == ".py":  # those of pages are of other programs too: test_pages.py knows
                found += [one for one in OPTION.findall(name) if one not in _options() | OF_OTHERS]
    return list(dict.fromkeys(found))


def _prose(file: Path) -> Iterator[str]:
    """Yield the docstrings and comments of code, the text of a page without its blocks of code."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield FENCED.sub("", text)
        yield " ".join(f"`{name}`" for name in re.findall(r"^::: (\S+)", text, re.MULTILINE))
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    yield "\n".join(  # a name may be broken across the lines of a comment
        f"{comment}" if line - 1 in comments else f"\n{comment}" for line, comment in comments.items()
    ).replace("\n# ", " ")


def _resolves(name: str, file: Path) -> bool:
    """Is there something called `name`? What is neither a word, nor dotted, nor a path is code, and passes."""
    if name in OF_OTHERS:
        return True
    if WORD.fullmatch(name):
        return name in _words() or hasattr(builtins, name)
    if FOLDER.fullmatch(name):
        return (ROOT / name).exists() or (ROOT / f"{name}.py").exists()
    dotted = DOTTED.fullmatch(name)
    if not dotted or re.fullmatch(rf".*\.({ENDINGS})", name):
        return True
    head, *rest = dotted[1].split(".")
    if head in ("logitcache", "logitcache_cli"):
        return _has(_modules()[head], rest)
    ours = [*_homes(head), *_classes(head)]
    if any(_has(thing, rest) for thing in ours):
        return True
    if head in _variables(file) or _reaches(SHORT.get(head, head), rest):
        return True
    return not ours and head in {one.stem for one in CODE if ROOT / "tests" in one.parents}


# What there is --------------------------------------------------------------------------------------------


@functools.cache
def _modules() -> dict[str, ModuleType]:
    found = {}
    for package in (logitcache, logitcache_cli):
        found[package.__name__] = package
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                found[module.name] = importlib.import_module(module.name)
    return found


def _homes(head: str) -> list[ModuleType]:
    """List the modules of a name, wherever they are."""
    return [module for name, module in _modules().items() if name.rpartition(".")[2] == head]


def _classes(head: str) -> list[type]:
    """List the classes of a name, also in lower case and without "Spec", as their instances are called."""
    found = [thing for module in _modules().values() for thing in vars(module).values()]
    names = {head, head.lower(), f"{head.lower()}spec"} if head.islower() else {head}
    return [
        thing
        for thing in found
        if isinstance(thing, type)
        and (thing.__name__ in names or (head.islower() and thing.__name__.lower() in names))
    ]


def _has(thing: Any, names: list[str]) -> bool:
    """Does a module, class or object have what these names lead to?"""
    for name in names:
        module = f"{thing.__name__}.{name}" if isinstance(thing, ModuleType) else ""
        if module in _modules():
            thing = _modules()[module]
        elif hasattr(thing, name):
            thing = getattr(thing, name)
        else:
            return isinstance(thing, type) and any(_sets(one, name) for one in thing.__mro__)
    return True


def _sets(kind: type, name: str) -> bool:
    """Does a class annotate this attribute, or set it on its instances?"""
    if name in getattr(kind, "__annotations__", {}):
        return True
    try:
        return re.search(rf"\bself\.{name}\b", inspect.getsource(kind)) is not None
    except (OSError, TypeError):  # built in
        return False


@functools.cache
def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _reaches(head: str, names: list[str]) -> bool:
    thing: Any = _imported(head)
    for number, name in enumerate(names):
        found = getattr(thing, name, None)
        thing = _imported(".".join([head, *names[: number + 1]])) if found is None else found
    return thing is not None


def _parsed(code: str) -> ast.Module:
    """Parse code; a page may show less than a whole block of it."""
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.Module([], [])


@functools.cache
def _variables(file: Path) -> set[str]:
    """Return what a file, or a page's blocks of Python, call their variables and parameters."""
    text = file.read_text(encoding="utf-8")
    parts = (
        [block for kind, block in FENCED.findall(text) if kind == "python"]
        if file.suffix == ".md"
        else [text]
    )
    nodes = [node for part in parts for node in ast.walk(_parsed(part))]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)} | {"self"}


@functools.cache
def _words() -> set[str]:
    """Return every word that the code uses as a name, or within a short string, and its modules."""
    words = {word for module in _modules() for word in module.split(".")}
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                    words.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                    words.add(name)
                case ast.keyword(arg=str(name)):
                    words.add(name)
                case ast.alias(name=name, asname=other):
                    words.update(name.split("."), [other or ""])
                case ast.Constant(value=str(text)) if len(text) < 60:
                    words.update(WORD.findall(text))
    return words


@functools.cache
def _options() -> set[str]:
    group: Any = get_command(app)
    params = [one for command in (group, *group.commands.values()) for one in command.params]
    return {name for one in params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
