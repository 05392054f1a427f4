"""The pass through I3D: windows of clips in, features out, a batch at a time.

Shapes: windows `b 3 t h w`, features `b d`, d = 400.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips import LongClip, pick_windows
from kinema.eval.fvd.protocols import Protocol, find_protocol
from kinema.eval.networks.i3d import I3D, load_i3d

# Clips and windows of one list differ in size, so that no one shape can stand here.
NamedClips = Iterable[tuple[str, Tensor | LongClip]]
"""Names and frames, `t h w 3` in uint8."""

NamedWindow = tuple[str, Tensor]
"""Name of the clip and a window of it, `3 t h w`, uint8 or floats in [-1, 1]."""


class VideoFeatures:
    """I3D features of clips under a protocol.

    What makes it faster than a clip at a time through a plain network: batches, channels-last activations, batch norms
    folded into convolutions, one convolution for the branches that share an input, pools one axis at a time.

    Float32 throughout, without TF32: no faster format has been shown to move the value by less than 0.1 %.

    Args:
        protocol: A protocol, or its name.
        weights: A file of I3D weights; None fetches them (see `kinema.eval.weights`).
        device: Where the network runs.
        batch_size: Windows a pass; the features do not depend on it but for round-off.
        network: A network to use instead of loading one.

    Raises:
        KinemaError: No such protocol, `batch_size` < 1, or no weights.
    """

    def __init__(
        self,
        protocol: str | Protocol = "styleganv",
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 4,
        network: I3D | None = None,
    ) -> None:
        if batch_size < 1:
            raise KinemaError(f"`batch_size` (={batch_size}) must be >= 1")
        self.protocol = find_protocol(protocol)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.network = (network or load_i3d(weights)).to(self.device)

    @torch.no_grad()
    def __call__(self, windows: UInt8[Tensor, "b 3 t h w"] | Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
        """Features of windows of one size, float32 on `device`.

        Args:
            windows: uint8 0..255, or floats in [-1, 1].

        Raises:
            KinemaError: Fewer than 9 frames, or a float that is NaN or out of range.
        """
        parts = [self._pass([self._prepare(part)]) for part in windows.split(self.batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, self.network.num_features, device=self.device)

    @torch.no_grad()
    def stream(self, windows: Iterable[NamedWindow]) -> Iterator[tuple[list[NamedWindow], Float[Tensor, "b d"]]]:
        """Features of windows that come one by one, of any sizes, a batch at a time with what they are of."""
        batch: list[NamedWindow] = []
        for window in windows:
            # A batch has one number of frames; sizes are equal after the resize.
            if batch and batch[0][1].shape[1] != window[1].shape[1]:
                yield batch, self._pass([self._prepare(clip[None]) for _, clip in batch])
                batch = []
            batch.append(window)
            if len(batch) == self.batch_size:
                yield batch, self._pass([self._prepare(clip[None]) for _, clip in batch])
                batch = []
        if batch:
            yield batch, self._pass([self._prepare(clip[None]) for _, clip in batch])

    def windows(self, clips: NamedClips) -> Iterator[NamedWindow]:
        """The windows that the protocol takes of each clip, under the clip's name.

        Raises:
            KinemaError: While iterating: a clip is too short.
        """
        for name, frames in clips:
            for window in pick_windows(frames, self.protocol.windows(name, len(frames))):
                yield name, rearrange(window, "t h w c -> c t h w")

    def _prepare(self, windows: Tensor) -> Float[Tensor, "b 3 t s s"]:
        return self.protocol.prepare(windows.to(self.device))

    def _pass(self, prepared: list[Tensor]) -> Float[Tensor, "b d"]:
        # TF32 is what torch's convolutions use on a GPU unless told: ten bits are too few here.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.network(torch.cat(prepared)).float()
