"""Linear least squares over batches, in float64, of what a bottleneck passes on."""

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.tokenizers.quantizers.base import Bottleneck


def quantised_rows(quantizer: Bottleneck, rows: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
    """What the decoder gets where the encoder gives these locations (and zero for all else); no codebook moves."""
    rest = rows.new_zeros(len(rows), quantizer.in_channels - quantizer.latent_channels)
    training = quantizer.training
    quantizer.eval()
    latents = quantizer(torch.cat([rows, rest], dim=1).T[None, :, :, None, None]).mode
    quantizer.train(training)
    return latents[0, :, :, 0, 0].T


class LeastSquares:
    """The affine map from x to y with the least squared error over all pairs added, from their moments alone."""

    def __init__(self) -> None:
        self._inner = self._outer = torch.zeros((), dtype=torch.float64)

    def add(self, x: Float[Tensor, "n x"], y: Float[Tensor, "n y"]) -> None:
        """Counts some pairs."""
        x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], dim=1)
        self._inner = self._inner.to(x.device) + x.T @ x
        self._outer = self._outer.to(x.device) + x.T @ y.double()

    def solve(self) -> tuple[Float[Tensor, "y x"], Float[Tensor, " y"]]:
        """Weight and bias, as an `nn.Linear` has them; the smallest ones where x has fewer dimensions than numbers."""
        # The pseudo-inverse: a channel that never changes is a multiple of the constant.
        solution = torch.linalg.pinv(self._inner, hermitian=True, rtol=1e-10) @ self._outer
        return solution[:-1].T, solution[-1]
