"""What the tests of kinema's own tokenizers share: random weights and clips, chunks, and a comparison."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def randomised(model: Model, vectors: float = 1.0) -> Model:
    """Every weight random, so that no path is switched off by a zero; `vectors` is the spread of biases and gains."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else vectors
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.eval()


def video(frames: int, height: int = 16, width: int = 16, batch: int = 1, seed: int = 1) -> Tensor:
    """A clip of noise in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(x: Tensor, lengths: list[int]) -> Iterator[Tensor]:
    """Pieces of these lengths along time, then the rest."""
    start = 0
    for length in lengths:
        yield x[:, :, start : start + length]
        start += length
    if start < x.shape[2]:
        yield x[:, :, start:]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors have one shape, and differ by at most so much of the second's largest value."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
