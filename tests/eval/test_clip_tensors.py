"""Tensor files: the range of their floats and the order of their axes are stated or refused, never guessed."""

import itertools
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kinema.apps.cli import main
from kinema.command_line import parse_options
from kinema.errors import KinemaError
from kinema.eval.clips import (
    ClipFile,
    ReadableClips,
    UndecidedClip,
    check_value_range,
    list_clips,
    read_clip,
    write_clip,
)
from kinema.video import to_uint8, write_video

LEVELS = torch.arange(5 * 8 * 16 * 3).reshape(5, 8, 16, 3).mul(7).remainder(256).to(torch.uint8)
UNIT = LEVELS.double() / 255
SIGNED = UNIT * 2 - 1


def saved(values: torch.Tensor | np.ndarray, folder: Path, **metadata: str) -> ClipFile:
    """A `.npy` file of an array, a `.safetensors` file of a tensor."""
    if isinstance(values, np.ndarray):
        np.save(folder / "a.npy", values)
        return ClipFile("a", folder / "a.npy")
    save_file({"frames": values.contiguous()}, folder / "a.safetensors", metadata or None)
    return ClipFile("a", folder / "a.safetensors")


# float16 and bfloat16 have fewer steps near 1 than levels need; the range [0, 1] in bfloat16 is read as well as it can.
KINDS = [torch.float64, torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", KINDS)
def test_floats_of_a_stated_range_are_exact(tmp_path: Path, dtype: torch.dtype):
    ranges: Any = ((UNIT, "0,1"), (SIGNED, "-1,1"))
    for values, value_range in ranges:
        tensor = values.to(dtype)
        for clip in (saved(tensor, tmp_path), saved(tensor.numpy(), tmp_path)):
            assert torch.equal(read_clip(clip, value_range=value_range), LEVELS)
        assert torch.equal(read_clip(saved(tensor, tmp_path, value_range=f"[{value_range[:-1]} 1]")), LEVELS)


def test_bfloat16(tmp_path: Path):
    frames = read_clip(saved(UNIT.bfloat16(), tmp_path), value_range="0,1")
    assert (frames.int() - LEVELS.int()).abs().max() <= 1


def test_what_a_pipeline_returns_is_what_generate_writes(tmp_path: Path):
    """Whatever floats come out of a decoder: both ways round to the same level."""
    clip = torch.rand(3, 5, 16, 32)
    for values, layout in ((clip.permute(1, 2, 3, 0), "np"), (clip.transpose(0, 1), "pt")):
        for batch in (values, values[None]):
            assert torch.equal(read_clip(saved(batch.numpy(), tmp_path), value_range="0,1"), to_uint8(clip * 2 - 1)), (
                layout
            )


@pytest.mark.parametrize("values", [UNIT, UNIT[:1], torch.zeros(2, 8, 8, 3), torch.ones(2, 8, 8, 3), UNIT.half()])
def test_floats_that_may_be_in_either_range_are_refused(tmp_path: Path, values: torch.Tensor):
    for clip in (saved(values, tmp_path), saved(values.numpy(), tmp_path)):
        with pytest.raises(UndecidedClip, match=r"may be in \[0, 1\].*`--value-range 0,1` or `--value-range -1,1`"):
            read_clip(clip)


def test_one_negative_value_anywhere_decides(tmp_path: Path):
    values = UNIT.clone()
    values[-1, 0, 0, 0] = -0.01
    frames = read_clip(saved(values, tmp_path), num_frames=1)  # not in the frames that are read
    assert frames.min() >= 127  # as values of [-1, 1]
    with pytest.raises(KinemaError, match=r"in \[-0\.01, 1\]\) must be in \[0, 1\], as was stated"):
        read_clip(saved(values, tmp_path), value_range="0,1")


@pytest.mark.parametrize("text", ["0,1", " 0, 1 ", "[0.0, 1.0]", "(0,1)", "-1,1", "[-1.0,1.]"])
def test_ranges_as_people_write_them(text: str):
    assert check_value_range(text) == ("-1,1" if "-" in text else "0,1")


@pytest.mark.parametrize("text", ["", "0", "1,0", "0,1,2", "0,255", "-1,0", "nan,1", "a,b", "0;1"])
def test_other_ranges(text: str):
    with pytest.raises(KinemaError, match="must be 0,1 or -1,1"):
        check_value_range(text)


def test_the_file_says_more_than_the_flag(tmp_path: Path):
    assert torch.equal(read_clip(saved(UNIT, tmp_path, value_range="0,1"), value_range="-1,1"), LEVELS)
    with pytest.raises(KinemaError, match=r"`value_range` \(='0,255'\) must be 0,1 or -1,1"):
        read_clip(saved(UNIT, tmp_path, value_range="0,255"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (UNIT.numpy() * 255, r"in \[0, 255\]\) must be floats .*: levels of 0 to 255 belong in a file of uint8"),
        (UNIT.numpy() * 65535, "must be floats in"),
        (UNIT.numpy() * 2 - 1.1, r"in \[-1\.1, 0\.9\]\) must be floats in"),
        (np.where(LEVELS == 3, np.nan, UNIT), r"in \[nan, nan\]"),
        (np.where(LEVELS == 3, np.inf, UNIT), r"inf\]\) must be floats"),
        (np.zeros((4, 8, 8, 3), np.uint16), r"\(='.*', of uint16\) must be of uint8, or of floats in"),
        (np.zeros((4, 8, 8, 3), bool), r"of bool\) must be of uint8"),
        (np.zeros((4, 8, 8, 3), np.complex64), r"of complex64\) must be of uint8"),
        (np.zeros((4, 8, 8, 3), "S2"), r"must be of uint8"),
        (np.zeros((3, 3, 8, 8), np.uint8), r"fits `t 3 h w` and `3 t h w`: say which by `--layout tchw` or `--layout"),
        (
            np.zeros((2, 5, 8, 8, 3), np.uint8),
            r"\(2, 5, 8, 8, 3\)\) must be .*: save the clips of a batch",
        ),
        (np.array(0.5), r"of shape \(\)\) must be `t h w 3`"),
    ],
)
def test_what_is_refused(tmp_path: Path, values: np.ndarray, message: str):
    for value_range in ("0,1", None):
        with pytest.raises(KinemaError, match=message):
            read_clip(saved(np.asarray(values), tmp_path), value_range=value_range)


def test_arrays_as_numpy_may_store_them(tmp_path: Path):
    signed = SIGNED.numpy()
    for values in (
        np.asfortranarray(signed),
        signed.astype(">f4"),
        signed.astype(">f8"),
        signed.astype(np.longdouble),
        signed[:, ::-1][:, ::-1],
        np.asfortranarray(LEVELS.numpy()),
    ):
        clip = saved(values, tmp_path)
        assert torch.equal(read_clip(clip), LEVELS), values.dtype
        assert torch.equal(read_clip(clip, start=1, num_frames=2, stride=2), LEVELS[1::2])


def test_axes(tmp_path: Path):
    """Every order of axes is found where one fits, and is taken where it is stated."""
    for axes in ((0, 1, 2, 3), (0, 3, 1, 2), (3, 0, 1, 2)):
        assert torch.equal(read_clip(saved(LEVELS.permute(axes), tmp_path)), LEVELS)
    three = LEVELS[:3]  # three frames of usual size are not taken for frames three pixels wide
    assert torch.equal(read_clip(saved(three, tmp_path)), three)
    for layout, axes in (("tchw", (0, 3, 1, 2)), ("cthw", (3, 0, 1, 2))):
        stored = three.permute(axes)
        assert torch.equal(read_clip(saved(stored, tmp_path), layout=" ".join(layout)), three)  # pyright: ignore[reportArgumentType]
        assert torch.equal(read_clip(saved(stored, tmp_path, layout=layout)), three)
    with pytest.raises(KinemaError, match=r"must be `3 t h w`"):
        read_clip(saved(LEVELS, tmp_path), layout="c t h w")


def test_an_undecided_clip_is_no_unreadable_one(tmp_path: Path):
    """It would be left out of a set in which most others are decided."""
    for index in range(30):
        np.save(tmp_path / f"{index}.npy", (SIGNED if index else SIGNED.clamp_min(0)).numpy())
    with pytest.raises(UndecidedClip):
        list(ReadableClips(list_clips(tmp_path), max_unreadable=0.5))


def test_written_clips_say_how_they_are_read(tmp_path: Path):
    cases: Any = (
        (UNIT.float(), "0,1", "t h w c"),
        (UNIT.numpy()[None], "0,1", "t h w c"),
        (SIGNED.permute(3, 0, 1, 2), "-1,1", "c t h w"),
        (UNIT[:3].permute(0, 3, 1, 2), "0,1", "t c h w"),
        (LEVELS, None, "t h w c"),
    )
    for values, value_range, layout in cases:
        write_clip(tmp_path / "b.safetensors", values, value_range=value_range, layout=layout, overwrite=True)
        (clip,) = list_clips(tmp_path)
        assert torch.equal(read_clip(clip), LEVELS[: 3 if layout == "t c h w" else 5])


@pytest.mark.parametrize(
    ("name", "values", "options", "message"),
    [
        ("b.npy", LEVELS, {}, "must end in .safetensors"),
        ("b.safetensors", UNIT, {}, r"`value_range` \(=None\) must be 0,1 or -1,1"),
        ("b.safetensors", SIGNED, {"value_range": "0,1"}, r"\(in \[-1, 1\]\) must be in \[0,1\]"),
        ("b.safetensors", LEVELS, {"layout": "c t h w"}, "must be one clip, `3 t h w`"),
        ("b.safetensors", LEVELS.int(), {}, "must be of uint8"),
        ("a.safetensors", LEVELS, {}, "must not exist"),
    ],
)
def test_what_is_not_written(tmp_path: Path, name: str, values: torch.Tensor, options: dict, message: str):
    write_clip(tmp_path / "a.safetensors", LEVELS)
    with pytest.raises(KinemaError, match=message):
        write_clip(tmp_path / name, values, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same frames in a lossless file, and as `output_type="np"` gives them."""
    monkeypatch.chdir(tmp_path)
    write_video("mkv/a.mkv", LEVELS.repeat(1, 2, 1, 1), 8, lossless=True)
    Path("npy").mkdir()
    np.save("npy/a.npy", UNIT.float().repeat(1, 2, 1, 1).numpy())
    return tmp_path


@pytest.mark.parametrize("flag", ["--value-range 0,1", "--value-range=0,1"])
def test_compare_is_exact_with_the_flag(folders: Path, flag: str, capsys: pytest.CaptureFixture[str]):
    assert main(f"eval compare mkv npy --metrics psnr ssim {flag}".split()) == 0
    out = capsys.readouterr().out
    assert re.search(r"PSNR \(dB\) +100\.0 ", out)
    assert re.search(r"SSIM +1\.0+ ", out)
    assert "clips none: pictures and tensors have no rate" in out


def test_compare_refuses_without_the_flag(folders: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "compare", "mkv", "npy", "--metrics", "psnr"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--value-range 0,1" in error
    # The other range can be given in both ways, though it looks like an option.
    for flag in ("--value-range -1,1", "--value-range=-1,1"):
        assert main(f"eval compare mkv npy --metrics psnr {flag}".split()) == 0
    assert main(["eval", "compare", "mkv", "npy", "--value-range", "0,255"]) == 2
    assert "`--value-range` (='0,255') must be 0,1 or -1,1" in capsys.readouterr().err
    assert main(["eval", "compare", "mkv", "npy", "--layout", "hwc"]) == 2
    assert "`--layout` (='hwc') must be thwc, tchw or cthw" in capsys.readouterr().err


def test_every_command_that_reads_clips_has_the_flags():
    required = {"fvd": "a b", "compare": "a b", "reconstruction": "--data a", "generation": "--prompts p", "suite": ""}
    for command, words in required.items():
        line = f"{words} --value-range -1,1 --layout thwc --fps 8"
        options: Any = import_module(f"kinema.apps.commands.eval_{command}").Options
        parsed = parse_options(options, line.split(), command)
        assert (parsed.reading.value_range, parsed.reading.layout, parsed.fps) == ("-1,1", "thwc", 8.0)


def test_damaged_files_are_named(tmp_path: Path):
    np.save(tmp_path / "whole.npy", LEVELS.numpy())
    save_file({"frames": LEVELS}, tmp_path / "whole.safetensors")
    for name in ("whole.npy", "whole.safetensors"):
        data = (tmp_path / name).read_bytes()
        for length, flip in itertools.product((len(data), len(data) - 1, 100, 60, 8, 3), (None, 0, 7, 9, 30)):
            changed = bytearray(data[:length])
            if flip is not None and flip < length:
                changed[flip] ^= 0xFF
            if bytes(changed) == data:
                continue
            path = tmp_path / f"broken{Path(name).suffix}"
            path.write_bytes(changed)
            reason = reason_of(path)
            assert reason is None or str(path) in reason


def test_frames_larger_than_any_video_s_are_refused(tmp_path: Path):
    np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(1, 20_000, 20_000, 3))
    reason = reason_of(tmp_path / "a.npy")
    assert reason is not None
    assert "(='" + str(tmp_path / "a.npy") + "', of 20000x20000 pixels) must have at most 89,478,485 pixels" in reason


def reason_of(path: Path) -> str | None:
    """Why a file cannot be read; None where it can. Any other error than kinema's own is one of the test."""
    try:
        read_clip(ClipFile("a", path))
    except KinemaError as error:
        return str(error)
    return None
