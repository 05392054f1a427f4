"""FVD beside other measures: a clip that it cannot take ends it alone, not the whole measurement."""

from collections.abc import Iterable, Iterator, Sequence

from jaxtyping import Int64
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips import LongClip
from kinema.eval.fvd.features import NamedClips, NamedWindow
from kinema.eval.fvd.metric import FrechetVideoDistance
from kinema.eval.fvd.result import FVDResult
from kinema.eval.summaries import gather


class LenientDistance:
    """A distance that has no value, and says why, where `FrechetVideoDistance` would raise.

    Args:
        distance: Whose clips these are.

    Attributes:
        failure: Why there is no value; None: there is one. Known to all processes after `result`.
    """

    def __init__(self, distance: FrechetVideoDistance) -> None:
        self.distance = distance
        self.failure: str | None = None

    def update(self, videos: Tensor, real: bool, names: Sequence[str] | None = None) -> None:
        """As `FrechetVideoDistance.update`."""
        if self.failure is None:
            try:
                self.distance.update(videos, real, names)
            except KinemaError as error:
                self.failure = str(error)

    def windows(self, name: str, num_frames: int) -> list[Int64[Tensor, " t"]]:
        """As `FrechetVideoDistance.windows`; none of a clip that is too short."""
        if self.failure is None:
            try:
                return self.distance.windows(name, num_frames)
            except KinemaError as error:
                self.failure = str(error)
        return []

    def update_windows(self, windows: Iterable[NamedWindow], real: bool) -> None:
        """As `FrechetVideoDistance.update_windows`."""
        if self.failure is None:
            self.distance.update_windows(windows, real)

    def update_clips(self, clips: NamedClips, real: bool) -> None:
        """As `FrechetVideoDistance.update_clips`; the clips are read to the end in any case, as processes agree there.

        Raises:
            KinemaError: Of the clips' own: too many cannot be read.
        """
        self.distance.update_clips(self._long_enough(clips), real)

    def _long_enough(self, clips: NamedClips) -> Iterator[tuple[str, Tensor | LongClip]]:
        for name, frames in clips:
            if self.failure is None:
                try:
                    self.distance.protocol.windows(name, len(frames))
                except KinemaError as error:
                    self.failure = str(error)
            if self.failure is None:
                yield name, frames

    def result(self) -> FVDResult | None:
        """The distance, or None; in several processes all must call this."""
        failures = [failure for failure in gather(self.failure) if failure is not None]
        if failures:
            self.failure = failures[0]
            return None
        try:
            return self.distance.result()
        except KinemaError as error:  # what is wrong with the whole set, all processes find alike
            self.failure = str(error)
            return None
