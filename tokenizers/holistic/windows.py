"""A clip in windows of one size, side by side in time and space, each tokenised by itself."""

from dataclasses import dataclass
from math import ceil

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.interface import repeat_ends


@dataclass(frozen=True)
class Windows:
    """How a clip is cut: `steps` × `rows` × `columns` windows of `num_frames` frames and `size` × `size` pixels.

    Windows are ordered in time first, then by rows, then by columns.
    """

    num_frames: int
    size: int
    steps: int
    rows: int
    columns: int

    @classmethod
    def of_clip(cls, num_frames: int, size: int, clip: tuple[int, int, int]) -> "Windows":
        """The windows that hold a clip of (frames, height, width)."""
        frames, height, width = clip
        return cls(num_frames, size, ceil(frames / num_frames), ceil(height / size), ceil(width / size))

    @classmethod
    def of_latents(
        cls, num_frames: int, size: int, count: int, clip: tuple[int | None, int | None, int | None]
    ) -> "Windows":
        """The windows of a video that is wanted from the latents of `count` windows.

        Args:
            num_frames, size: Of a window.
            count: Windows that there are.
            clip: Wanted frames, height and width; None is as many frames as there are, or a single window.

        Raises:
            KinemaError: The wanted size does not end in the last window.
        """
        frames, height, width = clip
        for name, value in (("height", height), ("width", width)):
            if value is not None and value < 1:
                raise KinemaError(f"`{name}` (={value}) must be at least 1")
        rows, columns = ceil((height or size) / size), ceil((width or size) / size)
        steps, rest = divmod(count, rows * columns)
        if rest or not steps:
            raise KinemaError(
                f"`latents` (of {count} windows) must have a multiple of {rows * columns} windows: "
                f"{rows} by {columns} of {size}x{size} pixels hold a frame of {height or size}x{width or size}"
            )
        least, most = (steps - 1) * num_frames + 1, steps * num_frames
        if frames is not None and not least <= frames <= most:
            raise KinemaError(f"`num_frames` (={frames}) must lie in {least}..{most} for latents of {count} windows")
        return cls(num_frames, size, steps, rows, columns)

    def split(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k c f p q"]:
        """The windows of a clip; the last frame is repeated, the right and bottom edges are replicated to fill them."""
        t, h, w = video.shape[2:]
        more = self.steps * self.num_frames - t, self.rows * self.size - h, self.columns * self.size - w
        return rearrange(
            repeat_ends(video, more),
            "b c (s f) (i p) (j q) -> b (s i j) c f p q",
            f=self.num_frames,
            p=self.size,
            q=self.size,
        )

    def join(self, windows: Float[Tensor, "b k c f p q"]) -> Float[Tensor, "b c t h w"]:
        """The inverse of `split`, before what filled the windows is cropped."""
        return rearrange(windows, "b (s i j) c f p q -> b c (s f) (i p) (j q)", i=self.rows, j=self.columns)
