"""Pictures of every kind become what a viewer shows: sRGB, upright, on white; or one clear line."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from kinema.errors import KinemaError
from kinema.images import (
    MAX_PIXELS,
    PictureWarning,
    levels_of_16_bits,
    opaque,
    read_image,
    read_image_with_alpha,
    rgb_picture,
)

WHITE = [255, 255, 255]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, depth: int, color: int, row: bytes, chunks: Iterable[tuple[bytes, bytes]] = (), height: int = 1):
    """A PNG file (ISO/IEC 15948); Pillow does not write all the kinds that it reads."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress((b"\0" + row) * min(height, 4))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def tiff(width: int, bits: int, photometric: int, row: bytes, sample_format: int = 1) -> bytes:
    """A TIFF file of one channel and one row (TIFF 6.0)."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1),
               (279, len(row)), (339, sample_format)]  # fmt: skip
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(row)) + row + struct.pack("<H", len(entries)) + directory + b"\0" * 4


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def levels(path: Path, data: bytes) -> list[list[int]]:
    path.write_bytes(data)
    return read_image(path).flatten(0, 1).tolist()


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
TWO_COLORS = (b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
KINDS: dict[str, tuple[bytes, list[list[int]]]] = {
    "gray 16": (png(2, 16, GRAY, shorts(0x8080, 0x00FF)), [[128] * 3, [1] * 3]),
    "gray 16, transparent": (png(2, 16, GRAY, shorts(0x8080, 0x00FF), [(b"tRNS", shorts(0x8080))]), [WHITE, [1] * 3]),
    "gray 4, transparent": (png(2, 4, GRAY, b"\x56", [(b"tRNS", shorts(5))]), [WHITE, [102] * 3]),
    "gray 2, transparent": (png(2, 2, GRAY, b"\x60", [(b"tRNS", shorts(1))]), [WHITE, [170] * 3]),
    "gray 1, transparent": (png(2, 1, GRAY, b"\x80", [(b"tRNS", shorts(0))]), [WHITE, WHITE]),
    "gray 8, transparent": (png(2, 8, GRAY, b"\x01\x04", [(b"tRNS", shorts(1))]), [WHITE, [4] * 3]),
    "gray, alpha 16": (png(2, 16, GRAY_ALPHA, shorts(0x8080, 0xFFFF, 0, 0)), [[128] * 3, WHITE]),
    "rgb 16": (png(1, 16, RGB, shorts(0x8080, 0, 0xFFFF)), [[128, 0, 255]]),
    "rgb 16, transparent": (
        png(2, 16, RGB, shorts(0x80FF, 0, 0xFFFF, 0x1010, 0, 0), [(b"tRNS", shorts(0x80FF, 0, 0xFFFF))]),
        [WHITE, [16, 0, 0]],
    ),
    "rgb 8, transparent": (png(2, 8, RGB, bytes(range(6)), [(b"tRNS", shorts(0, 1, 2))]), [WHITE, [3, 4, 5]]),
    "rgba 16": (png(2, 16, RGBA, shorts(0, 0, 0, 0, 0x0101, 0x0202, 0x0303, 0xFFFF)), [WHITE, [1, 2, 3]]),
    "palette, alphas": (png(2, 8, PALETTE, b"\0\1", [TWO_COLORS, (b"tRNS", b"\0\xff")]), [WHITE, [40, 50, 60]]),
    "palette, an index": (png(2, 8, PALETTE, b"\0\1", [TWO_COLORS, (b"tRNS", b"\xff\0")]), [[10, 20, 30], WHITE]),
    "white is zero, 16": (tiff(2, 16, 0, struct.pack("<HH", 0, 0xFFFF)), [WHITE, [0] * 3]),
    "white is zero, 8": (tiff(2, 8, 0, b"\0\xff"), [WHITE, [0] * 3]),
    "12 bits": (tiff(2, 12, 1, b"\xff\xf0\x00"), [WHITE, [0] * 3]),
    "pgm 16": (b"P5 2 1 65535\n" + shorts(0x8080, 0x00FF), [[128] * 3, [1] * 3]),
    "pgm 10": (b"P5 2 1 1023\n" + shorts(512, 1023), [[128] * 3, WHITE]),
    "bits": (b"P1 2 1\n0 1\n", [WHITE, [0] * 3]),
    "cmyk": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[255, 0, 0]]),
    "cmyk of Adobe, inverted": (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG", quality=100), [[255, 0, 0]]),
    "gray, alpha": (saved(Image.new("LA", (1, 1), (10, 0)), "PNG"), [WHITE]),
    "webp": (saved(Image.new("RGBA", (1, 1), (10, 0, 0, 0)), "WEBP", lossless=True), [WHITE]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_levels_and_transparency(kind: str, tmp_path: Path):
    data, expected = KINDS[kind]
    assert levels(tmp_path / "x.png", data) == expected


def test_transparency_can_be_kept(tmp_path: Path):
    Image.new("LA", (2, 1), (10, 70)).save(tmp_path / "a.png")
    assert read_image_with_alpha(tmp_path / "a.png").tolist() == [[[10, 10, 10, 70]] * 2]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image_with_alpha(tmp_path / "a.png").tolist() == [[[1, 2, 3, 255]]]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 255, WHITE), ("L", 9, [9, 9, 9]), ("LA", (9, 0), WHITE), ("La", (0, 0), WHITE), ("P", 0, [0, 0, 0]),
        ("PA", (0, 0), WHITE), ("RGB", (1, 2, 3), [1, 2, 3]), ("RGBA", (1, 2, 3, 0), WHITE),
        ("RGBX", (1, 2, 3, 0), [1, 2, 3]), ("RGBa", (0, 0, 0, 0), WHITE), ("CMYK", (0, 0, 0, 255), [0, 0, 0]),
        ("YCbCr", (255, 128, 128), WHITE), ("HSV", (0, 255, 255), [255, 0, 0]), ("LAB", (255, 128, 128), WHITE),
        ("I;16", 0x8080, [128] * 3), ("I;16B", 0x8080, [128] * 3), ("I;16L", 0x8080, [128] * 3),
    ],
)  # fmt: skip
def test_modes_of_pil(mode: str, color: object, expected: list[int]):
    image = Image.new(mode, (3, 2), color)  # pyright: ignore[reportArgumentType]
    for picture in (rgb_picture(image), opaque(image)):
        assert picture.mode == "RGB"
        assert picture.size == (3, 2)
        np.testing.assert_allclose(np.asarray(picture), np.broadcast_to(expected, (2, 3, 3)), atol=1)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_levels_without_a_stated_range_are_refused(mode: str, tmp_path: Path):
    image = Image.new(mode, (2, 2), 1)
    with pytest.raises(KinemaError, match="range is unknown"):
        rgb_picture(image)
    for data in (saved(image, "TIFF"), tiff(1, 16, 1, struct.pack("<h", -5), sample_format=2)):
        (tmp_path / "x.tif").write_bytes(data)
        with pytest.raises(KinemaError, match=r"`first` \(=.*x.tif'\) must have 8 or 16 bits"):
            read_image(tmp_path / "x.tif", name="first")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations(kind: str, tmp_path: Path):
    blocks = np.zeros((2, 3), np.uint8)
    blocks[0, 0], blocks[0, 2] = 255, 120
    image = Image.fromarray(np.kron(blocks, np.ones((16, 16), np.uint8)).repeat(3).reshape(32, 48, 3))
    # Exif 2.32, tag 0x0112: where row 0 and column 0 of the file are.
    upright = [blocks, blocks[:, ::-1], blocks[::-1, ::-1], blocks[::-1], blocks.T, blocks.T[:, ::-1],
               blocks.T[::-1, ::-1], blocks.T[::-1]]  # fmt: skip
    for orientation, expected in enumerate(upright, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(image, kind, exif=exif, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
        (tmp_path / "x").write_bytes(data)
        (height, width), pixels = expected.shape, read_image(tmp_path / "x").float()
        assert pixels.shape == (16 * height, 16 * width, 3)
        means = pixels.reshape(height, 16, width, 16, 3).mean((1, 3, 4))
        np.testing.assert_allclose(means, expected, atol=6)


def test_damaged_metadata_is_no_obstacle(tmp_path: Path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01garbage" * 4
    assert levels(tmp_path / "x", saved(Image.new("RGB", (1, 1), "white"), "JPEG", exif=exif)) == [WHITE]


def profile(gamma: float, space: bytes = b"RGB ") -> bytes:
    """A colour profile with the primaries of sRGB and a plain power as its curve (ICC.1:2001-04)."""

    def numbers(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    white = (0.9642, 1.0, 0.8249)
    xyz = {b"wtpt": white, b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971),
           b"bXYZ": (0.1431, 0.0606, 0.7141)}  # fmt: skip
    tags = {name: b"XYZ \0\0\0\0" + numbers(*value) for name, value in xyz.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC", b"kTRC"), curve)
    tags |= {
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + b"\0" * 78,
    }
    offset, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    header = struct.pack(">I4s4s4s4s4s", offset + len(data), b"", b"\x02\x10", b"mntr", space, b"XYZ ")
    return header + b"\0" * 12 + b"acsp" + b"\0" * 28 + numbers(*white) + b"\0" * 48 + table + data


def test_other_color_spaces_become_srgb(tmp_path: Path):
    linear = profile(1.0)
    [color] = levels(tmp_path / "x", saved(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG", icc_profile=linear))
    # IEC 61966-2-1: sRGB = 1.055 linear^(1/2.4) - 0.055
    expected = [255 * (1.055 * (level / 255) ** (1 / 2.4) - 0.055) for level in (200, 100, 50)]
    np.testing.assert_allclose(color, expected, atol=1.5)
    plain = Image.new("RGB", (1, 1), (100, 100, 100))
    for image in (plain.convert("RGBA"), plain.convert("L"), plain.quantize(2)):
        [color] = levels(tmp_path / "x", saved(image, "PNG", icc_profile=linear))
        np.testing.assert_allclose(color, [expected[1]] * 3, atol=1.5)
    gray = saved(Image.new("L", (1, 1), 100), "PNG", icc_profile=profile(1.0, b"GRAY"))
    np.testing.assert_allclose(levels(tmp_path / "x", gray)[0], [expected[1]] * 3, atol=1.5)


def test_srgb_profiles_change_nothing(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "x.png", icc_profile=srgb)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), pixels)


@pytest.mark.parametrize("icc", [b"nonsense" * 20, profile(1.0, b"CMYK")], ids=["no profile", "of other channels"])
def test_wrong_profile_is_said(icc: bytes, tmp_path: Path):
    with pytest.warns(PictureWarning, match=r"`path` \(=.*x'\) has a colour profile that cannot be used"):
        assert levels(tmp_path / "x", saved(Image.new("RGB", (1, 1), "white"), "PNG", icc_profile=icc)) == [WHITE]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_of_several_pictures(kind: str, tmp_path: Path):
    first, second = (Image.new("RGB", (2, 2), color) for color in ("red", "blue"))
    data = saved(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    with pytest.warns(PictureWarning, match="several pictures, of which the first"):
        assert levels(tmp_path / "x", data) == [[255, 0, 0]] * 4


@pytest.mark.parametrize("transparent", [False, True])
def test_what_the_first_frame_of_a_gif_leaves_open_is_white(transparent: bool, tmp_path: Path):
    screen = b"GIF89a" + struct.pack("<HH", 3, 1) + b"\x80\1\0" + bytes([255, 0, 0, 0, 0, 255])  # red, blue
    control = b"!\xf9\4" + bytes([transparent, 0, 0, 1]) + b"\0"
    pixel = b"," + struct.pack("<HHHH", 1, 0, 1, 1) + b"\0" + b"\2\2\x44\1\0;"  # LZW: clear, 0, end
    assert levels(tmp_path / "x.gif", screen + control + pixel) == [WHITE, [255, 0, 0], WHITE]


def test_frame_that_a_pil_image_stands_at_is_taken():
    first, second = (Image.new("RGB", (2, 2), color) for color in ("red", "blue"))
    with Image.open(io.BytesIO(saved(first, "GIF", save_all=True, append_images=[second]))) as image:
        image.seek(1)
        assert rgb_picture(image).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA"])
def test_truncated_pictures_are_refused(kind: str, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = saved(Image.fromarray(pixels), kind)
    (tmp_path / "x").write_bytes(data[: len(data) * 3 // 5])
    with pytest.raises(KinemaError, match=r"`path` \(=.*complete and readable"):
        read_image(tmp_path / "x")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"\0" * 100, b"\x89PNG\r\n\x1a\n",
        saved(Image.new("RGB", (2, 2)), "EPS"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript must not run"))
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(KinemaError, match="`path`"):
        read_image(tmp_path / "x")


def test_damaged_pictures_say_one_line_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = bytearray(tiff(1, 8, 1, b"\0"))
    data[data.index(struct.pack("<HHIHH", 277, 3, 1, 1, 0)) + 8] = 9  # samples a pixel, of which Pillow logs an error
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(KinemaError, match="must be a picture"):
        read_image(tmp_path / "x.tif")
    assert caplog.records == []


@pytest.mark.parametrize("place", ["folder", "pipe", "loop", "missing"])
def test_odd_places_are_refused(place: str, tmp_path: Path):
    path = tmp_path / f"{place}.png"
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "loop":
        path.symlink_to(path)
    with pytest.raises(KinemaError, match="`path`"):
        read_image(path)


@pytest.mark.parametrize("size", [(10000, 13422), (20000, 20000), (10**6, 10**6)])
def test_bombs_are_refused_before_they_go_off(size: tuple[int, int], tmp_path: Path):
    width, height = size
    assert width * height > MAX_PIXELS
    (tmp_path / "x.png").write_bytes(png(width, 1, GRAY, b"\0" * (width // 8), height=height))
    with pytest.raises(KinemaError, match=f"at most {MAX_PIXELS} pixels") as error:
        read_image(tmp_path / "x.png")
    assert "\n" not in str(error.value)


def test_large_pictures_below_the_limit_give_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    (tmp_path / "x.png").write_bytes(saved(Image.new("RGB", (2, 2), "white"), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "x.png").shape == (2, 2, 3)


def test_16_bits_are_rounded():
    values = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(levels_of_16_bits(values), np.round(values / 257).astype(np.uint8))
