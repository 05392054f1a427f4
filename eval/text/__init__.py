"""How well clips match their prompts, and how alike a clip's frames stay to a network that knows pictures.

The files: `clip` (any CLIP by hub id or path), `clip_score`, `frame_consistency`. Nothing is imported here, so that the
table of metrics costs no torch.
"""
