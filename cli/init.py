"""``logitcache init``: write a commented logitcache.toml."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from logitcache.errors import OptionError
from logitcache.files import require_file, writing

from .config import CONFIG_FILE, configurable_options, option_name
from .shared_options import parse_output_path
from .train_options import BY_PROTOCOL, protocol_default


def init(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="File to write.", parser=parse_output_path, metavar="PATH")
    ] = Path(CONFIG_FILE),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented logitcache.toml: every option of every command, at its default.

    Uncomment what you want to change; the command line still wins.

    Example: logitcache init
    """
    require_file(out, CONFIG_FILE)
    if out.exists() and not force:
        raise OptionError(f"{out} is there already; --force replaces it")
    lines = ["# Defaults for logitcache. Uncomment what you change; the command line wins."]
    for command, options in configurable_options(context).items():
        lines += ["", f"[{command}]"]
        for option in options:
            example = protocol_default(option.name) if command == "train" and option.default is None else None
            note = "" if example is None else f" ({BY_PROTOCOL}; here as digits has it)"
            lines += [
                f"# {option.help}{note}" if option.help else "#",
                f"# {option_name(option)} = {_toml(option) if example is None else json.dumps(example)}",
            ]
    with writing(out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo(f"wrote {out}")


def _toml(option: Any) -> str:
    value: Any = option.default
    if option.multiple:
        return json.dumps([str(v) for v in value or []])
    if value is None:
        shown = option.show_default
        return _literal(shown) if isinstance(shown, str) else '""'
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


def _literal(text: str) -> str:
    """Write a shown default as TOML: a number or a truth as it is, other text quoted."""
    try:
        return json.dumps(json.loads(text.lower()))
    except ValueError:
        return json.dumps(text)
