"""Limits for reading video files."""

MAX_PIXELS = 2**28 // 3
"""Maximum pixels of a frame, so that a frame takes at most 256 MiB in 8-bit RGB."""

LONGEST_STILL = 3600.0
"""Maximum duration of a frame in seconds when reading times; longer durations are treated as damage."""
