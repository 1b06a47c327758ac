"""``logitcache train --out RUN --resume``: a run goes on by the options that its config.json keeps."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from logitcache.errors import LogitCacheError, NotFoundError, OptionError

from .shared_options import is_given
from .terminal import say

RECORDED = "logitcache.recorded"  # key in a context: the run whose options are gone on with
PATHS = ("out", "caches", "teacher_cache", "samples_file", "spool_folder")  # of options


def resume_as_recorded(context: typer.Context, out: Path | None, resume: bool) -> None:
    """Go on with a run by the options that its config.json keeps, but for those given now, in the folder it names."""
    from logitcache.distributed import World
    from logitcache.train.trained import list_runs, read_command

    if out is None or not resume:
        raise OptionError("name a network with --student, or go on with a run by --out RUN --resume")
    words, folder, run = read_command(out)
    here = Path.cwd()
    elsewhere = folder is not None and folder != here
    given = {
        name: _see_from_elsewhere(name, value) if elsewhere else value
        for name, value in context.params.items()
        if is_given(context, name)
    }
    context.meta[RECORDED] = run
    with (
        contextlib.chdir(folder if folder is not None else here),
        context.command.make_context(context.info_name, words, parent=context.parent) as again,
    ):
        options = again.params
        together = run == out or options["out"] is not None
        for name, value in given.items():
            options[name] = value
            again.set_parameter_source(name, context.get_parameter_source(name))  # type: ignore[arg-type]
        _require_own_names(again, f"{run}/config.json", elsewhere)
        if not options["student"]:
            raise OptionError(f"{run} was begun by a command that names no --student; give its options again")
        if not together:  # each is in a folder of its own
            among = len(list_runs(here / out))
            raise OptionError(f"no run in {out}; name one with --out, such as {run}, of the {among} there")
        if World.from_environment().rank == 0:
            there = f" in {folder}" if elsewhere else ""
            say(f"goes on{there} with: logitcache train {shlex.join(write_words(again))}")
        again.command.invoke(again)


@contextlib.contextmanager
def advise_own_options(out: Path | None) -> Iterator[None]:
    """Have an error end with how the run in `out` goes on by its own options, where it can."""
    try:
        yield
    except (NotFoundError, OptionError) as error:
        from logitcache.paths import write_path
        from logitcache.train.trained import read_command

        if out is None:
            raise
        try:
            read_command(out)
        except LogitCacheError:
            raise error from None
        command = f"logitcache train --out {shlex.quote(write_path(out))} --resume"
        raise type(error)(f"{error}; `{command}` alone goes on by the run's own options") from error


def _require_own_names(context: Any, where: str, elsewhere: bool) -> None:
    """Insist that code which a run names is the user's own: it lies in the folder from which they call."""
    from logitcache.plugins import require_own

    options = context.params
    students = [name for name in options["student"] or () if not name.startswith("timm:")]
    named = [options["data"], options["recipe"], *students]
    require_own(where, *named)
    code = [
        name for name in named if ":" in name and not name.startswith(("imagefolder:", "folder:", "cifar"))
    ]
    if elsewhere and code:
        raise OptionError(
            f"{where} names the code {code[0]} of {Path.cwd()}, which is not run because a file says so; "
            "go there, and give the same command"
        )


def _see_from_elsewhere(name: str, value: Any) -> Any:
    """Return an option's value with its paths as they are seen from any folder; names and URLs as they are."""
    from logitcache.paths import expand_home

    if isinstance(value, list | tuple):
        return [_see_from_elsewhere(name, each) for each in value]
    if name in PATHS and "://" not in str(value):
        return type(value)(expand_home(value).absolute())
    if name == "weights" and expand_home(value).is_file():
        return str(expand_home(value).absolute())
    if name == "data" and value.startswith(("imagefolder:", "folder:")):
        kind, _, path = value.partition(":")
        return f"{kind}:{expand_home(path).absolute()}"
    return value


def write_words(context: Any) -> list[str]:
    """Write the options that are not left at their defaults as words of a command line."""
    from logitcache.paths import write_path

    words: list[str] = []
    for option in context.command.params:
        name, value = str(option.name), context.params.get(str(option.name))
        source = context.get_parameter_source(name)
        if value is None or name in ("resume", "json") or source is None or source.name == "DEFAULT":
            continue
        flag = max(option.opts, key=len)
        if isinstance(value, bool):
            words.append(flag if value else max(option.secondary_opts, key=len, default=""))
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [flag, write_path(each) if isinstance(each, Path) else str(each)]
    return [word for word in words if word]
