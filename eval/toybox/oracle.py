"""Decides from the pixels alone which object, motion and background a Toybox clip with one object shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from kinema.errors import KinemaError
from kinema.eval.toybox.backgrounds import BackgroundModel
from kinema.eval.toybox.matching import Match, Pictures, frame_spectra, match, prepare_pictures
from kinema.eval.toybox.tracking import LEAST_GAIN, Track, decide_motion, strengths, turning_path, unwrap
from kinema.training.data.toybox.sprites import Atlas

# In pixels of a frame whose short side is 64: what Toybox objects measure, and a little more on both sides.
_SIZES = tuple(15.5 * 1.115**step for step in range(10))
_SPIN_SIZES = (24.0, 27.5, 31.5)
_ANGLE_STEP = 20
_LOOKS = 5  # frames that the first choice of objects looks at
_CANDIDATES = 4  # objects that are followed through the whole clip, of each of two first choices


@dataclass(frozen=True)
class Decision:
    """What the oracle saw.

    Attributes:
        object: Name of the object.
        motion: One of `MOTIONS`, or "none".
        background: One of `BACKGROUNDS`.
        explained: Share of the difference from the background that the object explains: near 1 on real clips.
        strengths: Of each motion, as multiples of what an average Toybox object does.
        track: Where the object is in each frame, in pixels of the clip.
    """

    object: str
    motion: str
    background: str
    explained: float
    strengths: Mapping[str, float]
    track: Track = field(repr=False)


class Oracle:
    """Knows the objects' pictures and the backgrounds, and nothing of a clip but its pixels.

    A background is fitted to the median frame; the object is the one that, drawn over that background at its best
    place, size and angle in every frame, explains most of what is left; its motion is read off its track.

    Args:
        atlas: Pictures of the objects to choose from (`Toybox.atlas`).
        height: Frame height of the clips in pixels.
        width: Frame width of the clips in pixels.
    """

    def __init__(self, atlas: Atlas, height: int = 64, width: int = 64) -> None:
        self.names = atlas.names
        self.height, self.width = height, width
        # All work is done at one scale; sides are even, because frames are halved.
        scale = 64 / min(height, width)
        self._scale = scale
        self._size = (2 * round(height * scale / 2), 2 * round(width * scale / 2))
        self._atlas = atlas
        self._backgrounds = BackgroundModel(*self._size)
        sizes = torch.tensor(_SIZES)
        count = len(self.names)
        self._upright = prepare_pictures(
            atlas,
            torch.arange(count).repeat_interleave(len(sizes)),
            sizes.repeat(count),
            torch.zeros(count * len(sizes)),
            *self._size,
        )
        self._turned: dict[int, Pictures] = {}

    @torch.no_grad()
    def decide(self, clip: Float[Tensor, "3 t h w"] | UInt8[Tensor, "t h w 3"]) -> Decision:
        """Looks at one clip.

        Args:
            clip: Values in [-1, 1], or the frames of a video file.

        Raises:
            KinemaError: The clip has another size, or fewer than 5 frames.
        """
        if clip.dtype == torch.uint8:
            clip = rearrange(clip, "t h w c -> c t h w").float() / 127.5 - 1
        if tuple(clip.shape[2:]) != (self.height, self.width) or clip.shape[1] < 5:
            raise KinemaError(
                f"`clip` (of shape {tuple(clip.shape)}) must have at least 5 frames of {self.height}x{self.width}"
            )
        frames = rearrange(clip.float().cpu(), "c t h w -> t c h w")
        if tuple(frames.shape[2:]) != self._size:
            frames = interpolate(frames, self._size, mode="bilinear", antialias=True, align_corners=False)
        frames = avg_pool2d(frames, 2)
        background, picture = self._backgrounds.fit(frames.median(0).values)
        spectra = frame_spectra(frames, picture)
        name, track = max(
            ((name, self._follow(spectra, name)) for name in self._candidates(spectra)),
            key=lambda found: float(found[1].energy.sum()),
        )
        values = strengths(track, 64)
        total = (frames - picture).square().sum()
        return Decision(
            object=self.names[name],
            motion=decide_motion(values),
            background=background,
            explained=float(track.energy.sum() / total.clamp_min(1e-6)),
            strengths=values,
            track=Track(
                track.x / self._scale, track.y / self._scale, track.size / self._scale, track.angle, track.energy
            ),
        )

    def _candidates(self, spectra: Tensor) -> list[int]:
        """Objects worth following: those that explain the first frame best, which is upright, or all frames."""
        looks = torch.linspace(0, spectra.shape[1] - 1, _LOOKS).round().long()
        energy = match(spectra[:, looks], self._upright).energy.clamp_min(0)
        by_object = rearrange(energy, "t (n s) -> t n s", s=len(_SIZES)).amax(2)
        first = by_object[0].topk(min(_CANDIDATES, len(self.names))).indices
        all_frames = by_object.sum(0).topk(min(_CANDIDATES, len(self.names))).indices
        return sorted({*first.tolist(), *all_frames.tolist()})

    def _follow(self, spectra: Tensor, name: int) -> Track:
        """The object's track, upright or turning, whichever explains more."""
        rows = slice(name * len(_SIZES), (name + 1) * len(_SIZES))
        upright = self._upright
        own = Pictures(upright.spectra[..., rows], upright.constants[rows], upright.allowed[rows])
        straight = _track(match(spectra, own), torch.tensor(_SIZES), torch.zeros(len(_SIZES)))
        if name not in self._turned:
            self._turned[name] = self._turned_pictures(name)
        found = match(spectra, self._turned[name])
        angles = torch.arange(0, 360, _ANGLE_STEP).float()
        by_angle = rearrange(found.energy, "t (a s) -> t a s", a=len(angles))
        path = torch.tensor(turning_path(by_angle.amax(2), angles))
        time = torch.arange(len(path))
        chosen = path * len(_SPIN_SIZES) + by_angle[time, path].argmax(1)
        turning = Track(
            found.x[time, chosen],
            found.y[time, chosen],
            torch.tensor(_SPIN_SIZES)[chosen % len(_SPIN_SIZES)],
            unwrap(angles[path]),
            found.energy[time, chosen],
        )
        return turning if turning.energy.sum() > (1 + LEAST_GAIN) * straight.energy.sum() else straight

    def _turned_pictures(self, name: int) -> Pictures:
        angles = torch.arange(0, 360, _ANGLE_STEP).float()
        count = len(angles) * len(_SPIN_SIZES)
        return prepare_pictures(
            self._atlas,
            torch.full((count,), name),
            torch.tensor(_SPIN_SIZES).repeat(len(angles)),
            angles.repeat_interleave(len(_SPIN_SIZES)),
            *self._size,
        )


def _track(found: Match, sizes: Tensor, angles: Tensor) -> Track:
    """The best picture in each frame, whatever it was in the frame before."""
    energy, chosen = found.energy.max(1)
    time = torch.arange(len(chosen))
    return Track(found.x[time, chosen], found.y[time, chosen], sizes[chosen], angles[chosen], energy)
