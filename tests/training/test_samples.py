"""Sample clips: what is written, and that the animation plays every frame."""

import numpy as np
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import full, uint8
from torch.utils.tensorboard.writer import SummaryWriter

from kinema.training.samples import Samples, animate, save_samples


def grey(frames: int, height: int, width: int, first: int):
    clip = full((frames, height, width, 3), 0, dtype=uint8)
    for number in range(frames):
        clip[number] = first + 20 * number
    return clip


def test_animation_plays_all_clips_and_holds_the_last_frame_of_short_ones(tmp_path):
    (tmp_path / "a.gif").write_bytes(animate([grey(4, 8, 8, 10), grey(2, 6, 8, 100)]))
    with Image.open(tmp_path / "a.gif") as image:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    assert [frame.size for frame in frames] == [(20, 8)] * 4
    assert [np.asarray(frame)[2, 2, 0] for frame in frames] == [10, 30, 50, 70]
    assert [np.asarray(frame)[2, 14, 0] for frame in frames] == [100, 120, 120, 120]


def test_samples_are_in_the_folder_and_in_tensorboard(tmp_path):
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        save_samples(Samples([grey(3, 8, 8, 10)], ["a clip"]), tmp_path / "samples", 7, writer)
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"step-00000007.png", "step-00000007.gif"}
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert events.Tags()["images"] == ["samples/frames", "samples/clips"]
    (clip,) = events.Images("samples/clips")
    assert clip.step == 7
    assert clip.encoded_image_string == (tmp_path / "samples" / "step-00000007.gif").read_bytes()
