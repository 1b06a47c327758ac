"""The sums of an epoch's losses: exact to float64 however long it is, and the same after a checkpoint."""

import io

import pytest
import torch

from logitcache.errors import NonFiniteError
from logitcache.train.epoch_meter import EpochMeter


def test_many_steps_lose_no_digits() -> None:
    meter, small, large = EpochMeter(0, torch.device("cpu")), torch.tensor(0.1), torch.tensor(1e6)
    meter.add({"loss": large}, 1000)  # float32 has no room for 0.1 beside 1e9
    for _ in range(2000):
        meter.add({"loss": small, "kd": small.bfloat16()}, 1)
    expected = (1e9 + 2000 * float(small)) / 3000
    assert meter.means()["loss"] == pytest.approx(expected, rel=1e-12)
    assert meter.means()["kd"] == pytest.approx(2000 * float(small.bfloat16()) / 3000, rel=1e-12)


def test_what_is_added_stays_as_it_is_and_a_checkpoint_keeps_every_digit() -> None:
    meter, loss = EpochMeter(0, torch.device("cpu")), torch.tensor(1 / 3)
    for _ in range(5):
        meter.add({"loss": loss}, 7)
    assert loss == torch.tensor(1 / 3)
    file = io.BytesIO()
    torch.save(meter.state_dict(), file)
    file.seek(0)
    again = EpochMeter(0, torch.device("cpu"))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.means() == meter.means()


@pytest.mark.parametrize(("epoch", "step", "told"), [(0, 0, "look here"), (0, 3, "slower"), (1, 0, "slower")])
def test_a_rate_is_not_blamed_for_the_first_loss(epoch: int, step: int, told: str) -> None:
    meter = EpochMeter(epoch, torch.device("cpu"))
    meter.step = step
    meter.add({"loss": torch.tensor(torch.nan)}, 4)
    with pytest.raises(NonFiniteError, match=f"step {step + 1};.*{told}$"):
        meter.require_finite(advice="slower", at_once="look here")
