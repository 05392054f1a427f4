"""Device and CPU settings: threads, autocast, compilers, bfloat16 support."""

import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError

if TYPE_CHECKING:
    import torch


def share_cores() -> None:
    """Let waiting OpenMP threads sleep. Call this before torch is imported.

    By default OpenMP threads spin while they wait for each other. When other programs use the CPU as well, this makes
    small models very slow: with two threads and one busy core, five sampler steps took 19.8 s spinning and 0.4 s
    sleeping. `OMP_WAIT_POLICY` is left unchanged if the user has set it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def autocast_disabled(device: "torch.device") -> AbstractContextManager[Any]:
    """Context manager that disables autocast on a device, so that operations compute in the dtype of their inputs."""
    import torch

    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def inference_mode_disabled() -> AbstractContextManager[Any]:
    """Context manager that disables inference mode, for tensors that are cached: autograd rejects inference tensors."""
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
    """Return why torch cannot compile kernels for a device (cuda or cpu), or None if the compiler is installed."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed or does not support this GPU"
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    if any(name and shutil.which(name) for name in names):
        return None
    return "no C++ compiler was found (set the environment variable CXX to name one)"


def computes_bf16(device: "torch.device") -> bool:
    """Whether a device supports bfloat16 matrix products in hardware, rather than by slow emulation."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):  # oneDNN reports support on AVX-512 without bfloat16 too
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_READABLE = ("cpu",)


def readable(value: "torch.Tensor") -> bool:
    """Whether the host can read a tensor's values without synchronising with a device."""
    return value.device.type in _READABLE
