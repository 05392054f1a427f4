"""Compiled blocks, where a compiler is there."""

import logging
from typing import Any

import torch
from torch import nn

from kinema.loading import one_line
from kinema.machine import missing_compiler
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
        Whether blocks compile when they first run. Where no compiler is found, or one fails, the log says so once, and
        blocks run as they are.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    reason = missing_compiler(device) or _failure(device)
    if reason is not None:
        logger.warning("`compile` (=%s): blocks run uncompiled, %s", setting, reason)
        return False
    dynamo: Any = torch._dynamo
    dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
    of_torch = logging.getLogger("torch._dynamo.convert_frame")
    if not any(isinstance(known, _Once) for known in of_torch.filters):
        of_torch.addFilter(_Once())
    dynamo.config.recompile_limit = max(_SHAPES, dynamo.config.recompile_limit)
    of_diffusers: Any = model
    of_diffusers.compile_repeated_blocks(dynamic=False)
    return True


def _failure(device: torch.device) -> str | None:
    """Why a first small compilation failed; None: it did not."""
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(_example, dynamic=False)(x).backward()
    except Exception as error:  # compilers fail in many ways
        return f"a first compilation failed: {one_line(error)}"
    return None


class _Once(logging.Filter):
    """Says once, in a line, that a block could not be compiled, where torch says it with a traceback each time."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.said:
            self.said = True
            raised = record.exc_info[1] if record.exc_info else None
            error = raised or RuntimeError(record.getMessage())
            logger.warning("`compile`: some blocks run uncompiled, %s", one_line(error))
        return False


def _example(x: torch.Tensor) -> torch.Tensor:
    return (x * x + 1).sum()


def set_checkpointing(model: nn.Module, config: TrainingConfig) -> None:
    """Turns activation checkpointing on where the settings say so."""
    if config.gradient_checkpointing:
        of_diffusers: Any = model
        of_diffusers.enable_gradient_checkpointing()
