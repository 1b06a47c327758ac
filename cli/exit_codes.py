"""How commands end: one line and an exit code; 0 done, 1 an expected error, 2 a wrong option, 128 + n a signal."""

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import typer

from logitcache.errors import LogitCacheError, StoppedError

from .terminal import say

_P = ParamSpec("_P")


def ending_clearly(command: Callable[_P, None]) -> Callable[_P, None]:
    """Let a command end with one line and exit code 1 on an expected error, 130 on Ctrl-C; never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LogitCacheError as error:
            say(f"logitcache: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            say("logitcache: interrupted; run the same command again to go on")
            raise typer.Exit(130) from interruption
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"logitcache: torch.compile fails here ({reason}); leave out --compile")
            raise typer.Exit(1) from error

    return wrapped


def telling_when_terminated() -> None:
    """From here on SIGTERM ends this process as ever, after a line that says how to go on.

    Not under torchrun, which terminates ranks that wait for another one in C, where no line could be said.
    """
    mine = os.getpid()

    def hear(number: int, _: object) -> None:
        if os.getpid() == mine:  # processes that it forked end without a word
            os.write(2, b"logitcache: terminated; run the same command again to go on\n")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if "RANK" not in os.environ:
        signal.signal(signal.SIGTERM, hear)


@contextmanager
def stopped_gently() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C came; a second one acts at once.

    Work that then ends with a `StoppedError` ends the program with one line and exit code 128 + the signal's number,
    SIGTERM's where it was another rank that heard one.
    """
    came: list[int] = []

    def hear(number: int, _: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, hear)
    try:
        yield lambda: bool(came)
    except StoppedError as error:
        say(f"logitcache: {error}")
        raise typer.Exit(128 + (came or [signal.SIGTERM])[0]) from error
    finally:
        restore()
