"""The devices and processes of a training, and what it computes in."""

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration

from kinema.errors import KinemaError
from kinema.machine import computes_bf16
from kinema.training.config import TrainingConfig


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The accelerator of a run: its devices and processes come from `accelerate launch`."""
    device = PartialState(cpu=config.cpu).device
    assert device is not None
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32
    return Accelerator(
        cpu=config.cpu,
        mixed_precision=autocast_type(config.mixed_precision, device),
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(config.run_dir)),
    )


def autocast_type(setting: str, device: torch.device) -> str:
    """What `mixed_precision` means on a device: bf16 or no.

    Raises:
        KinemaError: bf16 is asked for, and the device does not compute in it.
    """
    if setting == "auto":
        return "bf16" if computes_bf16(device) else "no"
    if setting == "bf16" and not computes_bf16(device):
        # Emulation is up to 80 times slower, and oneDNN's gives wrong gradients of convolutions (docs/decisions.md).
        raise KinemaError(f"`mixed_precision` (=bf16) must be auto or no: this {device.type} has no bfloat16")
    return setting
