"""Which frames protocols take, and what they make of them, against the operations that published code makes."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from kinema.errors import KinemaError
from kinema.eval.fvd import PROTOCOLS, Protocol, Resize


def test_names_are_keys_and_sources_are_named():
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert len(protocol.source) > 20
        assert protocol.as_dict()["changed"] == []
        json.dumps(protocol.as_dict())
    assert {"styleganv", "vidtok", "cd-fvd", "videogpt"} <= PROTOCOLS.keys()


@given(
    num_frames=st.integers(9, 20),
    stride=st.integers(1, 4),
    clips=st.integers(1, 3),
    position=st.sampled_from(["first", "center", "random", "consecutive"]),
    extra=st.integers(0, 40),
)
def test_windows_are_inside_and_evenly_spaced(num_frames, stride, clips, position, extra):
    protocol = Protocol(name="x", num_frames=num_frames, stride=stride, clips_per_video=clips, position=position)
    length = protocol.frames_needed + extra
    windows = protocol.windows("name", length)
    assert [window.tolist() for window in windows] == [w.tolist() for w in protocol.windows("name", length)]
    span = num_frames * stride
    assert len(windows) == (min(clips, -(-length // span)) if position == "consecutive" else clips)
    for window in windows:
        assert len(window) == num_frames
        assert window.min() >= 0
        assert window.max() < length
        if position != "consecutive":
            assert (window.diff() == stride).all()
    assert protocol.windows("name", protocol.frames_needed)[0].tolist() == [i * stride for i in range(num_frames)]
    with pytest.raises(KinemaError, match=f"must have at least {protocol.frames_needed} frames"):
        protocol.windows("name", protocol.frames_needed - 1)


def test_positions():
    assert [w.tolist() for w in PROTOCOLS["vidtok"].windows("a", 36)] == [
        list(range(17)),
        list(range(17, 34)),
        [34] + [35] * 16,
    ]
    assert PROTOCOLS["common-metrics"].windows("a", 25)[0].tolist() == list(range(25))
    assert Protocol(name="x", num_frames=9, position="center").windows("a", 19)[0][0] == 5
    random = PROTOCOLS["styleganv"]
    starts = {int(random.windows(f"{index}", 116)[0][0]) for index in range(60)}
    assert min(starts) < 15
    assert max(starts) > 85
    # Pinned: a saved value must stay comparable.
    assert [int(random.windows(name, 116)[0][0]) for name in ("a", "b", "clip.mp4")] == PINNED


PINNED = [54, 87, 15]


def frames(height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 9, height, width), dtype=torch.uint8)


def test_stretch_without_antialiasing():
    video = frames(300, 400)
    expected = torch.stack([interpolate(clip.transpose(0, 1).float(), (224, 224), mode="bilinear") for clip in video])
    torch.testing.assert_close(PROTOCOLS["styleganv"].prepare(video), expected.transpose(1, 2) * 2 / 255 - 1)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (300, 224), (500, 301), (224, 224)])
def test_short_side_and_middle(height, width):
    video = frames(height, width)[:1]
    scale = 224 / min(height, width)
    size = (224, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), 224)
    resized = interpolate(video[0].transpose(0, 1).float() / 255, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = resized[:, :, top : top + 224, left : left + 224].transpose(0, 1) * 2 - 1
    torch.testing.assert_close(PROTOCOLS["videogpt"].prepare(video)[0], expected, rtol=1e-5, atol=1e-5)


def test_two_resizes_with_whole_levels_between():
    video = frames(300, 400)[:1]
    short = interpolate(video[0].transpose(0, 1).float() / 255, (256, 342), mode="bilinear", antialias=True)
    levels = (short[..., 43 : 43 + 256] * 255).byte().float()
    expected = interpolate(levels, (224, 224), mode="bilinear").transpose(0, 1) * 2 / 255 - 1
    difference = (PROTOCOLS["cd-fvd"].prepare(video)[0] - expected).abs()
    # 0..1 and 0..255 round a few values to either side of a level: one level is 2/255.
    assert difference.max() < 1.01 * 2 / 255
    assert (difference > 1e-4).float().mean() < 0.01


def test_settings_are_in_the_range_of_the_network():
    for protocol in PROTOCOLS.values():
        prepared = protocol.prepare(
            torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 1, 2).expand(1, 3, 9, 16, 2)
        )
        assert prepared.shape[3:] == (224, 224)
        assert prepared.min() == pytest.approx(-1)
        assert prepared.max() == pytest.approx(1)


def test_changes_are_told():
    changed = PROTOCOLS["styleganv"].changed(num_frames=32, resolution=128, clips_per_video=2)
    assert (changed.num_frames, changed.clips_per_video, changed.position) == (32, 2, "random")
    assert changed.dataset == Resize(size=128, mode="crop", antialias=True, round="nearest")
    assert changed.as_dict()["changed"] == ["dataset", "num_frames", "clips_per_video"]
    assert changed.key != PROTOCOLS["styleganv"].key
    several = Protocol(name="x").changed(clips_per_video=3)
    assert len({int(window[0]) for window in several.windows("a", 500)}) == 3
    assert PROTOCOLS["styleganv"].changed() == PROTOCOLS["styleganv"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 8}, r"`num_frames` \(=8\) must be at least 9"),
        ({"stride": 0}, r"`stride` \(=0\) must be >= 1"),
        ({"clips_per_video": 0}, r"`clips_per_video` \(=0\) must be >= 1"),
        ({"resolution": 0}, r"`resolution` \(=0\) must be >= 1"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(KinemaError, match=message):
        PROTOCOLS["styleganv"].changed(**values)


def test_large_frames_are_prepared_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    video = torch.randint(0, 256, (2, 3, 9, 20, 30), dtype=torch.uint8)
    protocol = PROTOCOLS["cd-fvd"].changed(resolution=16)
    whole = protocol.prepare(video)
    monkeypatch.setattr("kinema.eval.fvd.protocols._PIXELS_AT_ONCE", 2 * 2 * 20 * 30)
    assert torch.equal(protocol.prepare(video), whole)
    monkeypatch.setattr("kinema.eval.fvd.protocols._PIXELS_AT_ONCE", 1)
    assert torch.equal(protocol.prepare(video), whole)
