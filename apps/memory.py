"""How much memory a process may still take, so that a command refuses what would only get it killed."""

from pathlib import Path
from typing import Any

from kinema.errors import KinemaError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much the group of the process may take: control groups of version 2, and of version 1."""

BYTES_PER_WIDTH = 45
"""Bytes for each pixel of a frame and each channel of a tokenizer's first stage that a frame takes at the least:
49 with the embedded tokenizers, widths of 24, on frames of 1024x1024 and 2048x2048."""

BYTES_PER_PIXEL = 3 * (4 + 4 + 1)
"""Bytes for each pixel of a whole clip: decoded, in [0, 1], and as bytes."""


def check_memory(tokenizer: Any, height: int, width: int, what: str, num_frames: int = 0) -> None:
    """Refuse clips that do not fit in the memory of this machine: the process would be killed.

    Args:
        tokenizer: A causal one on the CPU; others are not checked.
        height: Of the frames; at least one at a time passes the tokenizer.
        width: Likewise.
        what: What errors call the clip.
        num_frames: Those of a clip that is in memory as a whole; 0 for one that comes and goes in pieces.

    Raises:
        KinemaError: It takes more than is free.
    """
    from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer

    free = free_memory()
    if not isinstance(tokenizer, CausalVideoTokenizer) or tokenizer.device.type != "cpu" or free is None:
        return
    widths = [tokenizer.config[name][0] for name in ("encoder_widths", "decoder_widths")]
    needed = height * width * (max(widths) * BYTES_PER_WIDTH + num_frames * BYTES_PER_PIXEL)
    if needed > free:
        size = f"{height}x{width}" if num_frames == 0 else f"{num_frames}x{height}x{width}"
        raise KinemaError(
            f"{what} must have smaller frames: {size} takes {needed / 2**30:.1f} GiB of memory, and"
            f" {free / 2**30:.1f} GiB are free"
        )


def free_memory() -> int | None:
    """Bytes of RAM that are free or can be freed, within the limit of a container; None where Linux is not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for limit in LIMITS:
        try:
            free.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such version, or "max"
            continue
    return min(free, default=None)
