"""Normalisation of latents by the statistics in a tokenizer's config."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.checks import check_statistics

Statistic = Any  # a sequence of numbers or None, once `check_statistics` has seen it


class NormalizedLatents(ModelMixin, ConfigMixin):
    """A model with `latents_mean` and `latents_std` in its config; None: the identity.

    Both are float32 buffers, which follow the model to its device and keep their type where its weights change theirs.
    Files have them in the config alone.
    """

    # diffusers' models look up attributes in their config first: a buffer named as its key would not be found.
    _latents_mean: Tensor
    _latents_std: Tensor

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        raise NotImplementedError

    def normalize(self, latents: Tensor) -> Float[Tensor, "b z t h w"]:
        """Normalise latents for a diffusion model: ``(latents - latents_mean) / latents_std``.

        Args:
            latents: ``(b, z, t, h, w)``.

        Raises:
            KinemaError: The latents have other dimensions or channels.
        """
        mean, std = self._statistics_for(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`."""
        mean, std = self._statistics_for(latents)
        return latents * std + mean

    def set_latent_statistics(self, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
        """Set `latents_mean` and `latents_std`, usually measured once after training, here and in the config.

        Raises:
            KinemaError: They are not finite, one number per channel, with `std` above 0.
        """
        self._set_statistics(mean.tolist(), std.tolist())
        self.register_to_config(latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))

    def _set_statistics(self, mean: Statistic, std: Statistic, device: torch.device | None = None) -> None:
        check_statistics(mean, std, self.latent_channels)
        if device is None and "_latents_mean" in self._buffers:
            device = self._latents_mean.device
        for name, values, identity in (("_latents_mean", mean, 0.0), ("_latents_std", std, 1.0)):
            values = [identity] * self.latent_channels if values is None else list(values)
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        config: Any = self.config
        self._set_statistics(config.latents_mean, config.latents_std)  # not rounded to half precision
        return self

    def _statistics_for(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:  # one channel would be broadcast to all
            shape, channels = tuple(latents.shape), self.latent_channels
            raise KinemaError(f"`latents` (of shape {shape}) must be (batch, {channels}, frames, height, width)")
        # The copy is for models that are offloaded to the CPU.
        mean, std = (
            buffer.view(1, -1, 1, 1, 1).to(latents.device) for buffer in (self._latents_mean, self._latents_std)
        )
        return mean, std
