"""Binary spherical quantisation (Zhao, Xiong and Krähenbühl, arXiv 2406.07548): signs on the unit sphere."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from kinema.tokenizers.quantizers.base import BottleneckOutput
from kinema.tokenizers.quantizers.binary import BinaryBottleneck, check_positive


class BSQ(BinaryBottleneck):
    """Projects on the unit sphere, u = z / |z|, and takes the nearest corner of a cube in it, sign(u) / √bits.

    Gradients pass straight through the rounding and through the projection. The quantisation error is bounded, so that
    there is no commitment loss.

    Losses:
        entropy: E[H(q)] - H(E[q]) in nats of the soft quantisation q(c | u) ∝ exp(τ c·u) (arXiv 2406.07548, section
            3.2). Its bits are independent given u, which makes the first term exact. For the second one the paper takes
            all bits as independent, an upper bound; here bits of a group are exact, a tighter one (see `binary`), and
            `group_bits=1` is the paper's. The loss is a lower bound of the true one.
    """

    def __init__(self, num_bits: int, inverse_temperature: float | None = None, group_bits: int = 9):
        """
        Args:
            num_bits: bits of a code, one per channel.
            inverse_temperature: τ of the soft quantisation. The default, 2·`num_bits`, gives each bit of a u that lies
                on a code the probability 0.982 whatever the number of bits.
            group_bits: bits whose joint distribution over a batch is exact.

        Raises:
            KinemaError: an argument lies outside its range.
        """
        super().__init__(num_bits, scale=max(num_bits, 1) ** -0.5, group_bits=group_bits)
        if inverse_temperature is None:
            inverse_temperature = 2.0 * num_bits
        self.inverse_temperature = check_positive("inverse_temperature", inverse_temperature)

    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        u = normalize(h.float(), dim=1)
        code = self.signs(u)
        latents = u + (code - u).detach()
        # c takes ±scale in each channel, independently: the log-odds of a bit are τ·u·(2 scale).
        losses = {"entropy": self.entropy_loss(2.0 * self.inverse_temperature * self.scale * u)}
        return BottleneckOutput(latents=latents, mode=latents, indices=self.latents_to_indices(u), losses=losses)
