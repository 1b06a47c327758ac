"""How commands end: with one line, and exit code 0 done, 1 an expected error, 2 a wrong option, 128 + n signal n."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import typer

from logitcache.errors import LogitCacheError, StoppedError
from logitcache.paths import read_variable

from .terminal import say

_P = ParamSpec("_P")

_AGAIN = "; run the same command again to go on"
GOES_ON = {  # of other commands nothing is left to go on with
    "dump": _AGAIN,
    "derive": _AGAIN,
    "copy": _AGAIN,
    "train": "; with --resume, and its folder as --out, a run goes on from its last checkpoint",
}
_running = ""  # the command, once its options are read


def exit_on_error(command: Callable[_P, None]) -> Callable[_P, None]:
    """Make a command end with one line and exit code 1 on an expected error, 130 on Ctrl-C; never a traceback."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> None:
        global _running
        _running = command.__name__
        try:
            command(*args, **kwargs)
        except LogitCacheError as error:
            say(f"logitcache: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            say(f"logitcache: interrupted{GOES_ON.get(_running, '')}")
            raise typer.Exit(130) from interruption
        except OSError as error:
            if error.filename is None:  # of the output, which has a line of its own
                raise
            say(f"logitcache: {error.filename}: {error.strerror}")
            raise typer.Exit(1) from error
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"logitcache: torch.compile fails here ({reason}); leave out --compile")
            raise typer.Exit(1) from error

    return wrapped


def print_on_sigterm() -> None:
    """Print a line that says how to go on when SIGTERM comes, and then end as without this.

    Not under torchrun, which terminates ranks that wait for another one in C, where no line can be printed.
    """
    main = os.getpid()

    def handle(number: int, _: object) -> None:
        if os.getpid() == main and sys.stderr is not None:  # forked processes end silently
            os.write(2, f"logitcache: terminated{GOES_ON.get(_running, '')}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if read_variable("RANK") is None:
        signal.signal(signal.SIGTERM, handle)


@contextmanager
def catch_stop_signals(begun: Callable[[], bool] = lambda: True) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C came; a second one acts at once.

    Until work has `begun` that asks that function, the first acts at once too. Work that then ends with a
    `StoppedError` ends the program with one line and exit code 128 + the signal's number, SIGTERM's where another
    rank received it.
    """
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        restore()
        if begun():
            received.append(number)
        else:
            os.kill(os.getpid(), number)

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in handlers:
        signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    except StoppedError as error:
        say(f"logitcache: {error}")
        raise typer.Exit(128 + (received or [signal.SIGTERM])[0]) from error
    finally:
        restore()
