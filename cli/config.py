"""logitcache.toml: a table per command, a key per option."""

import tomllib
from pathlib import Path
from typing import Any

import typer

from logitcache.errors import FormatError, NotFoundError, UnknownNameError

CONFIG_FILE = "logitcache.toml"


def read_defaults(path: Path | None, context: typer.Context) -> dict[str, Any]:
    """Read defaults by command and option.

    Raises:
        NotFoundError: a file was named and is not there, or it cannot be read.
        FormatError: it is not TOML, or a table is not one.
        UnknownNameError: it names a command or option that does not exist.
    """
    file = path or Path(CONFIG_FILE)
    if not file.is_file():
        if path:
            raise NotFoundError(f"no such config file: {path}; `logitcache init --out {path}` writes one")
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # with a mark, as some editors leave
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{file}: not TOML: {error}") from error
    commands = configurable_options(context)
    defaults: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in commands:
            raise UnknownNameError(f"table in {file}", name, commands)
        if not isinstance(table, dict):
            raise FormatError(f"{file}: expected a table [{name}], found {table!r}")
        options = {option_name(p): p for p in commands[name]}
        for key in table:
            if key not in options:
                raise UnknownNameError(f"option of [{name}] in {file}", key, options)
        defaults[name] = {
            options[key].name: [value] if options[key].multiple and not isinstance(value, list) else value
            for key, value in table.items()
        }
    return defaults


def configurable_options(context: typer.Context) -> dict[str, list[Any]]:
    """Return the options that a config file may set defaults for, by command.

    Options are click's; typer has a click of its own in some versions, so they are known by what they say, not by
    their class.
    """
    group: Any = context.find_root().command
    options = {
        name: [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        for name, command in group.commands.items()
    }
    return {name: some for name, some in options.items() if some and name != "init"}


def option_name(option: Any) -> str:
    """Return an option's key in the file: its long flag without the dashes in front."""
    return str(max(option.opts, key=len)).lstrip("-")
