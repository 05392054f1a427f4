"""Context parallelism: several processes share the tokens of each clip (DeepSpeed-Ulysses, arXiv 2309.14509).

Each process computes its slice of the tokens. For self-attention, an all-to-all gives it all tokens of its part of the
heads, so that every pattern and backend works as in one process; another all-to-all brings it back to its slice.

Shapes: b batch, n tokens in the order of the blocks, m tokens of one process, k heads, e head width, g groups of tokens
that share a timestep, d width, p processes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError


def context_group(size: int) -> "dist.ProcessGroup":
    """Makes groups of processes of successive ranks, and returns that of this process. All processes call this.

    Args:
        size: processes of a group.

    Raises:
        KinemaError: the number of processes is no multiple of it.
    """
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if size < 2 or world_size % size:
        raise KinemaError(
            f"`context_parallel` (={size}) must be at least 2, and divide the number of processes (={world_size})"
        )
    own, _ = dist.new_subgroups(group_size=size)
    return own


class ContextParallel:
    """The processes that share each clip.

    Args:
        group: these processes.
    """

    def __init__(self, group: "dist.ProcessGroup") -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ContextParallel":
        """Copies of a model share clips in the same group, which itself cannot be copied."""
        return self

    def check_heads(self, num_heads: int) -> None:
        """Raises an error where the heads cannot be shared.

        Raises:
            KinemaError: their number is no multiple of the group's size.
        """
        if num_heads % self.size:
            raise KinemaError(
                f"`num_heads` (={num_heads}) must be divisible by the number of processes that share a clip"
                f" (={self.size})"
            )

    def heads(self, num_heads: int) -> slice:
        """The heads whose attention this process computes."""
        own = num_heads // self.size
        return slice(self.rank * own, (self.rank + 1) * own)


@dataclass(frozen=True, eq=False)
class TokenShare:
    """The slice of the tokens that a process computes.

    Slices are equally long; where the tokens run out, the last token is repeated. What is computed of repeats is cut
    away before tokens meet, so that they change neither results nor gradients.

    Attributes:
        parallel: the processes.
        num_tokens: tokens of all slices.
    """

    parallel: ContextParallel
    num_tokens: int

    @property
    def length(self) -> int:
        """Tokens of a slice."""
        return math.ceil(self.num_tokens / self.parallel.size)

    def own(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """The own slice of something of every token."""
        return x.index_select(dim, self._places(1, x.device).clamp_max(self.num_tokens - 1))

    def own_groups(self, x: Float[Tensor, "b g _ d"]) -> Float[Tensor, "b own_g _ d"]:
        """The own slice of something of every group of tokens: one value, or one for each run of as many tokens as
        divide both the groups and the slices."""
        if x.shape[1] == 1:
            return x
        group = self.num_tokens // x.shape[1]
        places = self._places(math.gcd(group, self.length), x.device)
        return x.index_select(1, (places // group).clamp_max(x.shape[1] - 1))

    def _places(self, step: int, device: torch.device) -> Tensor:
        """Every so many places of the own slice."""
        first = self.parallel.rank * self.length
        return torch.arange(first, first + self.length, step, device=device)

    def gather(self, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """All tokens, in every process, from their slices.

        Going back, a slice gets the sum of the gradients that all processes have for it. Where they have the same loss,
        gradients of weights are therefore parts that have to be averaged, as DDP does, not added.
        """
        copies = x[None].expand(self.parallel.size, *x.shape)
        return rearrange(self._exchange(copies), "p b m d -> b (p m) d")[:, : self.num_tokens]

    def to_heads(
        self, query: Float[Tensor, "b m k e"], key: Float[Tensor, "b m k e"], value: Float[Tensor, "b m k e"]
    ) -> tuple[Float[Tensor, "b n own_k e"], Float[Tensor, "b n own_k e"], Float[Tensor, "b n own_k e"]]:
        """Queries, keys and values of the own slice and all heads, to those of all tokens and the own heads."""
        parts = rearrange(torch.stack((query, key, value)), "s b m (p k) e -> p s b m k e", p=self.parallel.size)
        whole = rearrange(self._exchange(parts), "p s b m k e -> s b (p m) k e")[:, :, : self.num_tokens]
        return whole[0], whole[1], whole[2]

    def to_tokens(self, x: Float[Tensor, "b n own_k e"]) -> Float[Tensor, "b m k e"]:
        """What attention gives for all tokens and the own heads, to that of the own slice and all heads."""
        size = self.parallel.size
        filled = F.pad(x, (0, 0, 0, 0, 0, size * self.length - self.num_tokens))
        parts = rearrange(filled, "b (p m) k e -> p b m k e", p=size)
        return rearrange(self._exchange(parts), "p b m k e -> b m (p k) e")

    def _exchange(self, parts: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
        return _all_to_all(parts, self.parallel.group)


class _AllToAll(torch.autograd.Function):
    """Part i goes to process i, which puts it in the place of the sender. Its own adjoint."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: "dist.ProcessGroup") -> Tensor:
        ctx.group = group
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None]:
        return _AllToAll.apply(gradients[0], ctx.group), None


# Left out where a block is compiled.
_all_to_all: Any = torch.compiler.disable(_AllToAll.apply)  # pyright: ignore[reportArgumentType]
