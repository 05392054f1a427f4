"""Files of weights of several kinds as a flat mapping of tensors, without running anything that is in the file.

Three kinds of pickles occur: numpy arrays, `torch.save` and torchscript. None of them goes to plain `pickle`, which
calls whatever a file asks for: each kind has an unpickler that knows the few names it needs, and refuses all others.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray  # the names in the files: `numpy.core.multiarray`, before numpy 2
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kinema.errors import KinemaError

_FLAX_DICT = "flax.core.frozen_dict.FrozenDict"
# `torch.save` of before 1.6 wrote several pickles one after the other, of which the first is this number.
_TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a file; where they are nested, names are joined by `/`.

    Args:
        path: Safetensors, a pickle of numpy arrays, what `torch.save` made of a state dict, or torchscript.

    Raises:
        KinemaError: It is none of these, or a pickle that asks for more than arrays.
    """
    try:
        return dict(_flatten(_read(path)))
    except (
        # What unpicklers and readers raise at files that are damaged, or are something else.
        *(pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, OSError, EOFError, RuntimeError, ValueError),
        *(AttributeError, ImportError, IndexError, KeyError, TypeError, MemoryError, OverflowError),
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise KinemaError(f"`weights` (={str(path)!r}) must be a file of weights: {reason}") from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _read_torchscript(archive)
        return _read_torch(path)
    with path.open("rb") as file:
        if file.read(len(_TORCH_MAGIC)) != _TORCH_MAGIC:
            file.seek(0)
            return ArrayUnpickler(file).load()
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote; `weights_only` is torch's own restricted unpickler: tensors and plain containers."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        return state["state_dict"]
    return state


def _flatten(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, not tensors by name")
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}/")
        elif isinstance(value, np.ndarray | np.generic):
            yield name, torch.from_numpy(np.array(value))
        elif isinstance(value, Tensor):
            yield name, value.detach()


class _Restricted(pickle.Unpickler):
    """An unpickler that knows some names, and stops at any other."""

    known: Mapping[str, Any] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in self.known:
            raise pickle.UnpicklingError(f"it asks for {wanted}, and nothing but arrays is read from a pickle")
        return self.known[wanted]


class ArrayUnpickler(_Restricted):
    """Reads nested dicts of numpy arrays, those of old numpy and of flax, too."""

    known = {
        f"{module}.{name}": value
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        for name, value in {
            "ndarray": np.ndarray,
            "dtype": np.dtype,
            # Makes an empty array, or a number of some bytes: neither calls anything.
            "_reconstruct": multiarray._reconstruct,  # pyright: ignore[reportAttributeAccessIssue]
            "scalar": multiarray.scalar,  # pyright: ignore[reportAttributeAccessIssue]
        }.items()
    } | {_FLAX_DICT: dict}


class _ScriptObject:
    """Stands for any module of a torchscript; what it has ends up in its `__dict__`."""


class _ScriptUnpickler(_Restricted):
    """Reads the tensors of a torchscript; its code, which lies in other files of the archive, is not even opened.

    `torch.jit.load` would compile that code, warns that it will go away, and gives nothing more.
    """

    known: Mapping[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: torch.as_strided(
            storage, size, stride, offset
        ),
        **{f"torch.jit._pickle.build_{kind}list": list for kind in ("int", "double", "bool", "tensor")},
        **{
            f"torch.{name}Storage": dtype
            for name, dtype in {
                "Float": torch.float32,
                "Double": torch.float64,
                "Half": torch.float16,
                "BFloat16": torch.bfloat16,
                "Long": torch.int64,
                "Int": torch.int32,
                "Bool": torch.bool,
            }.items()
        },
    }

    def __init__(self, content: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(content))
        self.read_storage = read_storage

    def find_class(self, module: str, name: str, /) -> Any:
        if module.split(".")[0] == "__torch__":
            return _ScriptObject
        return super().find_class(module, name)

    def persistent_load(self, pid: Any, /) -> Any:
        _, dtype, key, *_ = pid
        content = bytearray(self.read_storage(str(key)))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Parameters and buffers by their names, in the order in which the modules have them."""
    root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
    found: dict[str, Tensor] = {}
    for part in ("data", "constants"):
        content = archive.read(f"{root}/{part}.pkl")
        tree = _ScriptUnpickler(content, lambda key, part=part: archive.read(f"{root}/{part}/{key}")).load()
        found |= dict(_script_tensors(tree, "" if part == "data" else "constants."))
    return found


def _script_tensors(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix.removesuffix("."), value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _script_tensors(item, f"{prefix}{index}.")
    elif isinstance(value, Mapping | _ScriptObject):
        items = value if isinstance(value, Mapping) else vars(value)
        for key, item in items.items():
            yield from _script_tensors(item, f"{prefix}{key}.")
