"""Sparse attention in diffusers transformers. To add a family, add a file and a line in `TRANSFORMER_FAMILIES`."""

from kinema.generation.attention.plugin.apply import (
    TRANSFORMER_FAMILIES,
    apply_sparse_attention,
    remove_sparse_attention,
)

__all__ = ["TRANSFORMER_FAMILIES", "apply_sparse_attention", "remove_sparse_attention"]
