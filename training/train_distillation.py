"""Distils a pipeline into one that needs few steps and no guidance.

`accelerate launch training/train_distillation.py PRESET --teacher DIR --data DIR|toybox ...`
"""

import sys

from kinema.apps.cli import report
from kinema.machine import share_cores

if __name__ == "__main__":
    share_cores()

    def train() -> None:
        from kinema.training.distillation import main

        main()

    sys.exit(report(train))
