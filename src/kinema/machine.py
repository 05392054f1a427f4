"""How kinema's programs use the machine."""

import os


def share_cores() -> None:
    """Lets waiting threads sleep; to be called before torch is imported.

    By default OpenMP's threads spin while they wait for each other. On a machine that does anything else at the same
    time that is a disaster for small models: with two threads and one core busy, five sampler steps took 19.8 s
    spinning and 0.4 s sleeping. The user's own setting of `OMP_WAIT_POLICY` stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
