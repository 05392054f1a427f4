"""The sizes of a video transformer, and the FLOPs of one forward pass.

A multiplication and an addition count as two FLOPs, as in `kinema.flops`. Only blocks are counted: attention,
projections and feed-forward layers. Embeddings, modulation and the layers for text are left out: they run once, and
are small compared with the blocks at video lengths.
"""

from dataclasses import dataclass

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid


@dataclass(frozen=True)
class Architecture:
    """The sizes of a video transformer with equal blocks.

    Attributes:
        dim: width of all heads together.
        num_layers: number of blocks.
        num_heads: number of self-attention heads.
        ffn_dim: width of the feed-forward layers.
        text_tokens: number of text tokens, including padding.
        is_joint: whether text tokens pass through self-attention and all other layers together with video tokens;
            otherwise video tokens attend to text by cross-attention.
        ffn_matrices: number of matrices in a feed-forward layer: 2, or 3 if gated.
        patch: patch size in latent positions (t, h, w).
        compression: frames, pixel rows and pixel columns per latent position; None: depends on the tokenizer.
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
        """Return the FLOPs of self-attention in one block.

        Args:
            num_tokens: number of video tokens.
            tile_density: fraction of video token pairs that is computed. Pairs with text tokens are always computed.
        """
        text = self.text_tokens if self.is_joint else 0
        pairs = num_tokens**2 * tile_density + 2 * num_tokens * text + text**2
        return 4 * self.dim * pairs

    def other_flops(self, num_tokens: int) -> int:
        """Return the other FLOPs of one block: projections, feed-forward layers, cross-attention to text."""
        text = self.text_tokens
        rows = num_tokens + (text if self.is_joint else 0)
        flops = rows * (8 * self.dim**2 + 2 * self.ffn_matrices * self.dim * self.ffn_dim)
        if not self.is_joint:  # query and output projections of video, key and value projections of text
            flops += 4 * self.dim**2 * (num_tokens + text) + 4 * self.dim * num_tokens * text
        return flops

    def grid(self, num_frames: int, height: int, width: int) -> Grid:
        """Return the token grid of a clip; sizes are rounded up to whole tokens.

        Raises:
            KinemaError: a size is below 1, or `compression` is None.
        """
        for name, size in (("num_frames", num_frames), ("height", height), ("width", width)):
            if size < 1:
                raise KinemaError(f"`{name}` (={size}) must be at least 1")
        if self.compression is None:
            raise KinemaError(
                "`compression` (=None) must be known to count a clip's tokens; it depends on the tokenizer"
            )
        # The first frame is encoded as one latent step.
        steps = 1 + -(-(num_frames - 1) // self.compression[0])
        rows, columns = (-(-size // ratio) for size, ratio in zip((height, width), self.compression[1:], strict=True))
        t, h, w = (-(-size // length) for size, length in zip((steps, rows, columns), self.patch, strict=True))
        return Grid(t, h, w)
