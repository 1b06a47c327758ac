"""Commands and functions run by several ranks, each a process."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from logitcache.distributed import World
from logitcache.errors import LogitCacheError
from logitcache_cli.main import app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_rank(world: World, port: int, said: Any, do: Callable[[World], Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size)}
    try:
        with world.process_group():
            said.put((world.rank, do(world)))
    except LogitCacheError as error:
        said.put((world.rank, error))


def in_ranks(do: Callable[[World], Any], size: int = 2, lost: int = 0) -> dict[int, Any]:
    """Do it in so many processes, of which some are lost; returns what each of the others returns or raises."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    said = fork.Queue()
    ranks = [fork.Process(target=_as_rank, args=(World(r, size, r), port, said, do)) for r in range(size)]
    for rank in ranks:
        rank.start()
    heard = dict(said.get(timeout=60) for _ in range(size - lost))
    for rank in ranks:
        rank.join()
    return heard


def _as_command(rank: int, port: int, words: list[str], folder: Path) -> None:
    """Be the command line in a process that torchrun has started."""
    os.chdir(folder)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    done = CliRunner().invoke(app, words)
    (folder / f"{rank}.json").write_text(json.dumps([done.exit_code, done.stdout, done.stderr]))


def commanded(words: list[str], folder: Path) -> list[tuple[int, str, str]]:
    """Run a command line as two ranks; returns exit code, output and messages of each."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [fork.Process(target=_as_command, args=(rank, port, words, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [tuple(json.loads((folder / f"{rank}.json").read_text())) for rank in range(2)]
