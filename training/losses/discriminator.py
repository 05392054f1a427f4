"""A discriminator of patches in space and time: every logit judges one neighbourhood of a clip.

PatchGAN (arXiv 1611.07004, section 3.2.2) with 3D convolutions. Nothing in it mixes the clips of a batch, so that real
and reconstructed clips may pass together, and an image is a one-frame clip.
"""

from itertools import pairwise
from math import gcd

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import KinemaError

_SLOPE = 0.2  # of leaky ReLU for negative values, as in arXiv 1511.06434


class PatchDiscriminator(nn.Module):
    """Clips to logits; a logit above 0 means "real".

    Each level halves height and width; all but the first halve time too. With three levels a logit sees 54 x 54 pixels
    of 25 frames.

    Args:
        width: channels of the first level; doubled at each further one, up to eight times.
        levels: strided convolutions, at least 1.

    Raises:
        KinemaError: `width` or `levels` is below 1.
    """

    def __init__(self, width: int = 32, levels: int = 3) -> None:
        super().__init__()
        for name, value in (("width", width), ("levels", levels)):
            if value < 1:
                raise KinemaError(f"`{name}` (={value}) must be at least 1")
        self.levels = levels
        widths = [width * min(2**level, 8) for level in range(levels + 1)]
        layers: list[nn.Module] = [_down(3, widths[0], time=1), nn.LeakyReLU(_SLOPE)]
        for before, after in pairwise(widths[:-1]):
            layers += [_down(before, after, time=2), _norm(after), nn.LeakyReLU(_SLOPE)]
        layers += [_PaddedConv3d(widths[-2], widths[-1], 3, padding=1), _norm(widths[-1]), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, _PaddedConv3d(widths[-1], 1, 3, padding=1))

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 u i j"]:
        """Logits of patches, float32.

        Args:
            video: pixels in [-1, 1]; any number of frames, height and width at least `2 ** levels`.

        Raises:
            KinemaError: the frames are too small.
        """
        least = 2**self.levels
        if min(video.shape[-2:]) < least:
            size = f"{video.shape[-2]}x{video.shape[-1]}"
            raise KinemaError(f"`video` (of {size} pixels) must be at least {least}x{least} for {self.levels} levels")
        return self.layers(video).float()


class _PaddedConv3d(nn.Conv3d):
    """A convolution over three frames with a padding of 1, without two errors of oneDNN on CPUs with AMX.

    Its bfloat16 kernels return uninitialised memory for one frame padded in time, and wrong sums where a stride leaves
    a width of 1 (pytorch/pytorch#169688). One frame meets the middle weights alone, so a 2D convolution gives the same
    for a third of the work; the narrow case is computed in float32.
    """

    def forward(self, input: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d u i j"]:
        columns = (input.shape[-1] + 2 - self.kernel_size[-1]) // self.stride[-1] + 1
        if input.device.type == "cpu" and columns == 1:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype))
        if input.shape[2] > 1:
            return super().forward(input)
        weight = self.weight[:, :, 1]
        return F.conv2d(input[:, :, 0], weight, self.bias, self.stride[1:], padding=1).unsqueeze(2)


def _down(in_channels: int, out_channels: int, time: int) -> nn.Conv3d:
    return _PaddedConv3d(in_channels, out_channels, (3, 4, 4), stride=(time, 2, 2), padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    """Statistics of one clip; batch statistics would tell real batches from reconstructed ones."""
    return nn.GroupNorm(gcd(channels, 8), channels)


@torch.no_grad()
def accuracy(real: Float[Tensor, "*_"], fake: Float[Tensor, "*_"]) -> Float[Tensor, ""]:
    """Share of the logits that are right; 0.5 is chance."""
    return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
