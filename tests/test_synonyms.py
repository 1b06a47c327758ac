"""Other words for our names, and misspelt ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from logitcache.errors import UnknownNameError
from logitcache.losses.objective import LOSSES
from logitcache.synonyms import SYNONYMS, find_meant
from logitcache.train.config import TrainConfig
from logitcache_cli.main import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
NAMES = {flag.lstrip("-") for one in COMMANDS.values() for option in one.params for flag in option.opts}
NAMES |= {*COMMANDS, *LOSSES, "ce"}


def test_every_name_of_the_table_is_one_of_ours() -> None:
    assert set(SYNONYMS) <= NAMES


def test_a_word_of_the_table_is_meant_wherever_its_name_is_known() -> None:
    for name, words in SYNONYMS.items():
        for word in words.split():
            assert name in find_meant(word, [name, "something-else"])
            assert name not in find_meant(word, ["something-else"])


@given(st.sampled_from(sorted(NAMES)), st.integers(0, 20), st.booleans())
def test_a_letter_that_is_lacking_leaves_a_long_name_known(name: str, at: int, underscored: bool) -> None:
    at %= len(name)
    misspelt = name[:at] + name[at + 1 :]
    found = find_meant(misspelt.replace("-", "_") if underscored else misspelt, NAMES)
    assert len(name) < 6 or name in found or misspelt in " ".join([*SYNONYMS.values(), *NAMES]).split()


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=5))
def test_only_known_names_are_meant_each_once(name: str, known: list[str]) -> None:
    found = find_meant(name, known)
    assert set(found) <= set(known)
    assert len(found) == len(set(found))


def test_settings_are_known_by_the_words_of_the_field() -> None:
    for word, meant in {"learning_rate": "lr", "wd": "weight_decay", "scheduler": "schedule"}.items():
        with pytest.raises(UnknownNameError, match=f"did you mean {meant}\\?"):
            TrainConfig().replace({word: 1})
