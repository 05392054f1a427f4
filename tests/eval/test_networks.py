"""Networks that measure: parity with references at random weights; converters find every name."""

import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.eval.networks import efficientnet, inception, lpips, raft
from kinema.eval.networks.batch_norm import fold_batch_norm


def shake(module: nn.Module) -> nn.Module:
    """Norms that do something, and gains that keep a deep network's numbers in range."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        with torch.no_grad():
            if value.ndim >= 2:
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
            elif name.endswith("num_batches_tracked"):
                continue
            elif name.endswith("var") or name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(0, 0.2)
    return module.eval()


def make_network(build: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        network = build()
    network.load_state_dict(state, assign=True)
    return network.eval()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1e-3, 1e-5]), st.booleans(), st.integers(0, 2**30))
def test_fold_batch_norm(channels: int, epsilon: float, affine: bool, seed: int):
    torch.manual_seed(seed)
    convolution = nn.Conv2d(2, channels, 3, bias=False)
    norm = shake(nn.BatchNorm2d(channels, eps=epsilon))
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if not affine:
        nn.init.ones_(norm.weight)
    weight, bias = fold_batch_norm(
        convolution.weight.detach(),
        bias=norm.bias.detach(),
        mean=norm.running_mean,
        var=norm.running_var,
        epsilon=epsilon,
        scale=norm.weight.detach() if affine else None,
    )
    x = torch.randn(1, 2, 5, 4)
    torch.testing.assert_close(F.conv2d(x, weight, bias), norm(convolution(x)), rtol=1e-4, atol=1e-5)


# --- LPIPS ---


@pytest.fixture(scope="module")
def reference() -> Any:
    """The `lpips` package on an untrained AlexNet, with its own heads."""
    import lpips as package

    torch.manual_seed(0)
    # Not the classifier, which the package makes and drops: it is 55 of 58 million weights.
    with warnings.catch_warnings(), mock.patch.object(nn.Linear, "reset_parameters"):
        warnings.simplefilter("ignore")
        return shake_backbone(package.LPIPS(net="alex", pnet_rand=True, verbose=False)).eval()


def shake_backbone(network: Any) -> Any:
    shake(network.net)
    return network


def backbone_layers(network: Any) -> list[tuple[int, nn.Conv2d]]:
    named = [(name, layer) for name, layer in network.net.named_modules() if isinstance(layer, nn.Conv2d)]
    return [(int(name.rpartition(".")[2]), layer) for name, layer in named]


def lpips_state(network: Any, layout: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for number, (index, layer) in enumerate(backbone_layers(network)):
        assert layer.bias is not None
        if layout == "torchvision":
            state |= {f"features.{index}.weight": layer.weight, f"features.{index}.bias": layer.bias}
        else:
            name = f"AlexNet_0/Conv_{number}"
            state |= {f"{name}/kernel": layer.weight.permute(2, 3, 1, 0), f"{name}/bias": layer.bias}
    if layout == "torchvision":
        return state | {"classifier.1.weight": torch.zeros(1)}
    heads = [network.lins[index].model[1].weight.permute(2, 3, 1, 0) for index in range(5)]
    return state | {f"NetLinLayer_{index}/Conv_0/kernel": head for index, head in enumerate(heads)}


@pytest.mark.parametrize("layout", ["torchvision", "package"])
def test_lpips_is_the_package(layout: str, reference: Any):
    state = {key: value.detach() for key, value in lpips_state(reference, layout).items()}
    converted = lpips.convert_weights(state, "alex")
    network = make_network(partial(lpips.LPIPS, "alex"), converted)
    assert lpips.convert_weights(converted, "alex").keys() == converted.keys(), "our own names stay"
    a, b = torch.rand(2, 2, 3, 64, 72) * 2 - 1
    with torch.no_grad():
        found = network(a, b)
        assert found.shape == (2,)
        torch.testing.assert_close(found, reference(a, b).flatten(), rtol=0, atol=0)
        assert (network(a, a) == 0).all()
    del state[next(iter(state))]
    with pytest.raises((KinemaError, ValueError, KeyError)):
        lpips.convert_weights(state, "alex")


def test_lpips_as_a_loss(reference: Any):
    state = {key: value.detach() for key, value in lpips_state(reference, "package").items()}
    network = make_network(partial(lpips.LPIPS, "alex"), lpips.convert_weights(state, "alex"))
    around = nn.ModuleList([network, nn.Dropout()]).train()
    assert around[1].training
    assert not any(module.training for module in network.modules()), "no dropout before the heads"
    a = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    network(a, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


def test_lpips_on_vgg_takes_both_layouts():
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    layers = [(index, layer) for index, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 13
    classifier, package = {}, {}
    for number, (index, layer) in enumerate(layers):
        assert layer.bias is not None
        weight, bias = layer.weight.detach(), layer.bias.detach()
        classifier |= {f"features.{index}.weight": weight, f"features.{index}.bias": bias}
        package |= {f"VGG16_0/Conv_{number}/kernel": weight.permute(2, 3, 1, 0), f"VGG16_0/Conv_{number}/bias": bias}
    ours = lpips.convert_weights(classifier, "vgg")
    for index, width in enumerate((64, 128, 256, 512, 512)):
        head = ours[f"distance.lin{index}.model.1.weight"]
        assert head.shape == (1, width, 1, 1)
        package[f"NetLinLayer_{index}/Conv_0/kernel"] = head.permute(2, 3, 1, 0)
    other = lpips.convert_weights(package, "vgg")
    assert other.keys() == ours.keys()
    assert all(torch.equal(other[key], value) for key, value in ours.items())
    # The last features before each head, computed by torchvision's layers in a row.
    network: Any = make_network(partial(lpips.LPIPS, "vgg"), ours)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        found = network.distance.net(image)
        ends = (4, 9, 16, 23, 30)
        x = image
        for start, end, value in zip((0, *ends), ends, found, strict=False):
            x = features[start:end](x)
            torch.testing.assert_close(value, x, rtol=0, atol=0)


def test_lpips_backbones_by_name():
    with pytest.raises(KinemaError, match=r"`net` \(='squeeze'\) must be one of alex, vgg"):
        lpips.load_lpips("squeeze")


# --- Inception ---


@pytest.fixture(scope="module")
def inception_reference() -> Any:
    """torchvision's Inception-v3, whose names FID's files of weights have, untrained."""
    torch.manual_seed(0)
    return shake(torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False, num_classes=2))


def test_inception_is_torchvisions_but_for_the_pools(inception_reference: Any, monkeypatch: pytest.MonkeyPatch):
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)
    found = make_network(inception.Inception, inception.convert_weights(inception_reference.state_dict()))(images)
    # FID's network leaves the padding out of averages, and the last block takes maxima.
    average, calls = F.avg_pool2d, []

    def pool(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
        calls.append(x.shape)
        if len(calls) == 9:
            return F.max_pool2d(x, kernel_size, stride, padding)
        return average(x, kernel_size, stride, padding, count_include_pad=False)

    stand_in = types.SimpleNamespace(avg_pool2d=pool, max_pool2d=F.max_pool2d, relu=F.relu)
    monkeypatch.setattr(sys.modules["torchvision.models.inception"], "F", stand_in)
    inception_reference.fc = nn.Identity()
    with torch.no_grad():
        wanted = inception_reference((images.float() - 128) / 128)
    assert len(calls) == 9
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_inception_converts_the_torchscripts_names(inception_reference: Any):
    state = inception_reference.state_dict()
    leaves = {"bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var", "conv.weight": "weight"}
    # The torchscript has no scale: it is 1.
    state = {key: torch.ones_like(value) if key.endswith("bn.weight") else value for key, value in state.items()}
    script = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".bn." if ".bn." in key else ".conv.")
        leaf = ("bn." if ".bn." in key else "conv.") + leaf
        if leaf in leaves:
            script[f"net.layers.{module}.{leaves[leaf]}"] = value
    assert len(script) == 94 * 4
    ours = inception.convert_weights(state)
    other = inception.convert_weights(script)
    assert all(torch.equal(other[key], value) for key, value in ours.items())
    assert inception.convert_weights(ours).keys() == ours.keys() == other.keys()
    with pytest.raises(KinemaError, match="of 93 convolutions"):
        inception.convert_weights(dict(list(script.items())[4:]))
    with pytest.raises(KinemaError, match="must have the shape"):
        inception.convert_weights(dict([*list(script.items())[4:], *list(script.items())[:4]]))


def test_resize_of_tensorflow_1():
    row = torch.tensor([[10, 20, 40, 80]], dtype=torch.uint8).view(1, 1, 1, 4)
    # Pixel i of n is the input at i·4/n: no half-pixel shift, and the last pixel is repeated.
    assert inception.resize(row, 8)[0, 0, 0].tolist() == [10, 15, 20, 30, 40, 60, 80, 80]
    assert inception.resize(row, 2)[0, 0, 1].tolist() == [10, 40]
    image = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    assert torch.equal(inception.resize(image, 9), image.float())


# --- RAFT ---

AUTHORS_NAMES = {
    "module.fnet.conv1.bias": "network.feature_encoder.convnormrelu.0.bias",
    "module.cnet.norm1.running_var": "network.context_encoder.convnormrelu.1.running_var",
    "module.cnet.conv2.weight": "network.context_encoder.conv.weight",
    "module.cnet.layer2.0.conv2.weight": "network.context_encoder.layer2.0.convnormrelu2.0.weight",
    "module.cnet.layer2.0.norm1.bias": "network.context_encoder.layer2.0.convnormrelu1.1.bias",
    "module.cnet.layer3.0.downsample.1.weight": "network.context_encoder.layer3.0.downsample.1.weight",
    "module.update_block.encoder.convc1.weight": "network.update_block.motion_encoder.convcorr1.0.weight",
    "module.update_block.encoder.convf2.bias": "network.update_block.motion_encoder.convflow2.0.bias",
    "module.update_block.encoder.conv.bias": "network.update_block.motion_encoder.conv.0.bias",
    "module.update_block.gru.convq2.weight": "network.update_block.recurrent_block.convgru2.convq.weight",
    "module.update_block.flow_head.conv1.weight": "network.update_block.flow_head.conv1.weight",
    "module.update_block.mask.0.weight": "network.mask_predictor.convrelu.0.weight",
    "module.update_block.mask.2.bias": "network.mask_predictor.conv.bias",
}


def test_raft_names_of_the_authors():
    with torch.device("meta"):
        ours = raft.RAFT().state_dict()
    for theirs, name in AUTHORS_NAMES.items():
        assert raft._rename(theirs) == name
        assert name in ours
    torchvisions = {key.removeprefix("network."): value for key, value in ours.items()}
    assert raft.convert_weights(torchvisions).keys() == ours.keys()
    with pytest.raises(KinemaError, match=r"must hold network.mask_predictor.conv.bias of shape \(576,\)"):
        raft.convert_weights({key: value for key, value in torchvisions.items() if key != "mask_predictor.conv.bias"})


@settings(max_examples=100)
@given(st.integers(1, 600))
def test_raft_padding(length: int):
    before, behind = raft._padding(length)
    total = length + before + behind
    assert total % 8 == 0
    assert total >= 128
    assert 0 <= behind - before <= 1
    assert total == 128 or before + behind < 8


def test_raft_pads_and_crops():
    network = raft.RAFT(num_updates=1)
    a, b = torch.rand(2, 1, 3, 61, 131) * 2 - 1
    flow = network(a, b)
    assert flow.shape == (1, 2, 61, 131)
    with torch.no_grad():
        pads = (2, 3, 33, 34)
        padded = [F.pad(x, pads, mode="replicate") for x in (a, b)]
        whole = network.network(*padded, num_flow_updates=1)[-1]
    torch.testing.assert_close(flow, whole[:, :, 33:94, 2:133], rtol=0, atol=0)


# --- EfficientNet-Lite0 ---


def efficientnet_state() -> "OrderedDict[str, Tensor]":
    """A state with the names of the package, for convolutions and norms as they were trained."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    with torch.device("meta"):
        ours = efficientnet.EfficientNetLite0().state_dict()
    for name, convolution, norm in efficientnet._layers():
        shape = ours[f"{name}.weight"].shape
        state[f"{convolution}.weight"] = torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            one_sided = leaf in ("weight", "running_var")
            state[f"{norm}.{leaf}"] = torch.rand(shape[0]) + 0.5 if one_sided else torch.randn(shape[0]) * 0.2
    state["_fc.weight"], state["_fc.bias"] = torch.randn(1000, 1280), torch.randn(1000)
    return state


def efficientnet_reference(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The network as the paper's table has it, layer by layer, with norms apart. Inputs `n 3 224 224`."""

    def layer(x: Tensor, convolution: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{convolution}.weight"]
        kernel = weight.shape[-1]
        # Sides are even wherever the stride is 2: TensorFlow's `SAME` pads one less in front.
        front = (kernel - stride) // 2
        pads = (front, kernel - stride - front) * 2
        x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
        mean, var, scale, bias = (state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, bias, eps=1e-3)

    x = F.relu6(layer((x - 127) / 128, "_conv_stem", "_bn0", 2))
    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # first blocks of the stages that halve
    widths = [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        name, y = f"_blocks.{index}", x
        if index > 0:
            y = F.relu6(layer(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = F.relu6(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", strides.get(index, 1), y.shape[1]))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if inputs == outputs and index not in strides else y
    return F.relu6(layer(x, "_conv_head", "_bn1")).mean(dim=(2, 3))


def test_efficientnet_is_the_papers_table():
    state = efficientnet_state()
    converted = efficientnet.convert_weights(state)
    network: Any = make_network(efficientnet.EfficientNetLite0, converted)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    found = network(images)
    wanted = efficientnet_reference(state, images.float())
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    logits = found @ state["_fc.weight"].T + state["_fc.bias"]
    torch.testing.assert_close(network.classify(images), logits, rtol=1e-4, atol=1e-3)
    assert efficientnet.convert_weights(converted).keys() == converted.keys()
    del state["_blocks.7._bn1.weight"]
    with pytest.raises(KeyError, match=r"_blocks.7._bn1.weight"):
        efficientnet.convert_weights(state)


def test_efficientnet_takes_any_size():
    network = make_network(efficientnet.EfficientNetLite0, efficientnet.convert_weights(efficientnet_state()))
    flat = torch.full((1, 3, 40, 300), 90, dtype=torch.uint8)
    square = torch.full((1, 3, 224, 224), 90, dtype=torch.uint8)
    torch.testing.assert_close(network(flat), network(square), rtol=1e-4, atol=1e-4)
