"""Entry point of `python -m kinema`, the same as the command `kinema`."""

import sys

from kinema.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
