"""Trains a video tokenizer: `accelerate launch training/train_tokenizer.py PRESET --data DIR|toybox ...`."""

import sys

from kinema.errors import KinemaError
from kinema.machine import share_cores

if __name__ == "__main__":
    share_cores()
    from kinema.training.tokenizer import main

    try:
        main()
    except KinemaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
