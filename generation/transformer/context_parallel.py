"""Context parallelism: the tokens of each clip are sharded over processes (DeepSpeed-Ulysses, arXiv 2309.14509).

Each process computes a shard of the tokens. For self-attention, an all-to-all gives it all tokens of a subset of the
heads, so that every pattern and backend works as in one process; a second all-to-all restores the token shards.

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
    """Create groups of consecutive ranks and return the group of this process. All processes must call this.

    Args:
        size: number of processes per group.

    Raises:
        KinemaError: `size` is below 2, or does not divide the number of processes.
    """
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if size < 2 or world_size % size:
        raise KinemaError(
            f"`context_parallel` (={size}) must be at least 2, and divide the number of processes (={world_size})"
        )
    group, _ = dist.new_subgroups(group_size=size)
    return group


class ContextParallel:
    """The group of processes that share each clip.

    Args:
        group: the process group.
    """

    def __init__(self, group: "dist.ProcessGroup") -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ContextParallel":
        """Return this object: process groups cannot be copied, and copies of a model use the same group."""
        return self

    def check_heads(self, num_heads: int) -> None:
        """Validate the number of heads.

        Raises:
            KinemaError: `num_heads` is not divisible by the size of the group.
        """
        if num_heads % self.size:
            raise KinemaError(
                f"`num_heads` (={num_heads}) must be divisible by the number of processes that share a clip"
                f" (={self.size})"
            )

    def heads(self, num_heads: int) -> slice:
        """Return the heads whose attention this process computes."""
        num_local = num_heads // self.size
        return slice(self.rank * num_local, (self.rank + 1) * num_local)


@dataclass(frozen=True, eq=False)
class TokenShard:
    """The tokens that this process computes.

    Shards have equal length; the last ones are padded by repeating the last token. Padding is removed before attention
    and gathering, so that it affects neither results nor gradients.

    Attributes:
        parallel: the group of processes.
        num_tokens: number of tokens over all shards.
    """

    parallel: ContextParallel
    num_tokens: int

    @property
    def length(self) -> int:
        """Number of tokens per shard."""
        return math.ceil(self.num_tokens / self.parallel.size)

    def shard(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Select this process' shard of per-token values."""
        return x.index_select(dim, self._positions(1, x.device).clamp_max(self.num_tokens - 1))

    def shard_groups(self, x: Float[Tensor, "b g _ d"]) -> Float[Tensor, "b local_g _ d"]:
        """Select this process' shard of per-group values: one, or one per gcd(group size, shard length) tokens."""
        if x.shape[1] == 1:
            return x
        group = self.num_tokens // x.shape[1]
        positions = self._positions(math.gcd(group, self.length), x.device)
        return x.index_select(1, (positions // group).clamp_max(x.shape[1] - 1))

    def _positions(self, step: int, device: torch.device) -> Tensor:
        """Return every `step`-th position of this process' shard."""
        first = self.parallel.rank * self.length
        return torch.arange(first, first + self.length, step, device=device)

    def gather(self, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """Gather the tokens of all shards in every process.

        In the backward pass, a shard gets the sum of the gradients of all processes. If all processes compute the same
        loss, gradients of weights must therefore be averaged over processes, as DDP does, not summed.
        """
        copies = x[None].expand(self.parallel.size, *x.shape)
        return rearrange(self._exchange(copies), "p b m d -> b (p m) d")[:, : self.num_tokens]

    def to_heads(
        self, query: Float[Tensor, "b m k e"], key: Float[Tensor, "b m k e"], value: Float[Tensor, "b m k e"]
    ) -> tuple[Float[Tensor, "b n local_k e"], Float[Tensor, "b n local_k e"], Float[Tensor, "b n local_k e"]]:
        """Exchange queries, keys and values: from local tokens and all heads to all tokens and local heads."""
        parts = rearrange(torch.stack((query, key, value)), "s b m (p k) e -> p s b m k e", p=self.parallel.size)
        whole = rearrange(self._exchange(parts), "p s b m k e -> s b (p m) k e")[:, :, : self.num_tokens]
        return whole[0], whole[1], whole[2]

    def to_tokens(self, x: Float[Tensor, "b n local_k e"]) -> Float[Tensor, "b m k e"]:
        """Exchange attention outputs: from all tokens and local heads to local tokens and all heads."""
        size = self.parallel.size
        filled = F.pad(x, (0, 0, 0, 0, 0, size * self.length - self.num_tokens))
        parts = rearrange(filled, "b (p m) k e -> p b m k e", p=size)
        return rearrange(self._exchange(parts), "p b m k e -> b m (p k) e")

    def _exchange(self, parts: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
        return _all_to_all(parts, self.parallel.group)


class _AllToAll(torch.autograd.Function):
    """All-to-all: part i is sent to process i, which stores it at the sender's index. It is its own adjoint."""

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


# Not compiled inside compiled blocks.
_all_to_all: Any = torch.compiler.disable(_AllToAll.apply)  # pyright: ignore[reportArgumentType]
