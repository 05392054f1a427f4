"""What one forward of a video transformer costs, by the sizes of its blocks.

FLOPs count a multiplication and an addition as two, as `kinema.flops` does. Counted are the blocks: attention,
projections, feed-forward layers. Embeddings, modulation and the text's own layers are left out: they run once for all
blocks, and are small beside them at the lengths of video.
"""

from dataclasses import dataclass
from typing import Any

import torch

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid
from kinema.generation.transformer.layers import SwiGLU
from kinema.generation.transformer.presets import PRESETS


@dataclass(frozen=True)
class Architecture:
    """The sizes of a video transformer whose blocks are alike.

    Attributes:
        dim: width; its heads' widths together.
        num_layers: blocks.
        num_heads: heads of self-attention.
        ffn_dim: width of the feed-forward layers.
        text_tokens: tokens of a prompt, padding included.
        is_joint: whether text is part of self-attention, behind the video tokens, and goes through all other layers
            with them; otherwise video tokens look at it by cross-attention.
        ffn_matrices: matrices of a feed-forward layer: 2, or 3 where it is gated.
        patch: latent positions (t, h, w) of a token.
        compression: frames, and pixels along height and width, of a latent position; None: its tokenizer's.
    """

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    text_tokens: int
    is_joint: bool = False
    ffn_matrices: int = 2
    patch: tuple[int, int, int] = (1, 2, 2)
    compression: tuple[int, int, int] | None = (4, 8, 8)

    def attention_flops(self, num_tokens: int, tile_density: float = 1.0) -> float:
        """Self-attention of one block: scores, and sums of values.

        Args:
            num_tokens: video tokens.
            tile_density: share of the pairs of video tokens that is computed. Pairs with text all are.
        """
        text = self.text_tokens if self.is_joint else 0
        pairs = num_tokens**2 * tile_density + 2 * num_tokens * text + text**2
        return 4 * self.dim * pairs

    def other_flops(self, num_tokens: int) -> int:
        """All else of one block: projections, feed-forward layers, cross-attention to text."""
        text = self.text_tokens
        rows = num_tokens + (text if self.is_joint else 0)
        flops = rows * (8 * self.dim**2 + 2 * self.ffn_matrices * self.dim * self.ffn_dim)
        if not self.is_joint:  # queries and outputs of video tokens, keys and values of text
            flops += 4 * self.dim**2 * (num_tokens + text) + 4 * self.dim * num_tokens * text
        return flops

    def grid(self, num_frames: int, height: int, width: int) -> Grid:
        """The grid of tokens of a clip; what does not fill a token is padded.

        Raises:
            KinemaError: a size is below 1, or the compression is not known.
        """
        for name, size in (("num_frames", num_frames), ("height", height), ("width", width)):
            if size < 1:
                raise KinemaError(f"`{name}` (={size}) must be at least 1")
        if self.compression is None:
            raise KinemaError("`compression` (=None) must be known to count a clip's tokens: it is the tokenizer's")
        # The first frame is a latent step of its own.
        steps = 1 + -(-(num_frames - 1) // self.compression[0])
        rows, columns = (-(-size // ratio) for size, ratio in zip((height, width), self.compression[1:], strict=True))
        t, h, w = (-(-size // length) for size, length in zip((steps, rows, columns), self.patch, strict=True))
        return Grid(t, h, w)


def _preset(name: str) -> Architecture:
    """A size of kinema's `VideoTransformer`."""
    preset: dict[str, Any] = PRESETS[name]
    with torch.device("meta"):
        ffn_dim = SwiGLU(preset["dim"], preset.get("mlp_ratio", 4.0)).down.in_features
    return Architecture(
        dim=preset["dim"],
        num_layers=preset["num_layers"],
        num_heads=preset["num_heads"],
        ffn_dim=ffn_dim,
        text_tokens=preset["text_max_length"],
        ffn_matrices=3,
        patch=preset["patch_size"],
        compression=None,
    )


# fmt: off
ARCHITECTURES: dict[str, Architecture] = {
    #                               dim layers heads   ffn text
    "wan-1.3b":       Architecture(1536,   30,   12,  8960, 512),
    "wan-5b":         Architecture(3072,   30,   24, 14336, 512, compression=(4, 16, 16)),
    "wan-14b":        Architecture(5120,   40,   40, 13824, 512),
    "hunyuan-video":  Architecture(3072,   60,   24, 12288, 256, is_joint=True),
    "ltx-video":      Architecture(2048,   28,   32,  8192, 128, patch=(1, 1, 1), compression=(8, 32, 32)),
    "cogvideox-2b":   Architecture(1920,   30,   30,  7680, 226, is_joint=True),
    "cogvideox-5b":   Architecture(3072,   42,   48, 12288, 226, is_joint=True),
    **{name: _preset(name) for name in PRESETS},
}
# fmt: on
"""Sizes by name: published transformers (HunyuanVideo's 20 blocks of two streams and 40 of one cost the same), and the
presets of kinema's `VideoTransformer`."""


def find_architecture(name: str) -> Architecture:
    """The sizes of a model.

    Raises:
        KinemaError: the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise KinemaError(f"`model` (={name!r}) must be one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
