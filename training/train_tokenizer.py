"""Trains a video tokenizer: `accelerate launch training/train_tokenizer.py PRESET --data DIR|toybox ...`."""

import sys

from kinema.apps.cli import report
from kinema.machine import share_cores

if __name__ == "__main__":
    share_cores()

    def train() -> None:
        from kinema.training.tokenizer import main

        main()

    sys.exit(report(train))
