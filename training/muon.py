"""Muon for matrices and kernels, AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix
by the nearest semi-orthogonal matrix, so that every direction of a layer learns at the same rate. Updates are scaled to
the root mean square of AdamW's (arXiv 2502.16982, eq. 4), so that one learning rate serves both.

Shapes: k matrices of one shape, m rows, n columns.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

from kinema.machine import computes_bf16
from kinema.training.foreach import foreach_add_, foreach_copy_, foreach_mul_, in_chunks
from kinema.training.sharding import local, on_whole

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_UPDATE_RMS = 0.2


@torch.no_grad()
def orthogonalize(matrices: Float[Tensor, "*k m n"]) -> Float[Tensor, "*k m n"]:
    """About the nearest semi-orthogonal matrices: singular values end in 0.7..1.2 (a quintic Newton-Schulz iteration).

    Args:
        matrices: one, or several of one shape.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16() if computes_bf16(matrices.device) else matrices.float()
    transposed = x.shape[-2] > x.shape[-1]
    x = x.mT if transposed else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = x.reshape(-1, *x.shape[-2:])
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if transposed else x).reshape(matrices.shape).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with ``muon=True`` hold matrices and kernels (flattened after the first axis); others are AdamW's.

    Matrices of one shape are updated together; where weights are split over processes, each orthogonalizes a share of
    the matrices. A tensor `found_inf`, as torch's fused optimizers have it, makes a step leave weights and state as
    they are where it is 1, without the host knowing.

    Args:
        params: parameter groups, each with `muon` and optionally `weight_decay`.
        lr: learning rate of all groups.
        betas: AdamW's decays.
        momentum: decay of Muon's (Nesterov) momentum.

    Attributes:
        found_inf: 1 on the weights' device where the next step is to be left out; None: it is taken.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: list[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95):
        # `fused` is of AdamW's groups; torch puts the counts of steps of such groups on the weights' device.
        defaults = dict(lr=lr, betas=betas, momentum=momentum, weight_decay=0.0, muon=False, eps=1e-8, fused=True)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            taken = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                self._adam(taken, group)
                continue
            for alike in _stacks(taken):
                self._muon(alike, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Updates matrices of one shape."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        held = [local(self.state[parameter]["momentum"]) for parameter in parameters]
        gradients = torch.stack([_gradient(parameter) for parameter in parameters])
        taken: Tensor | float = 1.0
        if self.found_inf is not None:
            # What is not finite would spread through a product with 0.
            gradients = torch.where(self.found_inf > 0, 0.0, gradients)
            taken = 1 - self.found_inf
        momenta = torch.stack(held).lerp_(gradients, (1 - group["momentum"]) * taken)
        foreach_copy_(held, momenta.unbind())
        first = parameters[0]
        directions = on_whole(gradients.lerp(momenta, group["momentum"]), first, _orthogonal)
        scale = _UPDATE_RMS * max(first.shape[0], math.prod(first.shape[1:])) ** 0.5
        updates = directions * (-group["lr"] * scale * taken)
        weights = [local(parameter) for parameter in parameters]
        foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"] * taken)
        foreach_add_(weights, updates.unbind())

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            [local(parameter) for parameter in parameters],
            [_gradient(parameter) for parameter in parameters],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return local(parameter.grad)


def _orthogonal(stack: Tensor) -> Tensor:
    """Of matrices, or of kernels as matrices."""
    return orthogonalize(stack.flatten(2)).view_as(stack)


def _stacks(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Weights of one shape together, as many as the limit on memory allows."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for alike in by_shape.values():
        yield from (chunk for (chunk,) in in_chunks(alike))
