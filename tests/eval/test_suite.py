"""What the suite leaves out, and why."""

from pathlib import Path

import pytest

from kinema.errors import KinemaError
from kinema.eval.fvd import find_protocol
from kinema.eval.metrics import GENERATION_METRICS
from kinema.eval.suite import fvd_choice, generation_choice


def have(name: str) -> Path:
    return Path(name)


def miss(name: str) -> Path:
    raise KinemaError(f"no weights {name!r}")


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({}, None),
        ({"num_frames": 16, "num_clips": 6, "num_reference": 6}, None),
        ({"num_frames": 15}, "`num_frames` (=15) must be at least 16"),
        ({"num_clips": 5}, "`clips` (=5 clips) must be at least 6"),
        ({"num_reference": 5}, "`reference` (=5 clips) must be at least 6"),
    ],
)
def test_stream_is_left_out_where_it_cannot_be_measured(numbers: dict[str, int], reason: str | None):
    choice = generation_choice(have, clip=True, reference=True, frame_network="x", **numbers)
    every = tuple(GENERATION_METRICS)
    streams = {name for name in every if name.startswith("stream")}
    assert len(streams) == 3
    if reason is None:
        assert choice.metrics == every
        assert not choice.missing
    else:
        assert set(every) - set(choice.metrics) == choice.missing.keys() == streams
        assert all(each.startswith(reason) for each in choice.missing.values())


def test_fvd_is_left_out_where_it_cannot_be_measured():
    protocol = find_protocol("styleganv")
    assert fvd_choice(have, protocol, num_frames=16, num_clips=[2, 2]).metrics == ("fvd",)
    assert fvd_choice(have, protocol, num_frames=None, num_clips=[2]).metrics == ("fvd",)
    for num_frames, counts, fetch, reason in (
        (15, [2, 2], have, "`num_frames` (=15) must be at least 16 for `styleganv`"),
        (16, [2, 1], have, "`clips` (=1 of them) must be at least 2"),
        (16, [2, 2], miss, "no weights 'i3d'"),
    ):
        choice = fvd_choice(fetch, protocol, num_frames=num_frames, num_clips=counts)
        assert (choice.metrics, choice.missing) == ((), {"fvd": reason})
