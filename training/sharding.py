"""Weights, gradients and optimizer state split over the processes of a training (FSDP2).

torch's `fully_shard` splits each weight along its first axis and gathers a block's weights while it computes (FSDP,
arXiv 2304.11277). A split tensor is a `DTensor`. Optimizers and averages work on this process' part of it, which is
exact for all that they do number by number; checkpoints hold whole tensors, so that any number of processes can go on
from them.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Splits a model's weights over processes in place; its forward pass gathers them block by block.

    Args:
        model: of diffusers' kind: modules that `_no_split_modules` names are gathered one after the other.
        mesh: of one axis, the processes.
    """
    # Blocks return views, and nothing changes those in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    of_diffusers: Any = model
    names = tuple(of_diffusers._no_split_modules)
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """This process' part of a tensor, in the same memory; the tensor itself where it is not split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: where it is split, all processes must ask for it, and get it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which each process has, split as another is."""
    if not isinstance(like, DTensor):
        return tensor
    whole_tensor = tensor.detach().to(like.device)
    return distribute_tensor(whole_tensor, like.device_mesh, like.placements, src_data_rank=None)  # nothing is sent


def gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole, contiguous tensors; those that were split come to the CPU.

    Args:
        tensors: by name, the same in all processes.
        keep: whether this process wants them; all processes take part.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if keep:
            gathered[name] = (value.cpu() if isinstance(tensor, DTensor) else value).contiguous()
    return gathered


def split_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `gather`: tensors split as those of the same name and shape are; others stay as they are."""
    return {
        name: part_like(tensor, like[name]) if name in like and like[name].shape == tensor.shape else tensor
        for name, tensor in tensors.items()
    }


def on_whole(parts: Tensor, like: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Computes with whole tensors of one shape, of which each process takes a share.

    Args:
        parts: (k, *part), this process' parts of k tensors that are split as `like` is; whole where it is not.
        like: one of them.
        compute: from (n, *shape), n of the whole tensors, to results of that shape, each of its tensor alone.

    Returns:
        This process' parts of the k results.
    """
    if not isinstance(like, DTensor):
        return compute(parts)
    mesh, shape = like.device_mesh, torch.Size((len(parts), *like.shape))
    stride = torch.empty(shape, device="meta").stride()
    rows = DTensor.from_local(parts.contiguous(), mesh, [Shard(1)], run_check=False, shape=shape, stride=stride)
    mine = rows.redistribute(placements=[Shard(0)]).to_local()
    done = DTensor.from_local(compute(mine), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
    return done.redistribute(placements=[Shard(1)]).to_local()
