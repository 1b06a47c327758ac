"""Which of how many processes this is, as the environment says it."""

import pytest

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
