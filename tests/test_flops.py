"""FLOPs are what pen and paper give, on every version of torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinema.flops import _FORMULAS, FlopCounter


def counted(work: Callable[[], object]) -> int:
    with FlopCounter() as counter:
        work()
    return counter.get_total_flops()


def normal(*shape: int, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    return torch.empty(shape, device=device).normal_().requires_grad_(requires_grad)


PRODUCTS: list[tuple[Callable[..., Tensor], list[tuple[int, ...]], int]] = [
    (torch.matmul, [(3, 4), (4, 5)], 3 * 4 * 5),
    (torch.matmul, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    (torch.matmul, [(3, 4), (4,)], 3 * 4),
    (torch.matmul, [(4,), (4,)], 4),
    (torch.addmm, [(5,), (3, 4), (4, 5)], 3 * 4 * 5),
    (torch.addmv, [(3,), (3, 4), (4,)], 3 * 4),
    (torch.baddbmm, [(2, 1, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    (F.linear, [(2, 3, 4), (5, 4), (5,)], 2 * 3 * 4 * 5),
    (lambda a, b: torch.einsum("bhd,bhe->bde", a, b), [(2, 3, 4), (2, 3, 5)], 2 * 3 * 4 * 5),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("operation", "shapes", "multiplications"), PRODUCTS)
def test_products(operation: Callable[..., Tensor], shapes: list[tuple[int, ...]], multiplications: int, device: str):
    tensors = [normal(*shape, device=device) for shape in shapes]
    assert counted(lambda: operation(*tensors)) == 2 * multiplications


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("layer", "size", "multiplications"),
    [
        (nn.Conv1d(4, 6, 3), (9,), 7 * 3 * 4 * 6),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2), (8, 10), 4 * 5 * 9 * 4 * 6),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (8, 10), 6 * 8 * 9 * 2 * 6),
        (nn.Conv2d(4, 4, 3, groups=4), (8, 10), 6 * 8 * 9 * 4),
        (nn.Conv3d(4, 6, (3, 1, 2)), (5, 4, 3), 3 * 4 * 2 * 6 * 4 * 6),
        # Each number that goes in is multiplied by each weight of its channel.
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (5, 7), 5 * 7 * 9 * 4 * 6),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (5, 7), 5 * 7 * 9 * 4 * 3),
    ],
)
def test_convolutions_and_their_gradients(layer: nn.Module, size: tuple[int, ...], multiplications: int, device: str):
    layer = layer.to_empty(device=device) if device == "meta" else layer
    x = normal(2, 4, *size, device=device, requires_grad=True)
    forward = 2 * 2 * multiplications
    assert counted(lambda: layer(x)) == forward
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward
    assert counted(lambda: layer(x.detach()).sum().backward()) == 2 * forward


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_counts_alike_in_every_kernel(kernel: SDPBackend, masked: bool):
    query, key, value = normal(2, 3, 10, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 8)
    mask = torch.ones(10, 7, dtype=torch.bool) if masked else None
    with sdpa_kernel(kernel):
        assert counted(lambda: F.scaled_dot_product_attention(query, key, value, mask)) == 2 * 2 * 3 * 10 * 7 * (8 + 8)


def test_attention_with_fewer_heads_of_keys():
    query, key = normal(2, 4, 10, 8), normal(2, 2, 7, 8)
    flops = counted(lambda: F.scaled_dot_product_attention(query, key, key, enable_gqa=True))
    assert flops == 2 * 2 * 4 * 10 * 7 * (8 + 8)


def test_gradients_of_attention():
    query, key, value = (normal(2, 3, n, 8, requires_grad=True) for n in (10, 7, 7))
    forward = 2 * 2 * 3 * 10 * 7 * (8 + 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert counted(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward()) == 3.5 * forward


def test_values_of_another_size():
    query, key, value = normal(2, 3, 10, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 5)
    assert counted(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * 2 * 3 * 10 * 7 * (8 + 5)


def test_no_kernel_of_attention_is_without_a_formula():
    """A version of torch with a kernel that is not in the list fails here, rather than counting it as zero."""
    names = {schema.name.removeprefix("aten::") for schema in torch._C._jit_get_all_schemas()}
    kernels = {name for name in names if name.startswith("_scaled_dot_product_")}
    kernels -= {"_scaled_dot_product_attention_math"}  # made of matrix products, which are counted
    assert kernels
    assert kernels <= set(_FORMULAS)


def test_counts_by_module():
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 6))
    with FlopCounter() as counter:
        model(normal(3, 4))
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    wanted = {"Sequential.0": 120, "Sequential.2": 180, "Sequential": 300, "Global": 300}
    assert {name: flops for name, flops in counts.items() if flops} == wanted
