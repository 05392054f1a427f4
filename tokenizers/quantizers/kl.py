"""The Gaussian bottleneck of variational auto-encoders (arXiv 1312.6114)."""

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers.base import Bottleneck, BottleneckOutput

# The initial posterior is narrow compared with the prior (std 0.02), so that samples carry the signal.
_INITIAL_LOGVAR = -8.0


class DiagonalGaussian:
    """A Gaussian with a mean and a log-variance per element; the interface of diffusers' ``latent_dist``."""

    def __init__(self, mean: Float[Tensor, "b z t h w"], logvar: Float[Tensor, "b z t h w"]):
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 10.0)
        self.var = self.logvar.exp()
        self.std = (0.5 * self.logvar).exp()

    def mode(self) -> Float[Tensor, "b z t h w"]:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b z t h w"]:
        # Unlike torch.randn, it accepts a CPU generator for latents on another device.
        noise = randn_tensor(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, "b z t h w"]:
        """Kullback-Leibler divergence from N(0, 1) per element, in nats (arXiv 1312.6114, appendix B)."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar)


class KL(Bottleneck):
    """Predicts mean and log-variance; the latent is the mean, or a sample in training."""

    def __init__(self, latent_channels: int):
        """
        Args:
            latent_channels: Channels of the latents.

        Raises:
            KinemaError: `latent_channels` is below 1.
        """
        super().__init__()
        if latent_channels < 1:
            raise KinemaError(f"`latent_channels` (={latent_channels}) must be at least 1")
        self.latent_channels = latent_channels
        self.in_channels = 2 * latent_channels

    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        # The posterior is computed in float32: exp of a bfloat16 log-variance is too coarse.
        mean, logvar = h.float().chunk(2, dim=1)
        dist = DiagonalGaussian(mean, logvar + _INITIAL_LOGVAR)
        latents = dist.sample(generator) if sample else dist.mode()
        return BottleneckOutput(latents=latents, mode=dist.mode(), latent_dist=dist, losses={"kl": dist.kl().mean()})
