"""Which of how many processes this is, as the environment says it, and what ranks exchange."""

from typing import Any

import pytest
import torch
from in_ranks import in_ranks

from logitcache.distributed import World
from logitcache.errors import OptionError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def here(monkeypatch: pytest.MonkeyPatch, *words: str) -> World:
    for name, word in zip(NAMES, words, strict=True):
        monkeypatch.setenv(name, word)
    return World.from_environment()


def test_the_environment_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert here(monkeypatch, "3", "8", "1") == World(3, 8, 1)
    assert here(monkeypatch, "", "8", "1") == World()


@pytest.mark.parametrize(
    "words", [("a", "2", "0"), ("2", "2", "0"), ("-1", "2", "0"), ("0", "1e3", "0"), ("0", "2", "x")]
)
def test_what_no_launcher_says_is_one_line(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    with pytest.raises(
        OptionError, match=f"found RANK={words[0]} WORLD_SIZE={words[1]} LOCAL_RANK={words[2]}"
    ):
        here(monkeypatch, *words)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_none_of_so_many_is_refused(rank: int, size: int) -> None:
    with pytest.raises(OptionError, match=f"rank must be 0 to {size - 1} of {size}, found {rank}"):
        World(rank, size)


def exchanged(world: World) -> tuple[Any, ...]:
    mine = {"rank": world.rank, "text": "ü" * world.rank}  # of another length on each rank
    numbers = torch.tensor([1.0, float(world.rank)])
    summed = world.all_reduce_sum(numbers)
    assert numbers.tolist() == [1.0, world.rank]
    flags = world.all_reduce_any(False, world.rank == world.size - 1)
    return world.all_gather(mine), world.broadcast(mine), flags, summed.tolist()


@pytest.mark.parametrize("size", [1, 3])
def test_every_rank_gets_what_all_give(size: int) -> None:
    found = {0: exchanged(World())} if size == 1 else in_ranks(exchanged, size)
    given = [{"rank": rank, "text": "ü" * rank} for rank in range(size)]
    expected = (given, given[0], [False, True], [size, sum(range(size))])
    assert found == dict.fromkeys(range(size), expected)
