"""Lookup-free quantisation (MAGVIT-v2, Yu et al., arXiv 2310.05737, section 3.1): the code is the signs."""

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.tokenizers.quantizers.base import BottleneckOutput
from kinema.tokenizers.quantizers.binary import BinaryBottleneck, check_positive


class LFQ(BinaryBottleneck):
    """Quantises every channel to ±1 by its sign; gradients pass straight through.

    Losses:
        entropy: E[H(p)] - H(E[p]) in nats (arXiv 2310.05737, eq. 5) of the soft assignment
            p(c | z) ∝ exp(-|z - c|² / temperature) over all 2^bits codes. The first term is exact, the second one an
            upper bound (see `binary`), so that the loss is a lower bound of the true one.
        commitment: mean of (z - code)², which keeps channels near ±1.
    """

    def __init__(self, num_bits: int, temperature: float = 1.0, group_bits: int = 9):
        """
        Args:
            num_bits: bits of a code, one per channel.
            temperature: of the soft assignment; at 1 a channel on its code has its bit with probability 0.982.
            group_bits: bits whose joint distribution over a batch is exact.

        Raises:
            KinemaError: an argument lies outside its range.
        """
        super().__init__(num_bits, scale=1.0, group_bits=group_bits)
        self.temperature = check_positive("temperature", temperature)

    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        z = h.float()
        code = self.signs(z)
        latents = z + (code - z).detach()
        # |z - 1|² - |z + 1|² = -4 z: the bits' log-odds, independent of each other.
        losses = {
            "entropy": self.entropy_loss(4.0 * z / self.temperature),
            "commitment": (z - code).square().mean(),
        }
        return BottleneckOutput(latents=latents, mode=latents, indices=self.latents_to_indices(z), losses=losses)
