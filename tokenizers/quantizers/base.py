"""The interface of a bottleneck."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kinema.errors import KinemaError

# Not bool, which counts as an integer elsewhere: a mask is no code.
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(kw_only=True)
class BottleneckOutput:
    """Latents for the decoder, their deterministic form, and what the bottleneck knows about them.

    Attributes:
        latents: ``(b, z, t, h, w)``, what the decoder gets (a sample in training, see `Bottleneck.forward`).
        mode: ``(b, z, t, h, w)``, the deterministic latents; the same tensor where nothing is random.
        latent_dist: the posterior, if there is one.
        indices: ``(b, t, h, w)`` code indices, if the bottleneck is discrete.
        losses: loss terms by name, each a scalar.
    """

    latents: Float[Tensor, "b z t h w"]
    mode: Float[Tensor, "b z t h w"]
    latent_dist: Any = None
    indices: Int[Tensor, "b t h w"] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module, ABC):
    """Turns the encoder's output into latents.

    Attributes:
        latent_channels: channels of the latents.
        in_channels: channels that the encoder must give; the first `latent_channels` of them locate the latent.
        start_std: standard deviation of the bottleneck's input that an untrained encoder should give, and a sign that
            the decoder's linear start must be fitted to the codes, which differ from that input. None: an input of
            standard deviation 1 that the latents equal ("kl"), or whose codes are still to be found in it ("vq").
    """

    latent_channels: int
    in_channels: int
    start_std: float | None = None

    @classmethod
    @abstractmethod
    def from_options(
        cls, latent_channels: int | None, fsq_levels: Sequence[int] | None, codebook_size: int | None
    ) -> "Bottleneck":
        """The bottleneck of a tokenizer's options, see `kinema.tokenizers.quantizers.make_bottleneck`.

        Raises:
            KinemaError: an option that this bottleneck needs is missing, or one does not fit.
        """

    @abstractmethod
    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        """Quantises or samples; `sample` draws from the posterior where there is one."""

    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        """The latents of code indices ``(b, t, h, w)``, of any integer type.

        Raises:
            KinemaError: the bottleneck is continuous; or, of a discrete one, an index lies outside the codebook, or
                they are no integers (b, t, h, w).
        """
        raise KinemaError(
            f"`bottleneck` (={type(self).__name__.lower()!r}) must be a discrete one for code indices, not a continuous"
        )


class DiscreteBottleneck(Bottleneck):
    """A bottleneck whose latents are the codes of a codebook.

    Attributes:
        codebook_size: number of codes; indices lie in ``0..codebook_size - 1``.
    """

    codebook_size: int

    @abstractmethod
    def latents_to_indices(self, latents: Float[Tensor, "b z t h w"]) -> Int[Tensor, "b t h w"]:
        """The index of the code nearest to each latent; of a code, its own."""

    @abstractmethod
    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        """The codes of indices ``(b, t, h, w)``, of any integer type; the inverse of `latents_to_indices`.

        Raises:
            KinemaError: an index lies outside the codebook, or they are no integers (b, t, h, w).
        """

    def _check_indices(self, indices: Tensor) -> None:
        if indices.ndim != 4 or indices.dtype not in _INTEGERS:
            what = f"of shape {tuple(indices.shape)}, {indices.dtype}"
            raise KinemaError(f"`indices` ({what}) must be integers (batch, frames, height, width)")
        if indices.numel() == 0:
            return
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.codebook_size:
            raise KinemaError(f"`indices` (={low}..{high}) must lie in 0..{self.codebook_size - 1}")


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A block whose matrix products on the tensor's device keep their precision; meta tensors have no autocast."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def agree(argument: str, given: int | None, wanted: int, reason: str) -> None:
    """Refuses an option that says something else than what follows from the others; None says nothing.

    Raises:
        KinemaError: they differ.
    """
    if given is not None and given != wanted:
        raise KinemaError(f"`{argument}` (={given}) must be {wanted}, {reason}, or be left out")


def refuse(argument: str, given: Any, bottleneck: str) -> None:
    """Refuses an option that a bottleneck has no use for.

    Raises:
        KinemaError: it was given.
    """
    if given is not None:
        raise KinemaError(f"`{argument}` (={given}) must be left out for the bottleneck {bottleneck!r}")
