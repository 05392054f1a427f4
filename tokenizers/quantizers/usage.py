"""How much of a codebook is used."""

import torch
from jaxtyping import Int
from torch import Tensor

from kinema.errors import KinemaError


class CodebookUsage:
    """Counts code indices as they come; memory grows with the codes seen, not with the codebook.

    `update` with the indices of each batch, `compute` when a figure is wanted, `reset` to start over.
    """

    def __init__(self, codebook_size: int):
        """
        Args:
            codebook_size: number of codes, of any size: implicit codebooks have 2^18 and more.

        Raises:
            KinemaError: there is no code.
        """
        if codebook_size < 1:
            raise KinemaError(f"`codebook_size` (={codebook_size}) must be at least 1")
        self.codebook_size = codebook_size
        self.reset()

    def reset(self) -> None:
        """Forgets everything counted."""
        self.codes = torch.empty(0, dtype=torch.long)
        self.counts = torch.empty(0, dtype=torch.long)

    @torch.no_grad()
    def update(self, indices: Int[Tensor, "..."]) -> None:
        """Counts the indices of a batch, of any shape.

        Raises:
            KinemaError: an index lies outside the codebook.
        """
        if indices.numel() == 0:
            return
        codes, counts = (x.cpu() for x in torch.unique(indices.long(), return_counts=True))
        low, high = int(codes[0]), int(codes[-1])
        if low < 0 or high >= self.codebook_size:
            raise KinemaError(f"`indices` (={low}..{high}) must lie in 0..{self.codebook_size - 1}")
        self.add(codes, counts)

    def add(self, codes: Int[Tensor, " n"], counts: Int[Tensor, " n"]) -> None:
        """Adds what another process has counted: its `codes` and `counts`."""
        self.codes, place = torch.unique(torch.cat([self.codes, codes]), return_inverse=True)
        merged = torch.zeros_like(self.codes)
        self.counts = merged.index_add_(0, place, torch.cat([self.counts, counts]))

    def compute(self) -> dict[str, float]:
        """The figures so far.

        Returns:
            `codebook_usage`: share of the codes that occurred, in [0, 1]. `perplexity`: exp of the entropy of the
            codes' frequencies, in [1, codebook_size]; with all codes equally frequent it is their number. Fewer
            indices than codes can reach neither's upper end.

        Raises:
            KinemaError: nothing was counted.
        """
        if len(self.codes) == 0:
            raise KinemaError("`indices` (=none so far) must have been given to `update`, at least one")
        frequencies = self.counts.double() / self.counts.sum()
        entropy = -(frequencies * frequencies.log()).sum()
        return {"codebook_usage": len(self.codes) / self.codebook_size, "perplexity": float(entropy.exp())}
