"""How kinema's programs use the machine."""

import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError

if TYPE_CHECKING:
    import torch


def share_cores() -> None:
    """Lets waiting threads sleep; to be called before torch is imported.

    By default OpenMP's threads spin while they wait for each other. On a machine that does anything else at the same
    time that is a disaster for small models: with two threads and one core busy, five sampler steps took 19.8 s
    spinning and 0.4 s sleeping. The user's own setting of `OMP_WAIT_POLICY` stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def as_given(device: "torch.device") -> AbstractContextManager[Any]:
    """Within it, operations on a device compute in the types that they are given: autocast changes none."""
    import torch

    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def lasting() -> AbstractContextManager[Any]:
    """Within it, tensors are made that may be kept: what `torch.inference_mode` makes, training cannot use later."""
    import torch

    return torch.inference_mode(False)


def pick_device(name: "str | torch.device | None" = None) -> str:
    """The device to compute on.

    Args:
        name: What the user asked for; None: CUDA if available, else the CPU.

    Raises:
        KinemaError: torch does not know this device, or this machine does not have it.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KinemaError(f"`device` (={str(name)!r}) must be a device of this machine, like cpu or cuda") from error
    return str(name)


def missing_compiler(device: "torch.device") -> str | None:
    """Why torch cannot compile kernels for a device (cuda or cpu); None: as far as programs go, it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed or does not support this GPU"
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    if any(name and shutil.which(name) for name in names):
        return None
    return "no C++ compiler is found (the variable CXX may name one)"


def computes_bf16(device: "torch.device") -> bool:
    """Whether a device multiplies matrices in bfloat16 itself, rather than by slow emulation."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):  # oneDNN also says yes to AVX-512 without bfloat16
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_READABLE = ("cpu",)


def readable(value: "torch.Tensor") -> bool:
    """Whether the host can read a tensor without waiting for a device."""
    return value.device.type in _READABLE
