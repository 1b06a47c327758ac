"""How refusals are to read."""

from collections.abc import Callable
from typing import Any

import pytest

from logitcache.errors import LogitCacheError


def refused(kind: type[LogitCacheError], call: Callable[[], Any], *words: str) -> None:
    """The call is refused in one line that holds these words."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    message.encode()  # any terminal takes it
    for word in words:
        assert word in message
