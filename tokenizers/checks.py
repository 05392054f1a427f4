"""Checks of a tokenizer's inputs and files; errors name the argument, its value and the constraint."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.tokenizers.streaming import StreamCache

RANGE_TOLERANCE = 1e-3
"""Pixels may leave [-1, 1] by this much, because of rounding in half precision."""

_CHECKS_VALUES: ContextVar[bool] = ContextVar("checks_values", default=True)


@contextmanager
def check_values(enabled: bool) -> Iterator[None]:
    """Enable or disable checks of values (range, NaN, code indices) in this context; they are on by default.

    Checking values makes the host wait for the device. Shapes and types are always checked.
    """
    token = _CHECKS_VALUES.set(enabled)
    try:
        yield
    finally:
        _CHECKS_VALUES.reset(token)


def checks_values() -> bool:
    """Whether values are checked, see `check_values`."""
    return _CHECKS_VALUES.get()


def check_video(video: Tensor, argument: str = "video", least_frames: int = 1) -> None:
    """Validate a video: ``(b, 3, t, h, w)``, float in [-1, 1].

    Raises:
        KinemaError: The shape, type or range is another, a size is 0 (or `least_frames` is not reached), or there is
            NaN.
    """
    shape = tuple(video.shape)
    if video.ndim != 5 or shape[1] != 3:
        raise KinemaError(f"`{argument}` (of shape {shape}) must be (batch, 3, frames, height, width)")
    if not video.is_floating_point():
        raise KinemaError(f"`{argument}` (of type {video.dtype}) must be float in [-1, 1], not integers in 0..255")
    sizes = {"batch": shape[0], "frames": shape[2], "height": shape[3], "width": shape[4]}
    for name, size in sizes.items():
        least = least_frames if name == "frames" else 1
        if size < least:
            raise KinemaError(f"`{argument}` (of shape {shape}) must have {name} of at least {least}")
    if video.numel() == 0 or not checks_values():
        return
    low, high = (float(value) for value in torch.aminmax(video.detach()))
    if low != low or high != high:
        raise KinemaError(f"`{argument}` (with NaN) must hold numbers in [-1, 1]")
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise KinemaError(f"`{argument}` (in [{low:g}, {high:g}]) must lie in [-1, 1]")


def checked_chunks(chunks: Iterable[Tensor], cache: StreamCache) -> Iterator[Tensor]:
    """Yield a stream's chunks of video, each validated; a chunk may have no frames.

    Raises:
        KinemaError: See `check_video`; or batch or frame size differ from the stream's first chunk.
    """
    for chunk in chunks:
        check_video(chunk, argument="chunk", least_frames=0)
        batch, _, _, height, width = chunk.shape
        cache.keep_size("chunk", (batch, height, width))
        yield chunk


def check_latents(latents: Tensor, channels: int, argument: str = "latents") -> None:
    """Validate latents: ``(b, channels, t', h', w')``, float, finite.

    Raises:
        KinemaError: The shape or type is another, the tensor is empty, or there is NaN or infinity.
    """
    shape = tuple(latents.shape)
    if latents.ndim != 5 or shape[1] != channels or latents.numel() == 0:
        raise KinemaError(f"`{argument}` (of shape {shape}) must be (batch, {channels}, frames, height, width)")
    if not latents.is_floating_point():
        raise KinemaError(
            f"`{argument}` (of type {latents.dtype}) must be float; code indices go through `indices_to_latents`"
        )
    if checks_values() and not bool(torch.isfinite(latents.detach()).all()):
        raise KinemaError(f"`{argument}` (with NaN or infinity) must be finite")


def wanted_size(
    latent_size: tuple[int, ...],
    ct: int,
    cs: int,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> tuple[int, int, int]:
    """Frames, height and width to which a decoded video is cropped; by default, whole latent cells.

    Raises:
        KinemaError: A size does not end in the last latent cell.
    """
    tl, hl, wl = latent_size
    whole = {"num_frames": 1 + (tl - 1) * ct, "height": hl * cs, "width": wl * cs}
    given = {"num_frames": num_frames, "height": height, "width": width}
    wanted = {name: whole[name] if value is None else value for name, value in given.items()}
    for name, step in (("num_frames", ct), ("height", cs), ("width", cs)):
        least = max(whole[name] - step + 1, 1)
        if not least <= wanted[name] <= whole[name]:
            raise KinemaError(
                f"`{name}` (={wanted[name]}) must lie in {least}..{whole[name]} for latents of shape {(tl, hl, wl)}"
            )
    return wanted["num_frames"], wanted["height"], wanted["width"]


def check_config_keys(config: Iterable[str], init: Callable[..., None], folder: Path) -> None:
    """Validate the keys of a saved config: arguments of the constructor, or diffusers' own, which have an underscore.

    diffusers only logs unknown keys, so a misspelt argument would silently keep its default.

    Raises:
        KinemaError: A key is unknown.
    """
    known = set(signature(init).parameters) - {"self"}
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
    if unknown:
        raise KinemaError(
            f"the config in `{folder}` (with {', '.join(map(repr, unknown))}) must have no other keys than "
            f"{', '.join(sorted(known))}"
        )


@contextmanager
def parameters_limited(folder: Path, argument: str = "folder") -> Iterator[None]:
    """Limit the number of parameters that modules may register in this context, by the tensors stored in a folder.

    A damaged config that asks for 10^30 blocks is refused at once, before it uses up time and memory.

    Raises:
        KinemaError: There are more than 1,000 plus ten per stored tensor.
    """
    stored = sum(len(_stored_names(path)) for path in sorted(folder.rglob("*.safetensors")))
    left = 10 * stored + 1000  # loading registers each several times

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KinemaError(f"`{argument}` (={str(folder)!r}, of {stored} tensors) must have a config of that size")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_statistics(mean: Any, std: Any, channels: int) -> None:
    """Validate `latents_mean` and `latents_std`: both None, or one finite number per channel each, `std` above 0.

    Raises:
        KinemaError: They are not.
    """
    if mean is None and std is None:
        return
    for name, values, least in (("latents_mean", mean, -inf), ("latents_std", std, 0.0)):
        numbers = values if isinstance(values, list | tuple) else ()
        fits = all(isinstance(n, int | float) and least < n < inf for n in numbers)
        if len(numbers) != channels or not fits:
            kind = "finite numbers" if name == "latents_mean" else "finite numbers above 0"
            raise KinemaError(f"`{name}` (={values}) must be {channels} {kind}")


def _stored_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        KinemaError: The file is not readable.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise KinemaError(f"`{path}` is not readable as safetensors: {one_line(error)}") from error


def check_weights(model: nn.Module, folder: Path) -> None:
    """Check that a folder's safetensors files hold exactly the weights of a loaded model.

    diffusers only logs missing weights and leaves them at random values.

    Raises:
        KinemaError: There is no safetensors file, one is unreadable, or the names differ.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise KinemaError(f"model folder `{folder}` must have a .safetensors file")
    stored = {name for path in files for name in _stored_names(path)}
    wanted = set(model.state_dict())
    if stored != wanted:
        example = sorted(stored ^ wanted)[0]
        raise KinemaError(
            f"the weights in `{folder}` do not fit their config: {len(wanted - stored)} missing and "
            f"{len(stored - wanted)} unknown, such as {example!r}"
        )
