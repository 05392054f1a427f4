"""Compiled blocks, where a compiler is there."""

import logging
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from kinema.generation.attention.backends.flex import find_compiler
from kinema.loading import one_line
from kinema.training.config import TrainingConfig

logger = logging.getLogger(__name__)

_SHAPES = 64
"""Compilations of one block before torch gives up on it: one for each shape of clips and length of text."""


def compile_blocks(model: nn.Module, setting: str, device: torch.device) -> bool:
    """Compiles the repeated blocks of a model in place, each shape anew; weights and their names stay as they are.

    Args:
        model: of diffusers' kind, with `_repeated_blocks`.
        setting: `compile` of a training, see `TrainingConfig`.
        device: that trains.

    Returns:
        Whether it did. Where no compiler is found, or it fails, the log says so once, and the model runs as it is.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    reason = missing_compiler(device)
    if reason is not None:
        logger.warning("`compile` (=%s): blocks run uncompiled, %s", setting, reason)
        return False
    dynamo: Any = torch._dynamo
    dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
    dynamo.config.recompile_limit = max(_SHAPES, dynamo.config.recompile_limit)
    of_diffusers: Any = model
    of_diffusers.compile_repeated_blocks(dynamic=False)
    return True


def missing_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device; None: it can."""
    if device.type == "cuda" and not has_triton():
        return "Triton is not installed or does not support this GPU"
    if device.type == "cpu" and find_compiler() is None:
        return "no C++ compiler is found (the variable CXX may name one)"
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(_example, dynamic=False)(x).backward()
    except Exception as error:  # compilers fail in many ways
        return f"a first compilation failed: {one_line(error)}"
    return None


def _example(x: torch.Tensor) -> torch.Tensor:
    return (x * x + 1).sum()


def save_memory(model: nn.Module, config: TrainingConfig) -> None:
    """Turns activation checkpointing on where the settings say so."""
    if config.gradient_checkpointing:
        of_diffusers: Any = model
        of_diffusers.enable_gradient_checkpointing()
