"""Sparse attention in diffusers transformers. To add a family, add a file and a line in `TRANSFORMER_FAMILIES`."""

from kinema.generation.attention.plugin.apply import TRANSFORMER_FAMILIES as TRANSFORMER_FAMILIES
from kinema.generation.attention.plugin.apply import apply_sparse_attention as apply_sparse_attention
from kinema.generation.attention.plugin.apply import remove_sparse_attention as remove_sparse_attention
