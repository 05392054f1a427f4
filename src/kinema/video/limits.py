"""Limits of what is read from video files."""

MAX_PIXELS = 2**28 // 3
"""Pixels of the largest frame that is decoded or shown, so that a frame takes at most 256 MiB as RGB in 8 bits."""

LONGEST_STILL = 3600.0
"""Seconds for which a frame may be shown where times are asked for; what is longer is taken for damaged times."""
