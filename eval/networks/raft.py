"""RAFT, optical flow (Teed and Deng 2020): torchvision's network with the weights "RAFT-things" (C + T)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large

from kinema.errors import KinemaError

MIN_SIZE = 128
"""The network looks at flow at an eighth of the size and three halvings of that: 2x2 must be left."""

NUM_UPDATES = 12


class RAFT(nn.Module):
    """Flow from one frame to the next.

    Args:
        num_updates: Refinements of the flow; 12 as torchvision's, of which the last one is the result.
    """

    def __init__(self, num_updates: int = NUM_UPDATES) -> None:
        super().__init__()
        self.num_updates = num_updates
        self.network = raft_large(weights=None, progress=False)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2 h w"]:
        """Flow (x, y) in pixels: what is at `p` in `a` is at `p + flow[p]` in `b`.

        Args:
            a: In [-1, 1], of any size; sides that are not multiples of 8, or under 128, are padded by repeating the
                border, and the flow is cropped.
            b: The same shape.
        """
        height, width = a.shape[2:]
        pads = [side for length in (width, height) for side in _padding(length)]
        a, b = (F.pad(x, pads, mode="replicate") for x in (a, b))
        flow = self.network(a, b, num_flow_updates=self.num_updates)[-1]
        return flow[:, :, pads[2] : pads[2] + height, pads[0] : pads[0] + width]


def _padding(length: int) -> tuple[int, int]:
    """Before and behind, the odd one behind."""
    missing = max(MIN_SIZE, length + -length % 8) - length
    return missing // 2, missing - missing // 2


def load_raft(path: str | Path | None = None) -> RAFT:
    """The network with its weights, on the CPU.

    Args:
        path: A file of weights; None fetches them (see `kinema.eval.weights`).

    Raises:
        KinemaError: The weights cannot be had.
    """
    from kinema.eval.weights import load_weights

    network = RAFT()
    load_weights(network, "raft", path)
    return network


# Names of the authors' network -> torchvision's, one after the other.
_RENAME = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.(conv|norm)1\.", lambda found: f"{found[1]}.convnormrelu.{_slot(found[2])}."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.(conv|norm)(\d)\.", lambda found: f"{found[1]}.convnormrelu{found[3]}.{_slot(found[2])}."),
    (r"update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"update_block\.mask\.2\.", "mask_predictor.conv."),
)


def _slot(kind: str) -> int:
    """Place of a layer in torchvision's blocks of convolution and norm."""
    return {"conv": 0, "norm": 1}[kind]


def convert_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state from our own, from torchvision's, or from the authors'.

    Raises:
        KinemaError: The weights are not this network's.
    """
    with torch.device("meta"):
        template = RAFT().state_dict()
    if template.keys() == state.keys():
        return dict(state)
    named = {key: value for key, value in ((_rename(key), value) for key, value in state.items()) if key in template}
    # A count of training steps, which the authors' older files lack.
    named |= {key: torch.tensor(0) for key in template if key.endswith("num_batches_tracked") and key not in named}
    for key, value in template.items():
        if key not in named or named[key].shape != value.shape:
            raise KinemaError(f"`weights` must hold {key} of shape {tuple(value.shape)}")
    return named


def _rename(key: str) -> str:
    for pattern, replacement in _RENAME:
        key = re.sub(pattern, replacement, key)
    return f"network.{key}"
