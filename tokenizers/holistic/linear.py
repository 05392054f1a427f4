"""The linear path of the holistic tokenizer: a transform code with its coefficients in the order of their energy.

Blocks of pixels go through a KLT, each of its channels through a cosine transform over the grid of blocks, and the
coefficients that move the pixels most on average come first. Any first few of them decode to the best that they can
say, which is what ordered tokens are meant to do: the untrained tokenizer starts there.
"""

from collections.abc import Iterable, Sequence
from math import ceil, prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.klt import fit_klt
from kinema.tokenizers.causal_vae.networks import Decoder, Encoder, Ratio
from kinema.tokenizers.causal_vae.regression import quantised_rows
from kinema.tokenizers.quantizers.base import Bottleneck
from kinema.tokenizers.quantizers.kl import KL
from kinema.tokenizers.transformer.networks import to_blocks


def cosine_basis(size: int) -> Float[Tensor, "k x"]:
    """The orthonormal cosine transform (DCT-II), one row per frequency."""
    k, x = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = (torch.pi * k * (2 * x + 1) / (2 * size)).cos() * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis


def cosine_transform(x: Float[Tensor, "g t i j r"], inverse: bool = False) -> Float[Tensor, "g t i j r"]:
    """The cosine transform along time, rows and columns of a grid, or its inverse."""
    for axis in (1, 2, 3):
        basis = cosine_basis(x.shape[axis]).to(x.device, x.dtype)
        x = (x.movedim(axis, -1) @ (basis if inverse else basis.T)).movedim(-1, axis)
    return x


class SpectralPath(nn.Module):
    """What encoder and decoder have in common: the blocks' transform, and which coefficients are kept in what scale.

    Args:
        in_features, out_features: of the blocks' transform; the smaller one is its rank.
        grid: blocks of a window.
        count: coefficients that are kept.
    """

    order: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, grid: tuple[int, int, int], count: int):
        super().__init__()
        self.grid = grid
        self.transform = nn.Linear(in_features, out_features)
        self.register_buffer("order", torch.arange(count))
        self.register_buffer("scale", torch.ones(count))


class SpectralEncoder(SpectralPath):
    """Blocks to coefficients, each of about the size that the bottleneck starts with after `fit`."""

    def forward(self, blocks: Float[Tensor, "g t i j d"]) -> Float[Tensor, "g m"]:
        return cosine_transform(self.transform(blocks)).flatten(1)[:, self.order] / self.scale


class SpectralDecoder(SpectralPath):
    """The first few coefficients to blocks."""

    def forward(self, values: Float[Tensor, "g m"]) -> Float[Tensor, "g t i j d"]:
        count, rank = values.shape[1], self.transform.in_features
        spectrum = values.new_zeros(len(values), prod(self.grid) * rank)
        spectrum = spectrum.index_copy(1, self.order[:count], values * self.scale[:count])
        return self.transform(cosine_transform(spectrum.unflatten(1, (*self.grid, rank)), inverse=True))


def spectral_rank(count: int, grid: Sequence[int], numbers: int) -> int:
    """Channels of the blocks' transform: twice what `count` coefficients need, so that there is a choice.

    Raises:
        KinemaError: there are fewer numbers in a window than coefficients.
    """
    if count > prod(grid) * numbers:
        raise KinemaError(f"`num_tokens` · `latent_channels` (={count}) must be at most {prod(grid) * numbers}")
    return min(2 * ceil(count / prod(grid)), numbers)


def fit(
    encoder: SpectralEncoder,
    decoder: SpectralDecoder,
    quantizer: Bottleneck,
    ratio: Ratio,
    windows: Iterable[Float[Tensor, "g 3 f s s"]],
) -> None:
    """Sets both paths to the transform code of these windows.

    Where the bottleneck has a `start_std`, coefficients get that size instead of 1, and the decoder's scale of each is
    the least squares gain from its codes: like the order of the coefficients, it holds for any first few of them.

    Args:
        encoder, decoder: Overwritten.
        quantizer: The bottleneck between them.
        ratio: Of a block, after the Haar level.
        windows: As of `Windows.split`.

    Raises:
        KinemaError: There is no window.
    """
    windows = list(windows)
    rank = encoder.transform.out_features
    device = encoder.transform.weight.device
    # The KLT is that of a convolutional tokenizer of the same block and channels, which is borrowed for it.
    one, two = Encoder(3, rank, rank, (1, 1), (0, 0), [ratio]), Decoder(3, rank, (1, 1), (0, 0), [ratio])
    fit_klt(one.to(device), two.to(device), KL(rank), windows)
    encoder.transform.load_state_dict(one.linear_path.state_dict())
    decoder.transform.load_state_dict(two.linear_path.state_dict())
    squares = [
        cosine_transform(encoder.transform(to_blocks(part, ratio, first=True))).double().square().sum(0)
        for part in windows
    ]
    power = torch.stack(squares).sum(0) / sum(len(part) for part in windows)
    energy = power * decoder.transform.weight.double().square().sum(0)  # a channel's weight in pixels
    order = energy.flatten().argsort(descending=True, stable=True)[: len(encoder.order)]
    for path in (encoder, decoder):
        path.order.copy_(order)
        path.scale.copy_(power.flatten()[order].sqrt().clamp_min(1e-3))
    if quantizer.start_std is not None:
        encoder.scale /= quantizer.start_std
        decoder.scale *= _gains(encoder, quantizer, ratio, windows) / quantizer.start_std


def _gains(
    encoder: SpectralEncoder, quantizer: Bottleneck, ratio: Ratio, windows: Iterable[Tensor]
) -> Float[Tensor, " m"]:
    """What each coefficient's code is multiplied by to come nearest to the coefficient, in the mean over windows."""
    products = squares = torch.zeros_like(encoder.scale, dtype=torch.float64)
    for part in windows:
        values = encoder(to_blocks(part, ratio, first=True))
        codes = quantised_rows(quantizer, values.reshape(-1, quantizer.latent_channels)).view_as(values).double()
        products, squares = products + (values * codes).sum(0), squares + codes.square().sum(0)
    # A coefficient whose codes are all 0 is not decoded, whatever its gain.
    return torch.where(squares > 0, products / squares, 1.0).to(encoder.scale)
