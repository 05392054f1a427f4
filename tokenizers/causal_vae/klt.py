"""Karhunen-Loève transform of latent blocks: the best linear code of a given size, and where training starts."""

from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.layers import fold, haar_fold
from kinema.tokenizers.causal_vae.networks import HAAR_RATIO, BlockCoder
from kinema.tokenizers.causal_vae.regression import LeastSquares, quantised_rows
from kinema.tokenizers.interface import pad_to_grid
from kinema.tokenizers.quantizers.base import Bottleneck

LARGEST_COVARIANCE = 8192
"""Blocks of more numbers than this (of 8x32x32: 24,576) get their components from a sample."""
MOST_SAMPLES = 4096
NO_COMPONENT = 1e-9
"""Part of the largest variance below which a component is round-off."""


def fit_klt(
    encoder: BlockCoder,
    decoder: BlockCoder,
    quantizer: Bottleneck,
    videos: Iterable[Float[Tensor, "b 3 t h w"]],
) -> None:
    """Makes the linear paths project on the leading principal components of one latent step's block, whitened.

    Where the bottleneck has a `start_std` ("fsq", "lfq", "bsq"), its input gets that standard deviation instead of 1,
    and the decoder's path is the least squares prediction of the blocks from the quantised latents.

    Args:
        encoder, decoder: their `linear_path` is overwritten.
        quantizer: the bottleneck between them.
        videos: clips, values in [-1, 1]; gone through twice where there is a `start_std` (an iterator is kept).

    Raises:
        KinemaError: there is no clip, or of blocks above `LARGEST_COVARIANCE` there are too few.
    """
    z = encoder.linear_path.out_features
    if quantizer.start_std is not None and iter(videos) is videos:
        videos = list(videos)  # they are needed twice
    blocks = (_blocks(video, encoder) for video in videos)
    size = encoder.linear_path.in_features
    mean, eigenvalues, basis = _components(blocks, z) if size <= LARGEST_COVARIANCE else _sampled_components(blocks, z)
    scale = eigenvalues.clamp_min(1e-8).sqrt().unsqueeze(1)
    encoder.linear_path.weight.copy_(basis / scale)
    encoder.linear_path.bias.copy_(-(basis / scale) @ mean)
    decoder.linear_path.weight.copy_((basis * scale).T)
    decoder.linear_path.bias.copy_(mean)
    if quantizer.start_std is not None:
        for parameter in encoder.linear_path.parameters():
            parameter.mul_(quantizer.start_std)
        _fit_decoder(encoder, decoder, quantizer, videos)


def _fit_decoder(encoder: BlockCoder, decoder: BlockCoder, quantizer: Bottleneck, videos: Iterable[Tensor]) -> None:
    fit = LeastSquares()
    for video in videos:
        blocks = _blocks(video, encoder)
        fit.add(quantised_rows(quantizer, encoder.linear_path(blocks)), blocks)
    weight, bias = fit.solve()
    decoder.linear_path.weight.copy_(weight)
    decoder.linear_path.bias.copy_(bias)


def _blocks(video: Tensor, encoder: BlockCoder) -> Float[Tensor, "n d"]:
    t, h, _ = (haar * deep for haar, deep in zip(HAAR_RATIO, encoder.block_ratio, strict=True))
    whole = pad_to_grid(video.float(), t, h)
    return rearrange(fold(haar_fold(whole), encoder.block_ratio), "b t h w c -> (b t h w) c")


Components = tuple[Float[Tensor, " d"], Float[Tensor, " z"], Float[Tensor, "z d"]]
"""Mean, largest eigenvalues of the covariance, and their eigenvectors as rows."""


def _components(blocks: Iterable[Float[Tensor, "n d"]], z: int) -> Components:
    """From the covariance of all blocks."""
    moment, mean, count = torch.zeros(()), torch.zeros(()), 0
    for part in blocks:
        part = part.double()
        moment, mean, count = moment + part.T @ part, mean + part.sum(0), count + len(part)
    if count == 0:
        raise KinemaError("`videos` (=no clip) must hold at least one clip")
    mean = mean / count
    eigenvalues, eigenvectors = torch.linalg.eigh(moment / count - torch.outer(mean, mean))
    eigenvalues, basis = eigenvalues[-z:].flip(0), eigenvectors[:, -z:].flip(1).T.contiguous()
    # Clips of fewer components than channels (still ones) leave rows of noise: they get no direction.
    basis[eigenvalues < NO_COMPONENT * eigenvalues[0].clamp_min(1e-12)] = 0
    return mean, eigenvalues, basis


def _sampled_components(blocks: Iterable[Float[Tensor, "n d"]], z: int) -> Components:
    """From a sample of the blocks, by their products with each other: there are fewer blocks than numbers in one."""
    kept = torch.zeros(0)
    generator = torch.Generator().manual_seed(0)
    for part in blocks:
        kept = part.cpu() if not len(kept) else torch.cat([kept, part.cpu()])
        if len(kept) > MOST_SAMPLES:
            # Which of the blocks so far are kept is not quite uniform over the clips; they come in random order anyway.
            kept = kept[torch.randperm(len(kept), generator=generator)[:MOST_SAMPLES]]
    if len(kept) <= z:
        raise KinemaError(f"`videos` (of {len(kept)} blocks) must hold more blocks than the {z} latent channels")
    mean = kept.mean(0)
    centred = kept - mean
    eigenvalues, eigenvectors = torch.linalg.eigh((centred @ centred.T).double() / len(kept))
    eigenvalues, eigenvectors = eigenvalues[-z:].flip(0), eigenvectors[:, -z:].flip(1).float()
    length = (eigenvalues.clamp_min(0) * len(kept)).sqrt().float().clamp_min(1e-6)
    basis = eigenvectors.T @ centred / length.unsqueeze(1)
    basis[eigenvalues < NO_COMPONENT * eigenvalues[0].clamp_min(1e-12)] = 0
    return mean.double(), eigenvalues, basis.double()
