"""Trains a video diffusion transformer.

`accelerate launch training/train_diffusion.py PRESET --tokenizer DIR --data DIR|toybox ...`
"""

import sys

from kinema.apps.cli import report
from kinema.machine import share_cores

if __name__ == "__main__":
    share_cores()

    def train() -> None:
        from kinema.training.diffusion import main

        main()

    sys.exit(report(train))
