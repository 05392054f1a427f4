"""How a network takes one step: its optimizer, its learning rate, and what happens when a number is not finite."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kinema.training.config import TrainingConfig
from kinema.training.muon import Muon
from kinema.training.sharding import whole


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW for all, or Muon for the matrices and kernels of repeated blocks and AdamW for the rest.

    What is one number a channel (biases, gains) does not decay. Weights that are split over processes (see `sharding`)
    have AdamW as a part of `Muon`, which works on parts of them; torch's takes no flag for them that skips a step.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}]
    inner = [name for name, p in named if p.ndim >= 2 and config.optimizer == "muon" and _is_inner(name)]
    for muon in (True, False):
        chosen = [p for name, p in named if p.ndim >= 2 and (name in inner) == muon]
        groups.append({"params": chosen, "weight_decay": config.weight_decay, "muon": muon})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "muon" or any(isinstance(p, DTensor) for _, p in named):
        return Muon(groups, lr=config.learning_rate, betas=config.betas)
    return adamw(groups, config.learning_rate, config.betas)


def adamw(parameters: Any, learning_rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW, fused: one launch for many weights, and steps that the device itself leaves out (`found_inf`)."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, fused=True)


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
        prepares_model: whether accelerate copies the network to all processes and averages its gradients; not where its
            weights are split over them.

    Attributes:
        model: the network as it computes in training.
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
        prepares_model: bool = True,
    ) -> None:
        self.accelerator, self.prefix = accelerator, prefix
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self.model: nn.Module = accelerator.prepare(module) if prepares_model else module
        self._optimizer: Any = accelerator.prepare(optimizer)
        self.plain: nn.Module = accelerator.unwrap_model(self.model)
        self.optimizer: torch.optim.Optimizer = self._optimizer.optimizer

    def step(
        self,
        compute_loss: Callable[[nn.Module], tuple[Tensor, dict[str, Tensor]]],
        factor: float,
        allowed: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One step of the optimizer.

        A loss or a gradient that is not finite, in any process, leaves network and optimizer as they were: weights
        are not moved, and what the forward pass did to buffers (codebooks, running means) is undone. That is decided
        on the device; the host does not wait for it.

        Args:
            compute_loss: from the prepared network to the loss and terms to log.
            factor: of the learning rate.
            allowed: 0 where the step is not to be taken; None: it is.

        Returns:
            The terms with `loss` and `grad_norm`, and 1 where the step was taken, else 0.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        before = [buffer.clone() for buffer in self.plain.buffers()]
        with self.accelerator.autocast():
            loss, terms = compute_loss(self.model)
        self.accelerator.backward(loss)
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        norm = whole(norm)
        taken = self._agree(torch.isfinite(loss.detach()) & torch.isfinite(norm), allowed)
        self.optimizer.found_inf = 1 - taken  # pyright: ignore[reportAttributeAccessIssue]  # fused optimizers read it
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(self.plain.buffers(), before, strict=True):
                buffer.copy_(torch.where(taken > 0, buffer, value))
        return terms | {f"{self.prefix}loss": loss.detach(), f"{self.prefix}grad_norm": norm}, taken

    def _agree(self, finite: Tensor, allowed: Tensor | None) -> Tensor:
        """1 where the numbers of all processes are finite and the step is allowed, else 0."""
        taken = finite.float()
        if self.accelerator.num_processes > 1:
            taken = (self.accelerator.reduce(taken, "sum") >= self.accelerator.num_processes).float()  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]
        return taken if allowed is None else taken * allowed


def process_mean(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """Takes a tensor to its mean over the processes; None where there is one process."""
    if accelerator.num_processes == 1:
        return None
    mean: Any = lambda value: accelerator.reduce(value, reduction="mean")  # noqa: E731
    return mean
