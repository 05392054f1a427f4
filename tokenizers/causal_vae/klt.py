"""Karhunen-Loève transform of latent blocks: the best linear code of a given size, and where training starts."""

from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.layers import fold, haar_fold
from kinema.tokenizers.causal_vae.networks import Decoder, Encoder


def fit_klt(encoder: Encoder, decoder: Decoder, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
    """Makes the linear paths project on the leading principal components of one latent step's block, whitened.

    Args:
        encoder, decoder: their `linear_path` is overwritten.
        videos: clips with whole latent steps, values in [-1, 1].

    Raises:
        KinemaError: there is no clip.
    """
    moment, mean, count = torch.zeros(()), torch.zeros(()), 0
    for video in videos:
        blocks = rearrange(fold(haar_fold(video.float()), encoder.block_ratio), "b t h w c -> (b t h w) c").double()
        moment = moment + blocks.T @ blocks
        mean = mean + blocks.sum(0)
        count += len(blocks)
    if count == 0:
        raise KinemaError("`videos` (=no clip) must hold at least one clip")
    mean = mean / count
    covariance = moment / count - torch.outer(mean, mean)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    z = encoder.linear_path.out_features
    basis = eigenvectors[:, -z:].flip(1).T
    scale = eigenvalues[-z:].flip(0).clamp_min(1e-8).sqrt().unsqueeze(1)
    encoder.linear_path.weight.copy_(basis / scale)
    encoder.linear_path.bias.copy_(-(basis / scale) @ mean)
    decoder.linear_path.weight.copy_((basis * scale).T)
    decoder.linear_path.bias.copy_(mean)
