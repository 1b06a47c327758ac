"""Every error logitcache raises on purpose.

Each message says what was expected, what was found and what to do. Each class also subclasses the
builtin that fits, so ``except FileNotFoundError`` in your code keeps working.

    LogitCacheError
    ├── OptionError        (ValueError)           an option or argument that cannot be honoured
    ├── UnknownNameError   (LookupError)          no such model, recipe, loss …; near names are suggested
    ├── DataError          (ValueError)           a data set that is not what it should be
    │   └── ImageError                            one image that does not decode
    ├── NotFoundError      (FileNotFoundError)    a folder, file or cache that is not there
    ├── WeightsError       (ValueError)           weights that do not fit, or cannot be had
    ├── FormatError        (ValueError)           a cache that breaks its own format
    ├── MismatchError      (ValueError)           two things that must agree differ; `.fields` says where
    │   └── DriftError                            regenerated views are not the views that were dumped
    ├── IncompleteError    (LookupError)          seeds or samples a cache does not (yet) hold
    ├── BusyError          (BlockingIOError)      another process is writing this seed
    ├── NonFiniteError     (ArithmeticError)      NaN or infinity where a number must be
    ├── ClusterError       (ConnectionError)      a scheduler, worker or rank that cannot be reached, or ended
    ├── DeviceMemoryError  (RuntimeError)         what does not fit the device's memory
    ├── StoppedError       (RuntimeError)         work that was asked to stop, and did
    ├── StudentsError      (RuntimeError)         some students failed; `.reports` are of those that did not
    └── StorageError       (OSError)              the disk said no: full, read-only, gone
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

from logitcache.synonyms import find_meant

_E = TypeVar("_E", bound="LogitCacheError")
MANY = 30  # names that one line can list
NAMED = 3  # of some, that a message lists


class LogitCacheError(Exception):
    """Root of the tree: catch this to catch everything logitcache raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.__dict__)

    def with_prefix(self, name: str) -> Self:
        """Return this error with a name before its message, where that does not name it: of a student or process."""
        if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", str(self)):
            return self
        return _rebuild(type(self), f"{name}: {self}", self.__dict__)


class OptionError(LogitCacheError, ValueError):
    """An option or argument that cannot be honoured."""


class UnknownNameError(LogitCacheError, LookupError):
    """An unknown name; the message suggests what is meant by a word of the field, or near ones."""

    def __init__(
        self, kind: str, name: str, known: Iterable[str], hint: str = "", *, meant: str = ""
    ) -> None:
        known = sorted(known)
        least = 0.5 if len(known) <= MANY else 0.0  # of many names the nearest are listed, however far
        near = [meant] if meant else find_meant(name, known, cutoff=least)
        advice = f"did you mean {join_alternatives(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {advice}{' ' + hint if hint else ''}")


class DataError(LogitCacheError, ValueError):
    """A data set that is not what it should be."""


class ImageError(DataError):
    """One image that does not decode."""


class NotFoundError(LogitCacheError, FileNotFoundError):
    """A folder, file or cache that is not there."""


class WeightsError(LogitCacheError, ValueError):
    """Weights that do not fit the model, or that cannot be had."""


class FormatError(LogitCacheError, ValueError):
    """A cache that breaks its own format: damaged, truncated, or newer than this library."""


class Difference(NamedTuple):
    """One field in which two things that must agree differ.

    Attributes:
        field: its name.
        expected: what a cache, a run or a format has recorded, or what a rule asks for.
        found: what is given, or is there now.
    """

    field: str
    expected: object
    found: object


class MismatchError(LogitCacheError, ValueError):
    """Two things that must agree differ; ``fields`` lists each as (field, expected, found)."""

    def __init__(self, what: str, fields: Iterable[Difference], advice: str) -> None:
        self.fields = tuple(fields)
        rows = "; ".join(
            f"{f.field}: expected {_brief(f.expected)}, found {_brief(f.found)}" for f in self.fields
        )
        super().__init__(f"{what}: {rows}; {advice}")


class DriftError(MismatchError):
    """Regenerated views are not the views that were dumped."""


class IncompleteError(LogitCacheError, LookupError):
    """Seeds or samples that a cache does not (yet) hold."""


class BusyError(LogitCacheError, BlockingIOError):
    """Another process is writing this seed."""


class NonFiniteError(LogitCacheError, ArithmeticError):
    """NaN or infinity where a number must be."""


class ClusterError(LogitCacheError, ConnectionError):
    """A scheduler, a worker or a rank that cannot be reached, or has ended."""


class DeviceMemoryError(LogitCacheError, RuntimeError):
    """What does not fit the device's memory."""


class StoppedError(LogitCacheError, RuntimeError):
    """Work that was asked to stop, and did; it can be resumed."""


class StudentsError(LogitCacheError, RuntimeError):
    """Some of several students ended early, or could not be exported; `reports` are of those that did not.

    `errors` has the reasons by run folder; `how` says in the message what went wrong.
    """

    def __init__(
        self,
        errors: Mapping[str, LogitCacheError],
        reports: Sequence[Any],
        total: int | None = None,
        how: str = "ended early",
    ) -> None:
        self.errors, self.reports = dict(errors), list(reports)
        of = len(self.errors) + len(self.reports) if total is None else total
        reasons = "; ".join(_merge_reasons(self.errors, of))
        super().__init__(f"{len(self.errors)} of {of} students {how}: {reasons}")


class StorageError(LogitCacheError, OSError):
    """The disk said no: full, read-only, gone."""


def _rebuild(kind: type[_E], text: str, state: dict[str, object]) -> _E:
    """Make an error from its message and state, whatever arguments its class takes."""
    error = kind.__new__(kind, text)
    error.args = (text,)
    error.__dict__.update(state)
    return error


def _merge_reasons(errors: Mapping[str, LogitCacheError], total: int) -> Iterator[str]:
    """Yield each reason once; of several runs with their names, but where all of them failed by the same."""
    runs: dict[str, list[str]] = {}
    for name, error in errors.items():
        runs.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
    for reason, names in runs.items():
        if len(names) == 1:
            yield str(errors[names[0]])
        else:
            yield reason if len(names) == total else f"{', '.join(names)}: {reason}"


def _brief(value: object, most: int = 250) -> str:
    text = str(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):  # a digest
        text = f"{text[:12]}…"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def list_some(names: Sequence[str], total: int) -> str:
    """Write the first of so many names: "a, b, c and 4 others"."""
    *first, last = names[:NAMED]
    if others := total - len(first) - 1:
        first, last = [*first, last], f"{others:,} other{'s' if others > 1 else ''}"
    return f"{', '.join(first)} and {last}" if first else last


def join_alternatives(names: list[str]) -> str:
    """Write alternatives for people: "a, b or c"."""
    return " or ".join(", ".join(names).rsplit(", ", 1))


def without_advice(error: BaseException) -> str:
    """Return what an error says, but for torch's advice to unpickle whatever objects a file holds."""
    text = str(error).strip()
    if "weights_only" not in text:
        return text
    reason = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    refusal = "torch loads weights alone from it"
    return f"{refusal}: {reason[1].partition('. Please')[0]}" if reason else refusal
