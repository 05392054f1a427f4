"""What LFQ and BSQ share: codes are strings of bits, a bit is the sign of a channel, the codebook is implicit.

Entropies are in nats. Given a latent, the bits of its code are independent of each other, so that the entropy of a code
is the sum of its bits' entropies: exact, and linear in the number of bits. Over many latents bits do depend on each
other, and the entropy of the mean distribution would need all 2^bits codes. Bits are therefore put in groups; a group's
distribution is exact, groups count as independent. The sum over groups is an **upper bound** of the true entropy (joint
entropy never exceeds the sum of its parts'), tighter the larger the groups; groups of one bit are the approximation of
arXiv 2406.07548, section 3.2, and one group of all bits is exact.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers.base import DiscreteBottleneck, without_autocast

MAX_BITS = 62
"""More would not fit in a 64-bit index."""

_CHUNK = 16384  # positions whose tables of a group's codes exist at once


class BinaryBottleneck(DiscreteBottleneck):
    """Codes of signs: channel d of a code is ±`scale`, bit d of the index is set where it is positive."""

    start_std = 1.0
    """Signs do not depend on it; the commitment to ±1 and the temperatures of the entropies mean this size."""

    _basis: Tensor

    def __init__(self, num_bits: int, scale: float = 1.0, group_bits: int = 9):
        """
        Args:
            num_bits: bits of a code, one per latent channel.
            scale: absolute value of a code's channels.
            group_bits: bits of a group in the entropy over a batch, see the module's text.

        Raises:
            KinemaError: there are no bits or too many, groups are empty or too large to lay out, or codes are zero.
        """
        super().__init__()
        if not 1 <= num_bits <= MAX_BITS:
            raise KinemaError(f"`num_bits` (={num_bits}) must lie in 1..{MAX_BITS}")
        if not 1 <= group_bits <= 20:
            raise KinemaError(f"`group_bits` (={group_bits}) must lie in 1..20")
        check_positive("scale", scale)
        self.latent_channels = self.in_channels = num_bits
        self.codebook_size = 2**num_bits
        self.scale = scale
        self.group_bits = group_bits
        self.register_buffer("_basis", torch.tensor([2**d for d in range(num_bits)]), persistent=False)

    def signs(self, z: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The nearest code; zero counts as positive, so that there is no third value."""
        return torch.where(z >= 0, self.scale, -self.scale)

    def latents_to_indices(self, latents: Float[Tensor, "b z t h w"]) -> Int[Tensor, "b t h w"]:
        return ((latents >= 0) * self._basis.view(1, -1, 1, 1, 1)).sum(dim=1)

    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        self._check_indices(indices)
        bits = indices.unsqueeze(1) // self._basis.view(1, -1, 1, 1, 1) % 2
        return (bits * 2 - 1).float() * self.scale

    def entropy_loss(self, logits: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
        """E[H(p)] - H(E[p]), in nats: low when single latents are decided and codes are used alike.

        The expectation is over the positions that this process sees.

        Args:
            logits: log-odds of every bit being set.
        """
        positions = logits.movedim(1, -1).flatten(0, -2)
        # Autocast would multiply the mean probabilities, 2^-18 at times, in bfloat16.
        with without_autocast(logits):
            return code_entropy(positions).mean() - batch_entropy(positions, self.group_bits)


def check_positive(argument: str, value: float) -> float:
    """The value of an argument that must be a number above 0.

    Raises:
        KinemaError: it is not, or is infinite or no number.
    """
    if not 0.0 < value < math.inf:
        raise KinemaError(f"`{argument}` (={value}) must be above 0 and finite")
    return value


def code_entropy(logits: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Entropy of each position's code, the sum of its bits' (exact), in nats."""
    # H(σ(x)) = softplus(x) - x σ(x), which is symmetric, and exact where log σ(x) would underflow.
    magnitude = logits.abs()
    return (torch.nn.functional.softplus(-magnitude) + magnitude * torch.sigmoid(-magnitude)).sum(-1)


def batch_entropy(logits: Float[Tensor, "n d"], group_bits: int) -> Float[Tensor, ""]:
    """Upper bound of the entropy of the mean code distribution, exact within groups of bits, in nats.

    A position's distribution over the codes of a group is the outer product of those over its two halves; their mean
    over positions is one matrix product. Time and memory are those of n × 2^(group_bits / 2) tables.
    """
    return torch.stack([_entropy(_mean_distribution(part)) for part in logits.split(group_bits, dim=1)]).sum()


def _mean_distribution(logits: Float[Tensor, "n g"]) -> Float[Tensor, "p q"]:
    """Mean over positions of the distribution over 2^g codes, as a table over codes of the first and second half."""
    first, second = logits[:, : logits.shape[1] // 2], logits[:, logits.shape[1] // 2 :]
    chunks = zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
    tables = [_distribution(a).T @ _distribution(b) for a, b in chunks]
    return torch.stack(tables).sum(0) / len(logits)


def _distribution(logits: Float[Tensor, "n g"]) -> Float[Tensor, "n p"]:
    """Probabilities of all 2^g codes of independent bits."""
    table = logits.new_ones(len(logits), 1)
    for d in range(logits.shape[1]):
        column = logits[:, d : d + 1]
        table = torch.cat([table * torch.sigmoid(-column), table * torch.sigmoid(column)], dim=1)
    return table


def _entropy(probabilities: Tensor) -> Tensor:
    # Without the clamp the gradient at 0 is not finite.
    return -torch.xlogy(probabilities, probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).sum()
