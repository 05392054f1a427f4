"""Which background a clip has, and what it looks like where the object hides it: the renderer's own, fitted."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kinema.training.data.toybox.backgrounds import paint
from kinema.training.data.toybox.schema import BACKGROUNDS, NUM_BACKGROUND_PARAMETERS

_TOLERANCE = 0.12  # in units of [-1, 1]: a pixel that is further off counts as not background, however far it is
_ROUNDS = (0.1, 0.04, 0.015)  # spread of the parameters tried around the best so far
_TRIES = 24
_BLEND = (0.08, 0.16)  # the clip's own median is taken where it is this near to the fit, the fit where it is further


class BackgroundModel:
    """Rendered examples of every background, and a search around the nearest.

    Args:
        height: Frame height in pixels.
        width: Frame width in pixels.
        num_examples: Examples of each background.
    """

    def __init__(self, height: int, width: int, num_examples: int = 192) -> None:
        unit = min(height, width) / 64
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / unit, (torch.arange(width) + 0.5) / unit, indexing="ij")
        self._x, self._y = x[None], y[None]
        self._parameters = torch.quasirandom.SobolEngine(NUM_BACKGROUND_PARAMETERS, scramble=True, seed=0).draw(
            num_examples
        )
        self._tries = torch.randn(
            len(_ROUNDS), _TRIES, NUM_BACKGROUND_PARAMETERS, generator=torch.Generator().manual_seed(0)
        )
        self._examples = torch.stack([self._draw(name, self._parameters) for name in BACKGROUNDS])

    def fit(self, median: Float[Tensor, "3 h w"]) -> tuple[str, Float[Tensor, "3 h w"]]:
        """Names the background and shows it without the object.

        Args:
            median: Of the clip over time, at half the frame's size, in [-1, 1].

        Returns:
            Its name and the picture of it, at half the frame's size.
        """
        costs = _cost(self._examples, median)
        kind = int(costs.amin(1).argmin())
        name = BACKGROUNDS[kind]
        chosen = int(costs[kind].argmin())
        best, lowest, image = self._parameters[chosen], costs[kind, chosen], self._examples[kind, chosen]
        for spread, tries in zip(_ROUNDS, self._tries, strict=True):
            # Phases wrap around; for the others a value that wraps is merely a bad try.
            candidates = torch.remainder(best + spread * tries, 1)
            images = self._draw(name, candidates)
            found = _cost(images, median)
            if found.min() < lowest:
                chosen = int(found.argmin())
                best, lowest, image = candidates[chosen], found[chosen], images[chosen]
        # The clip itself knows its texture better than the fit does, wherever it does not show the object.
        near, far = _BLEND
        share = ((far - (median - image).abs().amax(0)) / (far - near)).clamp(0, 1)
        return name, image + share * (median - image)

    def _draw(self, name: str, parameters: Float[Tensor, "n p"]) -> Float[Tensor, "n 3 h w"]:
        count = len(parameters)
        x, y = (each.expand(count, 1, -1, -1) for each in (self._x, self._y))
        colours = rearrange(paint(name, x, y, parameters), "n c 1 h w -> n c h w")
        return avg_pool2d(colours * 2 - 1, 2)


def _cost(images: Float[Tensor, "*n 3 h w"], median: Float[Tensor, "3 h w"]) -> Float[Tensor, "*n"]:
    """Mean of a bounded distance (Geman and McClure's), so that a hidden part costs the same whatever hides it."""
    squared = (images - median).square_().mean(-3)
    return squared.div_(squared + _TOLERANCE**2).mean((-1, -2))
