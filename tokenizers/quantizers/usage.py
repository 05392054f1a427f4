"""How much of a codebook is used."""

import torch
from jaxtyping import Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.machine import readable

_DENSE_SIZE = 2**20


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
        self._dense: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets everything counted."""
        self._codes = torch.empty(0, dtype=torch.long)
        self._counts = torch.empty(0, dtype=torch.long)
        self._dense = None

    @property
    def codes(self) -> Int[Tensor, " n"]:
        """The codes that occurred, sorted."""
        self._collect()
        return self._codes

    @property
    def counts(self) -> Int[Tensor, " n"]:
        """How often each of `codes` occurred."""
        self._collect()
        return self._counts

    @torch.no_grad()
    def update(self, indices: Int[Tensor, "..."], taken: Tensor | None = None) -> None:
        """Counts the indices of a batch, of any shape.

        Indices on another device than the CPU are counted there, without a wait, where the codebook is not huge; that
        they lie in it is then not checked.

        Args:
            indices: of codes.
            taken: whether the batch counts, one boolean on the device of the indices; None: it does.

        Raises:
            KinemaError: an index lies outside the codebook.
        """
        if indices.numel() == 0:
            return
        if not readable(indices) and self.codebook_size <= _DENSE_SIZE:
            self._update_dense(indices.flatten().long(), taken)
            return
        if taken is not None and not bool(taken):
            return
        codes, numbers = (x.cpu() for x in torch.unique(indices.long(), return_counts=True))
        low, high = int(codes[0]), int(codes[-1])
        if low < 0 or high >= self.codebook_size:
            raise KinemaError(f"`indices` (={low}..{high}) must lie in 0..{self.codebook_size - 1}")
        self.add(codes, numbers)

    def _update_dense(self, indices: Int[Tensor, " n"], taken: Tensor | None) -> None:
        if self._dense is None:
            self._dense = torch.zeros(self.codebook_size, dtype=torch.long, device=indices.device)
        one = torch.ones((), dtype=torch.long, device=indices.device) if taken is None else taken.long()
        self._dense.scatter_add_(0, indices.clamp(0, self.codebook_size - 1), one.expand_as(indices))

    def _collect(self) -> None:
        """Adds what was counted on a device."""
        if self._dense is None:
            return
        dense, self._dense = self._dense.cpu(), None
        codes = dense.nonzero()[:, 0]
        self.add(codes, dense[codes])

    def add(self, codes: Int[Tensor, " n"], counts: Int[Tensor, " n"]) -> None:
        """Adds what another process has counted: its `codes` and `counts`."""
        self._codes, place = torch.unique(torch.cat([self._codes, codes]), return_inverse=True)
        merged = torch.zeros_like(self._codes)
        self._counts = merged.index_add_(0, place, torch.cat([self._counts, counts]))

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
