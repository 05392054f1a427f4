"""What the log says of the last steps."""

import pytest
import torch

from kinema.training import meter as meter_module
from kinema.training.meter import Meter


def test_means_leave_out_steps_that_were_not_taken(monkeypatch):
    clock = iter([0.0, 0.5, 2.0, 2.0, 2.0, 4.0, 10.0, 10.0])  # start, batch, end; again; means
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: next(clock))
    meter = Meter()
    for value, taken in ((3.0, 1.0), (torch.nan, 0.0)):
        meter.start()
        meter.got_batch()
        terms = {"loss": torch.tensor(value)} | ({"rare": torch.tensor(value)} if taken else {})
        meter.add(terms, torch.tensor(taken))
        meter.end(5)
    numbers = meter.means()
    assert numbers == {
        "loss": 3.0, "rare": 3.0, "clips_per_second": 10 / 4, "seconds_per_step": 2.0, "data_wait": 0.5 / 4,
    }  # fmt: skip


def test_a_term_that_no_step_had_is_left_out():
    meter = Meter()
    meter.start()
    meter.add({"loss": torch.tensor(torch.inf)}, torch.zeros(()))
    meter.end(1)
    assert "loss" not in meter.means()
    meter.start()
    meter.end(1)
    assert meter.means()["seconds_per_step"] == pytest.approx(0, abs=1)
