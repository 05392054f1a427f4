"""How a network takes one step: its optimizer, its learning rate, and what happens when a number is not finite."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kinema.training.config import TrainingConfig
from kinema.training.muon import Muon


def make_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW for all, or Muon for the matrices and kernels of repeated blocks and AdamW for the rest.

    What is one number a channel (biases, gains) does not decay.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}]
    inner = [name for name, p in named if p.ndim >= 2 and config.optimizer == "muon" and _is_inner(name)]
    for muon in (True, False):
        chosen = [p for name, p in named if p.ndim >= 2 and (name in inner) == muon]
        groups.append({"params": chosen, "weight_decay": config.weight_decay, "muon": muon})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "muon":
        return Muon(groups, lr=config.learning_rate, betas=config.betas)
    return adamw(groups, config.learning_rate, config.betas, device)


def adamw(parameters: Any, learning_rate: float, betas: tuple[float, float], device: torch.device) -> torch.optim.AdamW:
    """AdamW, fused where the device has that."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, fused=device.type in ("cpu", "cuda"))


def _is_inner(name: str) -> bool:
    """Whether a weight belongs to a repeated block: Muon is not for embeddings, heads and tables."""
    return ("blocks." in name or "stages." in name) and not name.endswith("table")


class Learner:
    """A network in training.

    Args:
        module: the network.
        optimizer: of its weights.
        learning_rate: the highest.
        max_grad_norm: gradients with a larger norm are scaled down to it.
        accelerator: prepares both.
        prefix: of the names of its loss and gradient norm in the log.

    Attributes:
        model: the network as accelerate prepared it.
        plain: the network itself.
        optimizer: the optimizer itself.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: float,
        max_grad_norm: float,
        accelerator: Accelerator,
        *,
        prefix: str = "",
    ) -> None:
        self.accelerator, self.prefix = accelerator, prefix
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self.model, self._optimizer = accelerator.prepare(module, optimizer)
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        self.optimizer: torch.optim.Optimizer = self._optimizer.optimizer

    def step(
        self, compute_loss: Callable[[nn.Module], tuple[Tensor, dict[str, Tensor]]], factor: float
    ) -> dict[str, Tensor] | None:
        """One step of the optimizer.

        A loss or a gradient that is not finite, in any process, leaves network and optimizer as they were: weights
        are not moved, and what the forward pass did to buffers (codebooks, running means) is undone.

        Args:
            compute_loss: from the prepared network to the loss and terms to log.
            factor: of the learning rate.

        Returns:
            The terms with `loss` and `grad_norm`, or None if there was no step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        before = [buffer.clone() for buffer in self.plain.buffers()]
        with self.accelerator.autocast():
            loss, terms = compute_loss(self.model)
        grad_norm = self._backward(loss)
        if grad_norm is not None:
            self._optimizer.step()
            terms = terms | {f"{self.prefix}loss": loss.detach(), f"{self.prefix}grad_norm": grad_norm}
        else:
            with torch.no_grad():
                for buffer, value in zip(self.plain.buffers(), before, strict=True):
                    buffer.copy_(value)
        self._optimizer.zero_grad(set_to_none=True)
        return None if grad_norm is None else terms

    def _backward(self, loss: Tensor) -> Tensor | None:
        """The norm of the clipped gradient; None where loss or gradient is not finite."""
        if any_process(self.accelerator, not bool(torch.isfinite(loss))):
            return None
        self.accelerator.backward(loss)
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        return None if any_process(self.accelerator, not bool(torch.isfinite(norm))) else norm


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total > 0)  # type: ignore[operator]


def process_mean(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """Takes a tensor to its mean over the processes; None where there is one process."""
    if accelerator.num_processes == 1:
        return None
    mean: Any = lambda value: accelerator.reduce(value, reduction="mean")  # noqa: E731
    return mean
