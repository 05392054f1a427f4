"""Muon for matrices and kernels, AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix
by the nearest semi-orthogonal matrix, so that every direction of a layer learns at the same rate. Updates are scaled to
the root mean square of AdamW's (arXiv 2502.16982, eq. 4), so that one learning rate serves both.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.machine import computes_bf16

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_UPDATE_RMS = 0.2


@torch.no_grad()
def orthogonalize(matrix: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """About the nearest semi-orthogonal matrix: singular values end in 0.7..1.2 (a quintic Newton-Schulz iteration)."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.bfloat16() if computes_bf16(matrix.device) else matrix.float()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if transposed else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with ``muon=True`` hold matrices and kernels (flattened after the first axis); others are AdamW's.

    Args:
        params: parameter groups, each with `muon` and optionally `weight_decay`.
        lr: learning rate of all groups.
        betas: AdamW's decays.
        momentum: decay of Muon's (Nesterov) momentum.
    """

    def __init__(self, params: list[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, betas=betas, momentum=momentum, weight_decay=0.0, muon=False, eps=1e-8))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalize(gradient.lerp(state["momentum"], group["momentum"]).flatten(1))
        scale = _UPDATE_RMS * max(direction.shape) ** 0.5
        parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """arXiv 1711.05101, algorithm 2."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].item(), group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - beta1**step))
