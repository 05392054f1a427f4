"""Trains the embedded model anew: `python training/train_embedded.py --output runs/embedded --sprites sprites/`."""

import sys

from kinema.apps.cli import report
from kinema.machine import share_cores

if __name__ == "__main__":
    share_cores()

    def train() -> None:
        from kinema.training.recipes.toybox_128 import main

        main()

    sys.exit(report(train))
