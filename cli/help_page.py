"""What --help prints: usage, what a command does, then its options, those that matter most before the others."""

import inspect
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .terminal import console

WIDEST_CHOICE = 18  # letters of choices that stand beside an option; longer ones are told behind its text
_NUMBERS = {"int": "N", "float": "X"}


def print_help(command: Any, context: Any) -> None:
    """Print the help of a command, or of the application: one heading for each panel of options."""
    with console.capture() as captured:
        _print(command, context)
    print("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()))


def _print(command: Any, context: Any) -> None:
    options = [option for option in command.get_params(context) if not getattr(option, "hidden", False)]
    arguments = [one for one in options if one.param_type_name == "argument"]
    names = [f"[{argument_name(one)}]" if not one.required else argument_name(one) for one in arguments]
    others = getattr(command, "commands", {})
    usage = " ".join(
        [context.command_path, "[OPTIONS]", *names, *(["COMMAND", "[OPTIONS]"] if others else [])]
    )
    console.print(Text.assemble(("Usage: ", "bold"), usage), end="\n\n")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        console.print(Padding(Text(" ".join(paragraph.split())), (0, 1, 1, 1)))
    panels: dict[str, list[tuple[Text, Text]]] = {}
    for option in options:
        panel = "Arguments" if option in arguments else getattr(option, "rich_help_panel", None) or "Options"
        panels.setdefault(panel, []).append((_name(option, context), _describe(option, context)))
    commands = {name: one for name, one in others.items() if not one.hidden}
    if commands:
        panels["Commands"] = [
            (Text(name, "bold cyan"), Text(_first_line(one))) for name, one in commands.items()
        ]
    width = max((len(name) for rows in panels.values() for name, _ in rows), default=0)
    first = [title for title in ("Arguments", "Options") if title in panels]
    for title in dict.fromkeys([*first, *panels]):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, width=width)
        table.add_column()
        for row in panels[title]:
            table.add_row(*row)
        console.print(Text(title, "bold"))
        console.print(Padding(table, (0, 0, 1, 2)))


def argument_name(argument: Any) -> str:
    """Return how an argument is called: CACHE."""
    return str(argument.metavar or argument.name).upper()


def value_name(option: Any, context: Any) -> str:
    """Return what stands for an option's value: N, TEXT, its choices; "" for one that takes none."""
    if getattr(option, "is_flag", False):
        return ""
    choices = "|".join(list_choices(option, context))
    if option.metavar or not choices:
        kind = option.display_type(context).strip("<>").removesuffix(" range")
        return str(option.metavar or _NUMBERS.get(kind.removeprefix("list[").removesuffix("]"), "TEXT"))
    return choices if len(choices) <= WIDEST_CHOICE else "NAME"


def list_choices(option: Any, context: Any) -> list[str]:
    """List the words that an option takes; none where it takes others."""
    kind = option.display_type(context).strip("<>")
    return kind.split("|") if "|" in kind else []


def _name(option: Any, context: Any) -> Text:
    if option.param_type_name == "argument":
        return Text(argument_name(option), "bold cyan")
    flags = sorted(option.opts, key=len)
    if option.secondary_opts:
        flags = [f"--[no-]{flags[-1].removeprefix('--')}"]
    return Text.assemble((", ".join(flags), "bold cyan"), f" {value_name(option, context)}".rstrip())


def _describe(option: Any, context: Any) -> Text:
    notes = []
    choices = list_choices(option, context)
    if choices and (option.param_type_name == "argument" or value_name(option, context) == "NAME"):
        notes.append(", ".join(choices))
    if option.required:
        notes.append("required")
    elif default := _default(option):
        notes.append(f"default: {default}")
    text = Text(option.help or "")
    if notes:
        text.append(f" ({'; '.join(notes)})", "dim")
    return text


def _default(option: Any) -> str:
    shown, value = option.show_default, option.default
    if isinstance(shown, str):
        return shown
    if shown is False or value is None or value is False or value == "" or isinstance(value, list | tuple):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first_line(command: Any) -> str:
    return " ".join((command.help or "").strip().split("\n\n")[0].split())
