"""One optimizer step of a network, skipped on the device if a loss or gradient is not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kinema.training.config import TrainingConfig
from kinema.training.muon import Muon
from kinema.training.sharding import whole
from kinema.training.task import StepLoss


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Create AdamW, or Muon for the matrices and kernels of repeated blocks with AdamW for the rest.

    Biases and gains (one number a channel) have no weight decay. Sharded weights (see `sharding`) always use the `Muon`
    class, for its AdamW: torch's own cannot skip a step of sharded weights on the device (`found_inf`).
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
    """Create fused AdamW: few kernel launches, and steps that the device can skip (`found_inf`)."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, fused=True)


def _is_inner(name: str) -> bool:
    """Whether a weight belongs to a repeated block; Muon is not meant for embeddings, output heads and tables."""
    return ("blocks." in name or "stages." in name) and not name.endswith("table")


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        terms: the loss's terms, with `loss` and `grad_norm`.
        taken: 1 if the step was taken, else 0; on the device.
        outputs: those of the loss.
    """

    terms: dict[str, Tensor]
    taken: Tensor
    outputs: Any


class Learner:
    """A network with its optimizer.

    Args:
        module: the network.
        optimizer: of its weights.
        learning_rate: peak learning rate.
        max_grad_norm: gradients are clipped to this norm.
        accelerator: prepares network and optimizer.
        prefix: prefix of the names of its loss and gradient norm in the log.
        prepares_model: whether accelerate wraps the network (DDP); not for sharded weights.

    Attributes:
        model: the network, wrapped for training.
        unwrapped_model: the network itself.
        optimizer: the optimizer, unwrapped.
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
        self.unwrapped_model: nn.Module = accelerator.unwrap_model(self.model)
        self.optimizer: torch.optim.Optimizer = self._optimizer.optimizer

    def step(
        self,
        compute_loss: Callable[[nn.Module], StepLoss],
        factor: float,
        allowed: Tensor | None = None,
    ) -> StepResult:
        """Take one optimizer step.

        If a loss or gradient is not finite in any process, the step is skipped in all of them: weights and optimizer
        state stay, and changes of buffers by the forward pass (codebooks, running means) are undone. The device decides
        this; the host does not synchronise.

        Args:
            compute_loss: maps the wrapped network to its loss.
            factor: multiplies the peak learning rate.
            allowed: scalar on the device, 0 to skip the step; None: take it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        before = [buffer.clone() for buffer in self.unwrapped_model.buffers()]
        with self.accelerator.autocast():
            loss, terms, outputs = compute_loss(self.model)
        self.accelerator.backward(loss)
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        norm = whole(norm)
        taken = self._agree(torch.isfinite(loss.detach()) & torch.isfinite(norm), allowed)
        self.optimizer.found_inf = 1 - taken  # pyright: ignore[reportAttributeAccessIssue]  # fused optimizers read it
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(self.unwrapped_model.buffers(), before, strict=True):
                buffer.copy_(torch.where(taken > 0, buffer, value))
        terms = terms | {f"{self.prefix}loss": loss.detach(), f"{self.prefix}grad_norm": norm}
        return StepResult(terms, taken, outputs)

    def _agree(self, finite: Tensor, allowed: Tensor | None) -> Tensor:
        """Return 1 if the numbers are finite in all processes and the step is allowed, else 0."""
        taken = finite.float()
        if self.accelerator.num_processes > 1:
            taken = (self.accelerator.reduce(taken, "sum") >= self.accelerator.num_processes).float()  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]
        return taken if allowed is None else taken * allowed


def process_mean(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """Return a function that averages a tensor over the processes; None for a single process."""
    if accelerator.num_processes == 1:
        return None
    mean: Any = lambda value: accelerator.reduce(value, reduction="mean")  # noqa: E731
    return mean
