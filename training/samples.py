"""Sample clips of a training: a contact sheet and an animation, in the run's folder and in TensorBoard."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from kinema.files import atomic_path
from kinema.video import contact_sheet

_GAP = 4
_FPS = 8


@dataclass(frozen=True)
class Samples:
    """Clips to look at, frames ``(t, h, w, 3)`` uint8, each with its label."""

    clips: list[UInt8[Tensor, "_ _ _ 3"]]
    labels: list[str]


def save_samples(samples: Samples, folder: Path, step: int, writer: Any) -> None:
    """Writes ``step-N.png`` (a row a clip) and ``step-N.gif`` (all clips side by side), and both to TensorBoard.

    Args:
        samples: at least one clip.
        folder: made when missing.
        step: of the training.
        writer: TensorBoard's `SummaryWriter`.
    """
    sheet = contact_sheet(samples.clips, samples.labels)
    with atomic_path(folder / f"step-{step:08d}.png") as file:
        sheet.save(file)
    animation = animate(samples.clips)
    with atomic_path(folder / f"step-{step:08d}.gif") as file:
        file.write_bytes(animation)
    writer.add_image("samples/frames", pil_to_tensor(sheet), step)
    # TensorBoard plays a GIF that comes as an encoded image; `add_video` would want one more package for the same.
    image = Summary.Image(encoded_image_string=animation, colorspace=3)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag="samples/clips", image=image)]), step)


def animate(clips: list[UInt8[Tensor, "_ _ _ 3"]]) -> bytes:
    """A GIF of clips side by side, as long as the longest; a shorter one stops at its last frame."""
    length, height = max(len(clip) for clip in clips), max(clip.shape[1] for clip in clips)
    frames = []
    for number in range(length):
        row = Image.new("RGB", (sum(clip.shape[2] + _GAP for clip in clips) - _GAP, height), "white")
        left = 0
        for clip in clips:
            row.paste(Image.fromarray(clip[min(number, len(clip) - 1)].numpy()), (left, 0))
            left += clip.shape[2] + _GAP
        frames.append(row)
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=1000 // _FPS, loop=0)
    return data.getvalue()
