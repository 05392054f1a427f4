"""Draws apps/assets/first_frame.png, the picture that `make demo` gives as a first frame.

python scripts/first_frame.py sprites/ apps/assets/first_frame.png
"""

import sys
from pathlib import Path

from PIL import Image

from kinema.training.data.toybox import Toybox
from kinema.video import to_uint8, write_image

SEED = 7  # not that of the clips that the embedded model was trained on


def main() -> None:
    """Draws the first clip in which a sailboat moves to the left on the sea."""
    sprites, target = map(Path, sys.argv[1:])
    world = Toybox(sprites, objects=["sailboat"], num_frames=33, height=128, width=128, seed=SEED)
    wanted = (s for i in range(10_000) for s in world.specs([i]) if s.background == "sea")
    spec = next(s for s in wanted if s.objects[0].motion == "left")
    frame = to_uint8(world.render([spec]).video[0])[0].numpy()
    write_image(target, Image.fromarray(frame), overwrite=True)


if __name__ == "__main__":
    main()
