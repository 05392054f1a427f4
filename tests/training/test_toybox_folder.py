"""Toybox files: sprite folders, the sprite archive, and clips with captions and ground truth on disk."""

import io
import json
import subprocess
import tarfile
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from kinema.errors import KinemaError
from kinema.training.data.toybox import DEFAULT_OBJECTS, ClipSpec, Toybox, build_sprites, render_to_folder
from kinema.training.data.toybox import build as build_module
from kinema.training.data.toybox.build import names_list
from kinema.training.data.toybox.shapes import draw_shape
from kinema.training.data.toybox.sprites import build_atlas


def picture(name: str, side: int = 64) -> Image.Image:
    pixels = rearrange(draw_shape(name, side) * 255, "c h w -> h w c").round().to(torch.uint8).numpy()
    return Image.fromarray(pixels)


@pytest.fixture
def sprites(tmp_path):
    folder = tmp_path / "sprites"
    folder.mkdir()
    entries = []
    for name, shape in [("fire engine", "red arrow"), ("moon", "yellow crescent"), ("car", "blue heart")]:
        file = f"{name.replace(' ', '_')}.png"
        picture(shape).save(folder / file)
        entries.append({"name": name, "file": file, "group": "test"})
    (folder / "sprites.json").write_text(json.dumps({"licence": "none", "sprites": entries}))
    return folder


def test_sprites_are_drawn_as_the_shapes_they_are_pictures_of(sprites):
    drawn = Toybox(objects=["red arrow"], num_frames=3)
    spec = drawn.specs([0])[0]
    item = spec.objects[0]
    renamed = ClipSpec.from_dict({**spec.to_dict(), "objects": [{**vars(item), "name": "fire engine"}]})
    loaded = Toybox(sprites, objects=["moon", "fire engine"], num_frames=3)
    difference = (loaded.render([renamed]).video - drawn.render([spec]).video).abs()
    assert difference.mean() < 0.01
    assert "fire engine" in loaded.captions([renamed])[0]


def test_default_objects_are_those_that_the_folder_has(sprites):
    assert Toybox(sprites).objects == ("car",)
    manifest = json.loads((sprites / "sprites.json").read_text())
    manifest["sprites"].pop()
    (sprites / "sprites.json").write_text(json.dumps(manifest))
    assert Toybox(sprites).objects == ("fire engine", "moon")


def test_bad_sprite_folders_are_named(sprites):
    with pytest.raises(KinemaError, match="'zeppelin'"):
        Toybox(sprites, objects=["zeppelin"])
    (sprites / "moon.png").write_bytes(b"not a picture")
    with pytest.raises(KinemaError, match=r"moon\.png"):
        Toybox(sprites, objects=["moon"])
    Image.new("RGBA", (8, 8)).save(sprites / "moon.png")
    with pytest.raises(KinemaError, match="opaque"):
        Toybox(sprites, objects=["moon"])
    (sprites / "moon.png").unlink()
    with pytest.raises(KinemaError, match=r"moon\.png"):
        Toybox(sprites, objects=["moon"])
    for text in ("{", "[]", '{"sprites": [{"name": "x"}]}'):
        (sprites / "sprites.json").write_text(text)
        with pytest.raises(KinemaError, match=r"sprites\.json"):
            Toybox(sprites)


def test_atlas_levels_hold_the_whole_object_at_each_size():
    tall = torch.zeros(4, 40, 40)
    tall[:, 4:36, 10:26] = 1.0
    atlas = build_atlas(["tall"], [tall], 32)
    assert atlas.extents == ((0.5, 1.0),)
    assert atlas.sides[0] == 32
    assert atlas.sides[-1] == 8
    for side, middle in zip(atlas.sides.tolist(), atlas.centre_y.tolist(), strict=True):
        level = atlas.pixels[0, 3, round(middle - side / 2) : round(middle + side / 2)]
        assert level.sum() == pytest.approx(side * side / 2, rel=0.03)
    assert atlas.pixels[0, 3, :2].abs().max() == atlas.pixels[0, 3, :, :2].abs().max() == 0
    torch.testing.assert_close(atlas.pixels[0, 0], atlas.pixels[0, 3])  # white: 2 * 1 - 1 where opaque


def make_archive(path, names):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            data = io.BytesIO()
            picture("red star").save(data, "WEBP")
            member = tarfile.TarInfo(f"package/assets/{name}")
            member.size = data.tell()
            tar.addfile(member, io.BytesIO(data.getvalue()))


@pytest.fixture
def short_list(monkeypatch):
    entries = [{**entry} for entry in names_list()["sprites"][:3]]
    monkeypatch.setattr(build_module, "names_list", lambda: {**names_list(), "sprites": entries})
    return entries


def test_names_list_has_the_default_objects_once_each():
    entries = names_list()["sprites"]
    assert len(entries) == 269
    assert len({entry["name"] for entry in entries}) == len({entry["file"] for entry in entries}) == 269
    assert set(DEFAULT_OBJECTS) <= {entry["name"] for entry in entries}
    assert all(set(entry) == {"name", "file", "group"} for entry in entries)


def test_sprites_are_built_from_the_archive(tmp_path, short_list):
    make_archive(tmp_path / "package.tgz", [entry["file"] for entry in short_list] + ["other.webp"])
    folder = build_sprites(tmp_path / "out", archive=tmp_path / "package.tgz")
    manifest = json.loads((folder / "sprites.json").read_text())
    assert [entry["name"] for entry in manifest["sprites"]] == [entry["name"] for entry in short_list]
    assert len(list(folder.iterdir())) == 4
    for entry in manifest["sprites"]:
        with Image.open(folder / entry["file"]) as image:
            assert (image.size, image.mode, image.format) == ((128, 128), "RGBA", "WEBP")
            assert np.asarray(image)[64, 50, 3] > 240
    assert Toybox(folder).objects == tuple(entry["name"] for entry in short_list)
    with pytest.raises(KinemaError, match="`out_dir`"):
        build_sprites(tmp_path / "out", archive=tmp_path / "package.tgz")
    build_sprites(tmp_path / "out", archive=tmp_path / "package.tgz", overwrite=True)


def test_a_wrong_archive_leaves_nothing(tmp_path, short_list):
    make_archive(tmp_path / "package.tgz", [short_list[0]["file"]])
    (tmp_path / "text.tgz").write_text("no archive")
    for name, message in [("package.tgz", "2 pictures"), ("text.tgz", "`archive`"), ("absent.tgz", "`archive`")]:
        with pytest.raises(KinemaError, match=message):
            build_sprites(tmp_path / "made" / "out", archive=tmp_path / name)
    assert not (tmp_path / "made" / "out").exists()
    assert list((tmp_path / "made").iterdir()) == []


def test_npm_fetches_the_named_package(tmp_path, short_list, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        make_archive(f"{command[-1]}/lobehub.tgz", [entry["file"] for entry in short_list])

    monkeypatch.setattr(build_module.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(build_module.subprocess, "run", run)
    build_sprites(tmp_path / "out")
    assert commands[0][:3] == ["/bin/npm", "pack", "@lobehub/fluent-emoji-3d@1.1.0"]

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command, "", "npm error\nE404 not found")

    monkeypatch.setattr(build_module.subprocess, "run", fail)
    with pytest.raises(KinemaError, match="npm error E404 not found") as error:
        build_sprites(tmp_path / "again")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(build_module.shutil, "which", lambda name: None)
    with pytest.raises(KinemaError, match="`npm`"):
        build_sprites(tmp_path / "again")


def test_clips_are_written_with_captions_and_ground_truth(tmp_path):
    from kinema.video import read_video, to_uint8

    folder = render_to_folder(
        tmp_path / "out", 3, first=4, num_frames=5, height=32, width=48, seed=2, split="test", fps=6, lossless=True
    )
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    truths = [json.loads(line) for line in (folder / "ground_truth.jsonl").read_text().splitlines()]
    assert [line["file"] for line in captions] == ["00004.mp4", "00005.mp4", "00006.mp4"]
    assert sorted(file.name for file in folder.iterdir()) == [
        "00004.mp4", "00005.mp4", "00006.mp4", "captions.jsonl", "ground_truth.jsonl",
    ]  # fmt: skip
    batch = Toybox(num_frames=5, height=32, width=48, seed=2, split="test").batch(range(4, 7))
    for number, (line, truth) in enumerate(zip(captions, truths, strict=True)):
        assert line == {"file": truth["file"], "caption": batch.captions[number]}
        assert ClipSpec.from_dict(truth["spec"]) == batch.specs[number]
        assert truth["objects"] == batch.ground_truth[number]["objects"]
        video = read_video(folder / line["file"])
        assert video.fps == pytest.approx(6)
        assert torch.equal(video.frames, to_uint8(batch.video[number]))


def test_clips_of_an_earlier_call_do_not_stay_without_captions(tmp_path):
    small: Any = dict(num_frames=1, height=16, width=16)
    render_to_folder(tmp_path, 3, **small)
    (tmp_path / "00009.mp4").write_text("not from here")
    render_to_folder(tmp_path, 2, **small, overwrite=True)
    assert sorted(file.name for file in tmp_path.glob("*.mp4")) == ["00000.mp4", "00001.mp4", "00009.mp4"]
    render_to_folder(tmp_path, 1, first=7, **small, overwrite=True)
    assert sorted(file.name for file in tmp_path.glob("*.mp4")) == ["00007.mp4", "00009.mp4"]


def test_folders_with_files_are_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(KinemaError, match=r"`out` .*--overwrite"):
        render_to_folder(out, 1, num_frames=1, height=16, width=16)
    assert [file.name for file in out.iterdir()] == ["precious.txt"]
    render_to_folder(out, 1, num_frames=1, height=16, width=16, overwrite=True)
    assert (out / "precious.txt").read_text() == "mine"
    assert (out / "00000.mp4").exists()
    with pytest.raises(KinemaError, match="folder"):
        render_to_folder(out / "precious.txt", 1)
    for values, message in [({"num_clips": 0}, "num_clips"), ({"fps": 0.0}, "fps"), ({"first": -1}, "first")]:
        with pytest.raises(KinemaError, match=message):
            render_to_folder(tmp_path / "new", **{"num_clips": 1, **values})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]
