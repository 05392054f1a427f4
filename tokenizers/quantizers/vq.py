"""Vector quantisation with a codebook that follows its latents (van den Oord et al., arXiv 1711.00937, app. A.1)."""

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from kinema.errors import KinemaError
from kinema.machine import readable
from kinema.tokenizers.quantizers.base import BottleneckOutput, DiscreteBottleneck, without_autocast

_TABLE = 2**20  # largest table of latents × codes that exists at once, in numbers

# Whether a code is dead is judged by so many of the latents that a code of the mean share gets, and by so many calls,
# whose latents resemble each other. Fewer would take rare codes for dead ones; with more, an encoder that learns fast
# leaves its codes behind before one of them is found dead.
_JUDGED_BY_LATENTS = 10.0
_JUDGED_BY_CALLS = 5.0


class VQ(DiscreteBottleneck):
    """Replaces each latent by the nearest of `codebook_size` vectors; gradients pass straight through.

    In training mode, where gradients flow to the latents (an encoder that is frozen keeps its codebook), a call moves
    every code towards the mean of its latents:

        share ← decay · share + (1 - decay) · batch share
        code  ← code + (1 - decay) · batch share / share · (batch mean - code)

    which is the moving average of sums over that of counts, written so that no number grows with the batch, and
    half-precision weights hold it. A code starts on a latent with a share of 0: its first latents are simply averaged,
    and it takes no smoothing to divide.

    The first such call takes its latents as codes. Dead codes are put on latents of the batch, drawn by the generator
    (Jukebox, arXiv 2005.00341, section 3.1). Dead is one whose share of the last few latents lies below `revive_below`
    times the mean share; the few are ten latents a code, whatever the batch, and five calls at least, so that codes
    come back as fast as the encoder leaves them. Processes of `torch.distributed` see each other's latents, and have
    the same codebook after every call. There is no tensor of latents × codes × channels, and none of latents × codes
    above 2^20 numbers.

    Losses:
        commitment: mean of (z - code)².
    """

    codebook: Tensor
    shares: Tensor
    recent_shares: Tensor
    initialised: Tensor

    def __init__(
        self,
        codebook_size: int,
        latent_channels: int,
        decay: float = 0.99,
        memory: float = 100.0,
        revive_below: float = 0.1,
        cosine: bool = False,
    ):
        """
        Args:
            codebook_size: number of codes.
            latent_channels: channels of a code.
            decay: of the moving averages, per call, at most.
            memory: latents of a code of the mean share that an average spans, at most: it is precise with so many, and
                large batches for few codes follow the encoder faster than `decay` says. Infinity leaves it at `decay`.
            revive_below: recent share of a code, relative to 1 / `codebook_size`, below which it is dead; 0 lets codes
                die.
            cosine: latents and codes have length 1 (arXiv 2110.04627, section 3.2).

        Raises:
            KinemaError: an argument lies outside its range.
        """
        super().__init__()
        if codebook_size < 2:
            raise KinemaError(f"`codebook_size` (={codebook_size}) must be at least 2")
        if latent_channels < 1:
            raise KinemaError(f"`latent_channels` (={latent_channels}) must be at least 1")
        if not 0.0 <= decay < 1.0:
            raise KinemaError(f"`decay` (={decay}) must lie in [0, 1)")
        if not memory > 0.0:
            raise KinemaError(f"`memory` (={memory}) must be above 0")
        if not 0.0 <= revive_below < 1.0:
            raise KinemaError(f"`revive_below` (={revive_below}) must lie in [0, 1)")
        self.codebook_size = codebook_size
        self.latent_channels = self.in_channels = latent_channels
        self.decay, self.memory, self.revive_below, self.cosine = decay, memory, revive_below, cosine
        codes = torch.randn(codebook_size, latent_channels)
        self.register_buffer("codebook", normalize(codes) if cosine else codes)
        self.register_buffer("shares", torch.zeros(codebook_size))
        self.register_buffer("recent_shares", torch.full((codebook_size,), 1.0 / codebook_size))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        z = self._project(h.float())
        vectors = rearrange(z.detach(), "b c t h w -> (b t h w) c")
        follows = self.training and torch.is_grad_enabled() and z.requires_grad
        if follows:
            self._put((~self.initialised).expand(self.codebook_size), vectors, generator)
            self.initialised.fill_(True)
        indices = self.latents_to_indices(z)
        code = self._look_up(indices)
        if follows:
            self._follow(vectors, indices.flatten(), generator)
        latents = z + (code - z).detach()
        losses = {"commitment": (z - code).square().mean()}
        return BottleneckOutput(latents=latents, mode=latents, indices=indices, losses=losses)

    @torch.no_grad()
    def latents_to_indices(self, latents: Float[Tensor, "b z t h w"]) -> Int[Tensor, "b t h w"]:
        vectors = rearrange(self._project(latents.float()), "b z t h w -> (b t h w) z")
        codes = self.codebook.float()
        half_squares = codes.square().sum(1) / 2
        # |z - e|² / 2 without |z|² / 2, which is the same for all codes. Autocast would compare in bfloat16.
        with without_autocast(vectors):
            chunks = vectors.split(max(_TABLE // self.codebook_size, 1))
            nearest = torch.cat([torch.addmm(half_squares, x, codes.T, alpha=-1).argmin(1) for x in chunks])
        b, _, t, h, w = latents.shape
        return nearest.view(b, t, h, w)

    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        self._check_indices(indices)
        return self._look_up(indices)

    def _look_up(self, indices: Tensor) -> Tensor:
        return self.codebook.float()[indices.long()].movedim(-1, 1)

    def _project(self, z: Tensor) -> Tensor:
        return normalize(z, dim=1) if self.cosine else z

    @torch.no_grad()
    def _follow(
        self, vectors: Float[Tensor, "n z"], indices: Int[Tensor, " n"], generator: torch.Generator | None
    ) -> None:
        """One step of the moving averages, then new places for dead codes."""
        # Not bincount, whose size depends on values.
        counts = vectors.new_zeros(self.codebook_size).index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        sums = _sum_by_index(vectors, indices, self.codebook_size)
        if _in_processes():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        codes = self.codebook.float()
        batch_share = counts / counts.sum()
        latents_per_code = counts.sum() / self.codebook_size
        decay = (1 - latents_per_code / self.memory).clamp(0.0, self.decay)
        share = decay * self.shares.float() + (1 - decay) * batch_share
        means = sums / counts.clamp_min(1.0).unsqueeze(1)
        # A code that got nothing has a weight of 0 and stays; where its share has run out, 0 / 0 must not move it.
        weight = (1 - decay) * batch_share / share.clamp_min(torch.finfo(torch.float32).tiny)
        codes = codes + weight.unsqueeze(1) * (means - codes)
        self.codebook.copy_(normalize(codes) if self.cosine else codes)
        self.shares.copy_(share)
        calls = (_JUDGED_BY_LATENTS / latents_per_code).clamp_min(_JUDGED_BY_CALLS)
        recent = self.recent_shares.float().lerp(batch_share, 1 / calls)
        self.recent_shares.copy_(recent)
        self._put(recent < self.revive_below / self.codebook_size, vectors, generator)

    @torch.no_grad()
    def _put(self, which: Tensor, vectors: Float[Tensor, "n z"], generator: torch.Generator | None) -> None:
        """Puts codes on latents of the batch, from all processes in turn, as different ones as there are."""
        if readable(which) and not which.any():
            return
        size = self.codebook_size
        device = generator.device if generator is not None else vectors.device
        order = torch.randperm(len(vectors), generator=generator, device=device).to(vectors.device)
        drawn = vectors[order.repeat(-(-size // len(vectors)))[:size]]
        if _in_processes():
            everyone = [torch.empty_like(drawn) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, drawn.contiguous())
            drawn = torch.stack(everyone, dim=1).flatten(0, 1)[:size]
        # The first code that moves takes the first latent, the next one the next: no host needs to know how many.
        taken = drawn[(which.cumsum(0) - 1).clamp_min(0)].to(self.codebook.dtype)
        self.codebook.copy_(torch.where(which[:, None], taken, self.codebook))
        self.shares.masked_fill_(which, 0.0)
        # Twice what a dead code has: one that is missed by the next latents as well is soon put elsewhere.
        self.recent_shares.masked_fill_(which, min(2.0 * self.revive_below, 1.0) / size)


def _sum_by_index(vectors: Float[Tensor, "n z"], indices: Int[Tensor, " n"], size: int) -> Float[Tensor, "k z"]:
    """Sums of the vectors of each index, in an order that does not change from run to run."""
    sums = vectors.new_zeros(size, vectors.shape[1])
    if vectors.is_cuda:
        # It sorts first, while `index_add_` adds there in the order that threads happen to run.
        return sums.index_put_((indices,), vectors, accumulate=True)
    return sums.index_add_(0, indices, vectors)


def _in_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
