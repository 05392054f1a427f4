"""Frame metrics: how a clip differs from its reference, frame by frame or as a set of frames.

`METRICS` has those of `kinema.eval.metrics`. Importing it imports no torch.
"""

from kinema.eval.frames.interface import FrameMeasure, SetMeasure
from kinema.eval.metrics import FRAME_METRICS as METRICS

DEFAULT_METRICS = ("psnr", "ssim", "flicker")
"""Those that need neither weights nor another program, and take frames of any size."""

__all__ = ["DEFAULT_METRICS", "METRICS", "FrameMeasure", "SetMeasure"]
