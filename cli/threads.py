"""How many threads torch takes, which commands import only when they run."""

import os

from logitcache.paths import read_variable

WITHOUT_TORCH = {"copy", "init"}


def fit_threads(command: str | None) -> None:
    """Have torch take no more threads than cores that this process may use, unless the command needs no torch.

    By itself it takes one for each core of the machine, whatever a container's share of them, and many threads on few
    cores wait for each other.
    """
    if command is None or command in WITHOUT_TORCH:
        return
    from dask.system import cpu_count

    if (cores := cpu_count()) < (os.cpu_count() or 1) and read_variable("OMP_NUM_THREADS") is None:
        os.environ["OMP_NUM_THREADS"] = str(cores)
