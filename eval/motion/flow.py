"""Optical flow of frames that are small."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kinema.errors import KinemaError

FLOW_SIDE = 256
"""Pixels that the short side of a frame has at least when RAFT looks at it. RAFT works at an eighth of the size: things
of 20 pixels that move in frames of 64 are not seen at all as they are, at twice the size sometimes, and well at 256."""

MOST_PIXELS = 2048 * 1152
"""Of a frame as RAFT sees it. It compares all places of an eighth of the size with each other, 14 bytes for each pair:
3 GB for 1280x720, 15 GB for 1920x1080."""

_AT_ONCE = 2**20  # pixels of the frames, as RAFT sees them, of which flows are computed together


class EnlargedFlow(nn.Module):
    """A flow network that sees small frames enlarged, and gives flow in their own pixels.

    Args:
        network: `n 3 h w` in [-1, 1] twice to the flow `n 2 h w` in pixels, x first.
        side: Frames whose short side is below are enlarged to it, bilinearly; others stay as they are.

    Raises:
        KinemaError: `side` < 1.
    """

    def __init__(self, network: nn.Module, side: int = FLOW_SIDE) -> None:
        super().__init__()
        if side < 1:
            raise KinemaError(f"`flow_side` (={side}) must be at least 1")
        self.network = network
        self.side = side

    @torch.no_grad()
    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2 h w"]:
        """Flow (x, y) in pixels of `a` and `b`: what is at `p` in `a` is at `p + flow[p]` in `b`.

        Raises:
            KinemaError: Frames are too large, or too long and narrow: they would be when they are enlarged.
        """
        height, width = a.shape[2:]
        factor = max(1.0, self.side / min(height, width))
        size = (round(height * factor), round(width * factor))
        if size[0] * size[1] > MOST_PIXELS:
            enlarged = f", enlarged to {size[0]}x{size[1]}," if factor > 1 else ""
            raise KinemaError(
                f"`clip` (of {height}x{width} pixels{enlarged}) must have at most {MOST_PIXELS:,} pixels for optical"
                " flow: measure at a smaller `resolution`"
            )
        at_once = max(1, _AT_ONCE // (size[0] * size[1]))
        if len(a) <= at_once:
            return self._flow(a, b, size)
        return torch.cat([self._flow(x, y, size) for x, y in zip(a.split(at_once), b.split(at_once), strict=True)])

    def _flow(
        self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], size: tuple[int, int]
    ) -> Float[Tensor, "n 2 h w"]:
        height, width = a.shape[2:]
        if size == (height, width):
            return self.network(a, b)
        large = (interpolate(x, size, mode="bilinear", align_corners=False) for x in (a, b))
        flow = interpolate(self.network(*large).float(), (height, width), mode="bilinear", antialias=True)
        return flow * flow.new_tensor([width / size[1], height / size[0]])[:, None, None]


def load_flow(path: Path | None = None, *, side: int = FLOW_SIDE) -> EnlargedFlow:
    """RAFT with its weights, for frames of any size, on the CPU.

    Args:
        path: A file of weights; None: the cache, or where `kinema weights` gets them.
        side: As of `EnlargedFlow`; less is faster, and misses small things.

    Raises:
        KinemaError: The weights cannot be had, or `side` < 1.
    """
    from kinema.eval.networks.raft import load_raft

    return EnlargedFlow(load_raft(path), side).eval()
