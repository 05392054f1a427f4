"""Files of weights of several kinds are read, and none of them gets anything to run."""

import io
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.weights.formats import read_state

ARRAYS = {
    "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.float32(3)},
    "b": np.ones(2, "int64"),
}
TENSORS = {"a/kernel": torch.arange(6.0).view(2, 3), "a/step": torch.tensor(3.0), "b": torch.ones(2, dtype=torch.int64)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted), "names, in the order of the file"
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("protocol", [3, 4])  # the others call functions that no file of the table asks for
def test_arrays(protocol: int, tmp_path: Path):
    file = tmp_path / "arrays.ckpt"
    file.write_bytes(pickle.dumps(ARRAYS, protocol=protocol))
    assert_same(read_state(file), TENSORS)


def test_arrays_of_old_numpy_and_flax(tmp_path: Path):
    content = pickle.dumps(ARRAYS, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in content
    file = tmp_path / "arrays.ckpt"
    file.write_bytes(content)
    assert_same(read_state(file), TENSORS)
    # FrozenDict({...}), as flax pickles it: the class, a tuple of the dict, and the call.
    body = pickle.dumps(ARRAYS, protocol=3)[2:-1]
    file.write_bytes(b"\x80\x03cflax.core.frozen_dict\nFrozenDict\n" + body + b"\x85R.")
    assert_same(read_state(file), TENSORS)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_that_wants_to_run_something(tmp_path: Path):
    target, file = tmp_path / "made", tmp_path / "evil.ckpt"
    content = pickle.dumps({"a": Evil(target)}, protocol=2)
    pickle.loads(content)
    assert target.exists(), "the pickle does what it is made for"
    target.unlink()
    file.write_bytes(content)
    with pytest.raises(KinemaError, match="it asks for "):
        read_state(file)
    for zipped in (True, False):
        torch.save({"a": Evil(target)}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(KinemaError, match="must be a file of weights"):
            read_state(file)
    assert not target.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "os system", "numpy load", "torch load", "numpy.core.records record"]
)
def test_other_names_are_refused(name: str, tmp_path: Path):
    file = tmp_path / "evil.ckpt"
    file.write_bytes(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(KinemaError, match=f"it asks for {name.replace(' ', '.')}"):
        read_state(file)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_torch_files(zipped: bool, wrapped: bool, tmp_path: Path):
    state = OrderedDict({"z.weight": torch.randn(3, 2), "a.bias": torch.randn(3).bfloat16()})
    file = tmp_path / "state.pth"
    content = {"epoch": 3, "state_dict": state} if wrapped else state
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert_same(read_state(file), dict(state))


def test_safetensors(tmp_path: Path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    found = read_state(tmp_path / "x.safetensors")
    assert_same(dict(sorted(found.items())), TENSORS)


class Scripted(nn.Module):
    """Parameters, buffers, a list of modules, views of one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)])
        both = torch.randn(5, 6)
        self.first, self.second = nn.Parameter(both[:2]), nn.Parameter(both[2:].t())
        self.register_buffer("short", torch.randn(3).half())

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_torchscript(tmp_path: Path):
    module = Scripted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, the files are not
        script = torch.jit.script(module)
        torch.jit.save(script, tmp_path / "script.pt")
    found = read_state(tmp_path / "script.pt")
    wanted = module.state_dict()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    kernels = [name for name in found if name.startswith("layers")]
    assert kernels == [name for name in wanted if name.startswith("layers")], "in the order of the modules"


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", pickle.dumps(ARRAYS, 3)[:80]]))
def test_any_bytes_give_tensors_or_an_error_in_one_line(tmp_path_factory, content: bytes, start: bytes):
    file = tmp_path_factory.mktemp("any") / "any.ckpt"
    file.write_bytes(start + content)
    found, message = {}, "any.ckpt"
    try:
        found = read_state(file)
    except KinemaError as error:
        message = str(error)
    assert "any.ckpt" in message
    assert "\n" not in message
    assert all(isinstance(value, Tensor) for value in found.values())


def test_what_is_no_mapping(tmp_path: Path):
    buffer = io.BytesIO()
    torch.save(torch.zeros(2), buffer)
    (tmp_path / "tensor.pth").write_bytes(buffer.getvalue())
    with pytest.raises(KinemaError, match="holds a Tensor, not tensors by name"):
        read_state(tmp_path / "tensor.pth")
