"""How a command line is read: help, wrong words in one line, outputs that are closed."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from .help_page import print_help
from .terminal import PIPE_CLOSED, is_closed, say
from .usage_errors import describe_usage_error, hint_at_variants

_WORDS = "logitcache.words"  # key in a context: the words of the command line


class Application(TyperGroup):
    """All commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words, for errors; without any, print the help."""
        ctx.meta[_WORDS] = list(args)
        if not args and not ctx.resilient_parsing:
            print_help(self, ctx)
            raise typer.Exit(2)
        with _told_where(ctx):
            return super().parse_args(ctx, args)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the options before the command."""
        with _errors_in_a_line(list(args)):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the options of a command, and run it."""
        with _errors_in_a_line(ctx.meta[_WORDS]):
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        print_help(self, ctx)


class ApplicationCommand(TyperCommand):
    """One of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read its options."""
        with _told_where(ctx):
            self._require_plain_numbers(ctx, args)
            return super().parse_args(ctx, args)

    def _require_plain_numbers(self, ctx: Any, args: list[str]) -> None:
        """Refuse a range such as 0-2 for a number, of which pydantic strips the zero and takes the rest: -2."""
        found = self.make_parser(ctx).parse_args(args=list(args))[0]
        options: list[Any] = list(self.params)
        for option in options:
            value = found.get(option.name)
            if not isinstance(value, str) or not option.display_type(ctx).startswith("<int"):
                continue
            if re.match(r"\s*[+-]?\d[\d_]*[+-]", value):
                expected = f"expected a whole number, found {value!r}"
                raise typer.BadParameter(f"{expected}{hint_at_variants(ctx, option)}", ctx, option)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        print_help(self, ctx)


@contextmanager
def _told_where(context: Any) -> Iterator[None]:
    """Have errors know the command that they are of, where the parser does not say."""
    try:
        yield
    except TyperException as error:
        if getattr(error, "ctx", context) is None:
            error.ctx = context  # type: ignore[attr-defined]
        raise


@contextmanager
def _errors_in_a_line(words: list[str]) -> Iterator[None]:
    """End with a line and exit code 2 where the command line is wrong, silently where nobody reads the output."""
    try:
        yield
    except TyperException as error:
        if not hasattr(error, "ctx"):
            raise
        say(f"logitcache: {describe_usage_error(error, words)}")
        raise typer.Exit(2) from error
    except BrokenPipeError as error:
        if not is_closed(sys.stdout):
            raise
        raise typer.Exit(PIPE_CLOSED) from error
