"""Sparse attention in published transformers of diffusers. A new family is a file and a line in `FAMILIES`."""

from kinema.generation.attention.plugin.apply import FAMILIES, apply_sparse_attention, remove_sparse_attention

__all__ = ["FAMILIES", "apply_sparse_attention", "remove_sparse_attention"]
