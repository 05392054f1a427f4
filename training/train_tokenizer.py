"""Trains a video tokenizer: `accelerate launch training/train_tokenizer.py PRESET --data DIR|toybox ...`."""

import sys

from kinema.errors import KinemaError
from kinema.training.tokenizer import main

if __name__ == "__main__":
    try:
        main()
    except KinemaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
