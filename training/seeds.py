"""Random numbers of a training as a function of (seed, rank, step, purpose).

A run that stops and resumes draws what it would have drawn, with no generator state to store (EDM2, Karras et al.
2024, does the same).
"""

import hashlib

import torch


def derived_seed(seed: int, rank: int, step: int, purpose: str) -> int:
    """A 63-bit seed, different for different arguments."""
    digest = hashlib.sha256(f"{seed}/{rank}/{step}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def step_generator(
    seed: int, rank: int, step: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for one purpose in one step."""
    return torch.Generator(device).manual_seed(derived_seed(seed, rank, step, purpose))
