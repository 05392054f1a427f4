"""Checks of what users hand to a tokenizer; each error names what was got and what is allowed."""

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
"""Pixels may leave [-1, 1] by this much: rounding, and the overshoot of half precision."""

_checks_values: ContextVar[bool] = ContextVar("checks_values", default=True)


@contextmanager
def check_values(enabled: bool) -> Iterator[None]:
    """Within it, checks of pixels and latents look at their values or, where not enabled, at shapes and types alone.

    To look at values makes the host wait for the device: training, which makes its own batches, does without.
    """
    token = _checks_values.set(enabled)
    try:
        yield
    finally:
        _checks_values.reset(token)


def check_video(video: Tensor, argument: str = "video", least_frames: int = 1) -> None:
    """Checks that a tensor is a video, ``(b, 3, t, h, w)``, float in [-1, 1].

    Raises:
        KinemaError: It has other dimensions, channels, type or range, no pixel, or holds NaN.
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
    if video.numel() == 0 or not _checks_values.get():
        return
    low, high = (float(value) for value in torch.aminmax(video.detach()))
    if low != low or high != high:
        raise KinemaError(f"`{argument}` (with NaN) must hold numbers in [-1, 1]")
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise KinemaError(f"`{argument}` (in [{low:g}, {high:g}]) must lie in [-1, 1]")


def checked_chunks(chunks: Iterable[Tensor], cache: StreamCache) -> Iterator[Tensor]:
    """Chunks of a stream's video, each checked when it is taken; frames may be none.

    Raises:
        KinemaError: See `check_video`, or a chunk has another batch or size than the stream's first.
    """
    for chunk in chunks:
        check_video(chunk, argument="chunk", least_frames=0)
        batch, _, _, height, width = chunk.shape
        cache.keep_size("chunk", (batch, height, width))
        yield chunk


def check_latents(latents: Tensor, channels: int, argument: str = "latents") -> None:
    """Checks that a tensor is latents, ``(b, channels, t', h', w')``.

    Raises:
        KinemaError: It has other dimensions or channels, is not float, holds no value, or is not finite.
    """
    shape = tuple(latents.shape)
    if latents.ndim != 5 or shape[1] != channels or latents.numel() == 0:
        raise KinemaError(f"`{argument}` (of shape {shape}) must be (batch, {channels}, frames, height, width)")
    if not latents.is_floating_point():
        raise KinemaError(
            f"`{argument}` (of type {latents.dtype}) must be float; code indices go through `indices_to_latents`"
        )
    if _checks_values.get() and not bool(torch.isfinite(latents.detach()).all()):
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
    """The size to which a decoded video is cropped: what is given, or whole latent cells.

    Raises:
        KinemaError: A given size does not end in the last latent cell.
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
    """Checks that a saved config has only keys that a constructor takes, or diffusers' own, which have an underscore.

    diffusers only logs others, so that a misspelt argument would silently have its default.

    Raises:
        KinemaError: There is another key.
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
    """Within, modules that register far more parameters than the folder has stored tensors are an error.

    A config that asks for 10^30 blocks is then refused at once, before it takes all time and memory there are.

    Raises:
        KinemaError: there are more than ten for each stored tensor, and 1,000.
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


def check_statistics(mean: Any, std: Any, channels: int, folder: Path) -> None:
    """Checks statistics of latents as a config gives them.

    Raises:
        KinemaError: only one of the two is there, or they are not finite numbers, one for each channel, and `std` above
            0.
    """
    if mean is None and std is None:
        return
    for name, values, least in (("latents_mean", mean, -inf), ("latents_std", std, 0.0)):
        numbers = values if isinstance(values, list | tuple) else ()
        fits = all(isinstance(n, int | float) and least < n < inf for n in numbers)
        if len(numbers) != channels or not fits:
            kind = "finite numbers" if name == "latents_mean" else "finite numbers above 0"
            raise KinemaError(f"`{name}` in the config of `{folder}` must be {channels} {kind}")


def _stored_names(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file.

    Raises:
        KinemaError: it is not readable.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise KinemaError(f"`{path}` is not readable as safetensors: {one_line(error)}") from error


def check_weights(model: nn.Module, folder: Path) -> None:
    """Checks that the safetensors files of a folder hold exactly the weights of a loaded model.

    diffusers only logs what is missing and leaves those weights at random values.

    Raises:
        KinemaError: No safetensors file, an unreadable one, or names that differ.
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
