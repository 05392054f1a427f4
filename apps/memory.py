"""How much memory a process may still take, so that a command refuses what would only get it killed."""

from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much the group of the process may take: control groups of version 2, and of version 1."""


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
