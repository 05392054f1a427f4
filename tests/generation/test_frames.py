"""Images in, clips out: every kind that users hold says the same."""

import numpy as np
import PIL.Image
import pytest
import torch

from kinema.errors import KinemaError
from kinema.generation.frames import convert_video, image_tensor


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


@pytest.mark.parametrize(
    "image",
    [torch.rand(4, 8, 8), torch.rand(8, 8), np.zeros((8, 8), np.uint8), torch.full((3, 8, 8), 2.0)],
    ids=["four channels", "no channels", "grey", "out of range"],
)
def test_wrong_images_are_refused(image):
    with pytest.raises(KinemaError, match="`image`"):
        image_tensor(image, 8, 8)


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
