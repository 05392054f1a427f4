"""Images in, clips out: every kind that users hold says the same."""

import numpy as np
import PIL.Image
import pytest
import torch

from kinema.errors import KinemaError
from kinema.generation.frames import convert_video, image_tensor, images_for_prompts


def test_kinds_of_images_agree():
    array = (np.random.default_rng(0).random((12, 10, 3)) * 255).astype(np.uint8)
    expected = torch.from_numpy(array).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    kinds = (
        array,
        array.astype(np.float64) / 255,
        PIL.Image.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array).permute(2, 0, 1) / 255,
    )
    for image in kinds:
        torch.testing.assert_close(image_tensor(image, 12, 10), expected)


def test_image_covers_the_frame_about_its_centre():
    image = torch.zeros(3, 20, 60)
    image[:, :, 20:40] = 1.0  # the middle third is all that a square can show
    assert image_tensor(image, 10, 10)[0, :, 0, :, 1:-1].min() > 0.9
    assert image_tensor(image, 30, 10).shape == (1, 3, 1, 30, 10)


GRAY = np.random.default_rng(1).integers(0, 256, (6, 5), dtype=np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (6, 5), dtype=np.uint8)


def on_white(color, alpha):
    return color * alpha + (1 - alpha)


@pytest.mark.parametrize(
    "image",
    [
        GRAY,
        GRAY[:, :, None],
        GRAY.astype(np.uint16) * 257,
        (GRAY.astype(np.uint16) * 257).astype(">u2"),
        np.float32(GRAY / 255).astype(">f4"),
        GRAY[::-1][::-1].astype(np.longdouble) / 255,
        torch.from_numpy(GRAY),
        torch.from_numpy(GRAY)[None].double() / 255,
        torch.from_numpy(GRAY.astype(np.uint16) * 257)[None],
        np.dstack([GRAY] * 3),
        np.dstack([GRAY, np.full_like(GRAY, 255)]),
        PIL.Image.fromarray(GRAY),
        PIL.Image.fromarray(GRAY.astype(np.uint16) * 257),
    ],
)
def test_gray_images_agree(image):
    expected = torch.from_numpy(GRAY / 255).float().expand(3, -1, -1)[None, :, None] * 2 - 1
    torch.testing.assert_close(image_tensor(image, 6, 5), expected)


@pytest.mark.parametrize("levels", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_white_in_every_kind(channels, levels):
    image = np.dstack([GRAY] * (channels - 1) + [ALPHA])
    expected = torch.from_numpy(on_white(GRAY / 255, ALPHA / 255)).float().expand(3, -1, -1)[None, :, None] * 2 - 1
    array = image.astype(levels) * 257 if levels == np.uint16 else image.astype(levels)
    array = array / np.float32(255) if levels == np.float32 else array
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for given in (array, tensor):
        torch.testing.assert_close(image_tensor(given, 6, 5), expected)
    torch.testing.assert_close(image_tensor(PIL.Image.fromarray(image), 6, 5), expected, atol=1.01 / 255, rtol=0)


def test_black_and_white_images():
    image = np.eye(4, dtype=bool)
    for given in (image, torch.from_numpy(image), PIL.Image.fromarray(image)):
        assert torch.equal(image_tensor(given, 4, 4)[0, 0, 0], torch.eye(4) * 2 - 1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(5, 8, 8), "of shape \\(5, 8, 8\\).*channels, height, width"),
        (torch.rand(8, 8, 3), "of shape \\(8, 8, 3\\).*channels, height, width"),
        (np.zeros((3, 8, 8), np.uint8), "of shape \\(3, 8, 8\\).*height, width, channels"),
        (np.zeros((2, 8, 8, 3), np.uint8), "of shape"),
        (np.zeros(8), "of shape"),
        (np.float32(1), "must be a PIL image"),
        (np.array(0.5), "of shape"),
        (np.zeros((0, 8, 3), np.uint8), "of shape"),
        (torch.full((3, 8, 8), 2.0), "values 2 to 2"),
        (torch.full((3, 8, 8), -1.0), "values -1 to -1"),
        (torch.full((3, 8, 8), float("nan")), "values nan"),
        (torch.full((3, 8, 8), float("inf")), "values inf"),
        (np.full((8, 8, 3), 200.0), "values 200 to 200"),
        (np.zeros((8, 8, 3), np.int64), "of int64"),
        (torch.zeros(3, 8, 8, dtype=torch.int8), "of int8"),
        (np.zeros((8, 8, 3), np.uint32), "of uint32"),
        (np.zeros((8, 8, 3), np.complex64), "of complex64"),
        (np.full((8, 8, 3), "x"), "an array of <U1"),
        (np.full((8, 8, 3), None), "an array of object"),
        (PIL.Image.new("F", (8, 8), 0.5), "floats"),
        (PIL.Image.new("I", (8, 8), 5), "32-bit integers"),
        ([[1, 2], [3, 4]], "a list"),
        ("picture.png", "a str"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(KinemaError, match=f"`image` \\(.*{message}|`image` must have.*{message}"):
        image_tensor(image, 8, 8)


def test_rounding_beyond_the_range_is_cut():
    assert image_tensor(torch.full((3, 2, 2), 1 + 1e-6), 2, 2).max() == 1


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (1, 1)])
def test_odd_sizes_are_cropped_before_they_are_enlarged(shape):
    assert torch.equal(image_tensor(np.full(shape, 255, np.uint8), 64, 64), torch.ones(1, 3, 1, 64, 64))


def test_several_images():
    array = np.random.default_rng(0).random((2, 6, 5, 3))
    separate = torch.cat([image_tensor(each, 6, 5) for each in array])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for given in (array, tensor, list(array), tuple(tensor), [array[0], tensor[1]]):
        images = images_for_prompts(given, 2, 6, 5)
        assert images is not None
        assert torch.equal(images, separate)
    with pytest.raises(KinemaError, match="`image\\[1\\]` \\(a NoneType\\)"):
        image_tensor(None, 6, 5, name="image[1]")
    with pytest.raises(KinemaError, match="`image\\[1\\]` \\(values 3 to 3\\)"):
        images_for_prompts([array[0], array[1] * 0 + 3], 2, 6, 5)


def test_output_types_agree():
    video = torch.rand(2, 3, 4, 6, 5) * 2.4 - 1.2
    tensor, array, images = (convert_video(video, kind) for kind in ("pt", "np", "pil"))
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(array, np.ndarray)
    assert isinstance(images, list)
    torch.testing.assert_close(tensor, (video.clamp(-1, 1) / 2 + 0.5).transpose(1, 2))
    np.testing.assert_allclose(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    np.testing.assert_allclose(np.asarray(images[1][3]), array[1, 3] * 255, atol=0.501)


def test_what_is_transparent_becomes_white():
    picture = PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert torch.equal(image_tensor(picture, 4, 4), torch.ones(1, 3, 1, 4, 4))
