"""A trained tokenizer as the start of one with another bottleneck: the networks carry over, their ends are fitted."""

from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.causal_vae.networks import HAAR_RATIO
from kinema.tokenizers.causal_vae.regression import LeastSquares, quantised_rows
from kinema.tokenizers.interface import pad_to_grid
from kinema.tokenizers.quantizers.base import DiscreteBottleneck


def check_transfer(source: LatentTokenizer, target: LatentTokenizer) -> None:
    """Whether `transfer` can work.

    Raises:
        KinemaError: the source is discrete or has fewer latent channels than the target.
    """
    have, want = source.quantizer.latent_channels, target.quantizer.latent_channels
    if isinstance(source.quantizer, DiscreteBottleneck) or have < want:
        kind = "discrete" if isinstance(source.quantizer, DiscreteBottleneck) else "continuous"
        raise KinemaError(f"`source` (={have} {kind} latent channels) must have continuous ones, at least {want}")


@torch.no_grad()
def transfer(source: LatentTokenizer, target: LatentTokenizer, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
    """Gives `target` the networks of `source`, with the best linear maps between the two latents at the bottleneck.

    The new latents are the principal components of the old ones, measured by what they change in the pixels (through
    the decoder's linear path), at the spread that the bottleneck likes to be started with. The decoder first predicts
    the old latents from the quantised new ones by least squares.

    Args:
        source: a trained tokenizer with continuous latents; its encoder and decoder have the target's shapes.
        target: overwritten.
        videos: clips, values in [-1, 1].

    Raises:
        KinemaError: the source is discrete or has fewer latent channels than the target, or there is no clip.
    """
    check_transfer(source, target)
    have, want = source.quantizer.latent_channels, target.quantizer.latent_channels
    t, h, _ = (haar * deep for haar, deep in zip(HAAR_RATIO, source.encoder.block_ratio, strict=True))
    located = [
        rearrange(source.encoder(pad_to_grid(video, t, h))[:, :have], "b z t h w -> (b t h w) z") for video in videos
    ]
    if not located:
        raise KinemaError("`videos` (=no clip) must hold at least one clip")
    latents = torch.cat(located)
    weight, bias = _principal(latents, source.decoder.linear_path.weight, want)
    std = target.quantizer.start_std or 1.0
    weight, bias = weight * std, bias * std

    for ours, theirs in ((target.encoder, source.encoder), (target.decoder, source.decoder)):
        for part in ("stages", "norm"):
            getattr(ours, part).load_state_dict(getattr(theirs, part).state_dict())
    target.encoder.stem.load_state_dict(source.encoder.stem.state_dict())
    target.decoder.head.load_state_dict(source.decoder.head.state_dict())

    path, head = source.encoder.linear_path, source.encoder.head
    target.encoder.linear_path.weight.copy_(weight @ path.weight)
    target.encoder.linear_path.bias.copy_(weight @ path.bias + bias)
    target.encoder.head.weight.zero_()  # what is not location (a log-variance) starts anew
    target.encoder.head.bias.zero_()
    target.encoder.head.weight[:want] = weight @ head.weight[:have]
    target.encoder.head.bias[:want] = weight @ head.bias[:have]

    fit = LeastSquares()
    fit.add(quantised_rows(target.quantizer, latents @ weight.T + bias), latents)
    back, mean = (part.to(latents.dtype) for part in fit.solve())
    for ours, theirs in (
        (target.decoder.linear_path, source.decoder.linear_path),
        (target.decoder.stem, source.decoder.stem),
    ):
        ours.weight.copy_(theirs.weight @ back)
        ours.bias.copy_(theirs.bias + theirs.weight @ mean)


def _principal(latents: Tensor, to_pixels: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the `number` components of the latents that move the pixels most, each of variance 1."""
    mean = latents.double().mean(0)
    gram = to_pixels.double().T @ to_pixels.double()
    # A little of the identity: the linear path may be silent about a channel.
    gram += 1e-6 * (gram.diagonal().mean() + 1e-6) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    metric = torch.linalg.cholesky(gram).T
    eigenvalues, vectors = torch.linalg.eigh(metric @ torch.cov(latents.double().T, correction=0) @ metric.T)
    scale = eigenvalues[-number:].flip(0).clamp_min(1e-12).sqrt()
    weight = (vectors[:, -number:].flip(1) / scale).T @ metric
    return weight.to(latents.dtype), (-weight @ mean).to(latents.dtype)
