"""Trains a video diffusion transformer.

`accelerate launch training/train_diffusion.py PRESET --tokenizer DIR --data DIR|toybox ...`
"""

import sys

from kinema.errors import KinemaError
from kinema.machine import share_cores

if __name__ == "__main__":
    share_cores()
    from kinema.training.diffusion import main

    try:
        main()
    except KinemaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
