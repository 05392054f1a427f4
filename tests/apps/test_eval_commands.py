"""`kinema eval`: figures in JSON and on a page, agreement with the library, and mistakes in one line."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kinema.apps.cli import main
from kinema.eval.clips import list_clips
from kinema.eval.fvd import EXTRAS, VideoFeatures, evaluate_fvd
from kinema.eval.networks.i3d import I3D
from kinema.eval.reconstruction import compare_clips
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.video import write_video


class TinyFeatures(I3D):
    """In place of I3D: random projections of coarse pixels."""

    num_features = 20
    weights: torch.Tensor

    def __init__(self) -> None:
        nn.Module.__init__(self)
        weights = torch.randn(3 * 4 * 8 * 8, self.num_features, generator=torch.Generator().manual_seed(7))
        self.register_buffer("weights", weights / 16)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        small = nn.functional.adaptive_avg_pool3d(video, (4, 8, 8)).flatten(1)
        return small @ self.weights


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch):
    """FVD without I3D, which would take seconds a clip."""
    monkeypatch.setattr("kinema.eval.fvd.features.load_i3d", lambda _: TinyFeatures())


def noise(seed: int, frames: int = 10, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, side, side, 3), generator=generator, dtype=torch.uint8)


def save(path: Path | str, frames: torch.Tensor) -> None:
    np.save(f"{path}.npy", frames.numpy())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two folders of eight clips, of different kinds, and a prompt for each."""
    (tmp_path / "real").mkdir()
    (tmp_path / "fake").mkdir()
    for index in range(8):
        save(tmp_path / "real" / f"{index}", noise(index))
        save(tmp_path / "fake" / f"{index}", noise(index) // 2 + 60)
    (tmp_path / "real" / "0.npy").unlink()
    write_video(tmp_path / "real" / "0.mp4", noise(0), 8, lossless=True)
    (tmp_path / "prompts.txt").write_text("".join(f"a <clip> number {index}\n" for index in range(8)))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


WHOLE_PROTOCOL = (
    "protocol styleganv: windows of 16 frames with stride 1, 1 a video, position random, seed 0; clips as they come, "
    "then stretched to 224 (bilinear, not antialiased, not rounded); covariance population"
)

FVD = "eval fvd real fake --num-frames 9"


def clips_of(folder: str) -> Any:
    from kinema.eval.clips import ReadableClips

    return ReadableClips(list_clips(folder))


def run(line: str) -> int:
    return main(line.split())


def test_fvd_is_what_the_library_says(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(f"{FVD} --json r.json --html r.html") == 0
    found = json.loads(Path("r.json").read_text())
    features = VideoFeatures("styleganv", network=TinyFeatures())
    features.protocol = features.protocol.changed(num_frames=9)
    wanted = evaluate_fvd(clips_of("real"), clips_of("fake"), features=features).as_dict()
    assert found["fvd"] == pytest.approx(wanted["fvd"], rel=1e-9)
    assert found["fvd"] > 0
    assert set(EXTRAS) <= found.keys()
    assert found["kvd"] == pytest.approx(wanted["kvd"], rel=1e-6)
    assert (found["num_real"], found["num_fake"], found["unreadable"]) == (8, 8, {})
    assert found["protocol"]["name"] == "styleganv"
    assert found["protocol"]["num_frames"] == 9
    assert found["protocol"]["changed"] == ["num_frames"]
    captured = capsys.readouterr()
    assert f"FVD {found['fvd']:.2f}" in captured.out
    assert WHOLE_PROTOCOL.replace("16 frames", "9 frames") in captured.out
    assert "changed from the published one in num_frames" in captured.out
    assert "fewer than 400" in captured.err
    page = Path("r.html").read_text()
    assert "styleganv" in page
    assert page.count("<video") == 2
    assert page.count("data:image/svg+xml") == 1


def test_fvd_of_a_folder_with_itself_is_0(folder: Path):
    assert run("eval fvd real real --num-frames 9 --json r.json") == 0
    found = json.loads(Path("r.json").read_text())
    assert (found["fvd"], found["kvd"], found["mmd"]) == (0, 0, 0)


def test_kept_statistics_give_the_same_value(folder: Path, monkeypatch: pytest.MonkeyPatch):
    line = f"{FVD} --statistics-dir kept --json r.json --overwrite"
    assert run(f"{line} --save-statistics saved.safetensors") == 0
    first = json.loads(Path("r.json").read_text())
    assert len(list(Path("kept").iterdir())) == 1
    assert run(f"{FVD} --json plain.json") == 0
    assert json.loads(Path("plain.json").read_text()) == first
    # From now on the real clips cannot be read: their statistics are used.
    monkeypatch.setattr("kinema.eval.fvd.reference_statistics", None)
    assert run(line) == 0
    assert json.loads(Path("r.json").read_text()) == first
    assert run("eval fvd saved.safetensors fake --num-frames 9 --json r.json --overwrite") == 0
    assert json.loads(Path("r.json").read_text()) == first


def test_kept_statistics_know_what_was_skipped(folder: Path, capsys: pytest.CaptureFixture[str]):
    """The second time the real clips are not read for the value, and the page must not read broken ones either."""
    Path("real/0.mp4").write_bytes(b"broken")
    line = f"{FVD} --statistics-dir kept --max-unreadable 0.2 --json r.json --html r.html --overwrite"
    pages = []
    for _ in range(2):
        assert run(f"{line} --save-statistics saved.safetensors") == 0
        assert "1 clips could not be read: real/0" in capsys.readouterr().out
        assert list(json.loads(Path("r.json").read_text())["unreadable"]) == ["real/0"]
        pages.append(Path("r.html").read_text().count("<video"))
    assert pages == [2, 2]
    assert run(line.replace("0.2", "0.1")) == 2
    assert "1 of 8 clips unreadable" in capsys.readouterr().err
    assert run("eval fvd saved.safetensors fake --num-frames 9 --json saved.json") == 0
    assert list(json.loads(Path("saved.json").read_text())["unreadable"]) == ["real/0"]


def test_damaged_statistics_are_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    line = f"{FVD} --statistics-dir kept --json r.json --overwrite"
    assert run(f"{line} --save-statistics saved.safetensors") == 0
    wanted = Path("r.json").read_text()
    (kept,) = Path("kept").iterdir()
    whole = kept.read_bytes()
    for data in (whole[:-1], whole[:50], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(data)
        capsys.readouterr()
        assert run(line) == 0
        assert "measured anew: `statistics`" in capsys.readouterr().err
        assert Path("r.json").read_text() == wanted
        assert kept.stat().st_size == len(whole)
        Path("saved.safetensors").write_bytes(data)
        assert run("eval fvd saved.safetensors fake --num-frames 9") == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert run(f"{FVD} --statistics-dir real/1.npy/x") == 2
    assert "`--statistics-dir`" in capsys.readouterr().err


def test_kept_statistics_belong_to_a_rate(folder: Path, capsys: pytest.CaptureFixture[str]):
    for index in range(8):
        write_video(f"real/{index}.mp4", noise(index, 40), 24, lossless=True, overwrite=True)
        Path(f"real/{index}.npy").unlink(missing_ok=True)
    line = f"{FVD} --statistics-dir kept --save-statistics saved.safetensors --json r.json --overwrite"
    values = set()
    for options in ("--fps 8", "", "--fps 8", "--fps 12"):
        assert run(f"{line} {options}") == 0
        found = json.loads(Path("r.json").read_text())
        assert found["rates"]["real"]["median"] == 24
        assert found["rates"]["fake"]["num_unknown"] == 8
        values.add(found["fvd"])
    assert len(values) == len(list(Path("kept").iterdir())) == 3
    capsys.readouterr()
    assert run("eval fvd saved.safetensors fake --num-frames 9 --fps 12 --json s.json") == 0
    assert json.loads(Path("s.json").read_text())["rates"]["real"]["median"] == 24
    capsys.readouterr()
    assert run("eval fvd saved.safetensors fake --num-frames 9") == 2
    assert "`real` (statistics of 12 frames a second) must be of frames as stored" in capsys.readouterr().err


def test_features_are_kept_only_where_a_score_needs_them(folder: Path):
    from kinema.eval.fvd import ReferenceStatistics

    def kept() -> ReferenceStatistics:
        (path,) = Path("kept").iterdir()
        return ReferenceStatistics.load(path)

    line = f"{FVD} --statistics-dir kept --metrics"
    for metrics, features in (("", False), ("inception_score", False), ("kvd", True), ("", True)):
        assert run(f"{line} {metrics}") == 0
        assert (kept().features is not None) == features, metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--save-statistics s.safetensors --json s.safetensors", "`--json` (='s.safetensors') must be another file"),
        ("--save-statistics s.safetensors --html s.safetensors", "`--html` (='s.safetensors') must be another file"),
        ("--save-statistics real/s.safetensors", "must not be in `real`, as it would be one of its clips"),
        ("--save-statistics fake/s.safetensors", "must not be in `fake`, as it would be one of its clips"),
        ("--save-statistics w.safetensors --weights w.safetensors", "must be another file than `--weights`"),
        ("--json fake/1.npy", "must not be in `fake`, as it would be one of its clips"),
    ],
)
def test_results_never_replace_each_other_nor_clips(
    options: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    Path("w.safetensors").write_bytes(b"weights")
    assert run(f"{FVD} --overwrite {options}") == 2
    assert message in capsys.readouterr().err
    assert Path("w.safetensors").read_bytes() == b"weights"
    assert len(list(Path("real").iterdir())) == len(list(Path("fake").iterdir())) == 8


def test_statistics_of_a_changed_folder_are_made_anew(folder: Path):
    for _ in range(2):
        assert run(f"{FVD} --statistics-dir kept") == 0
        save("real/1", noise(99))
    assert len(list(Path("kept").iterdir())) == 2


def test_statistics_of_another_protocol_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(f"{FVD} --save-statistics saved.safetensors") == 0
    assert run("eval fvd saved.safetensors fake --num-frames 10") == 2
    assert "must be measured as the fake videos" in capsys.readouterr().err


def test_unreadable_clips_are_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("fake/3.npy").write_bytes(b"broken")
    assert run(f"{FVD} --max-unreadable 0.2 --json r.json --html r.html") == 0
    found = json.loads(Path("r.json").read_text())
    assert list(found["unreadable"]) == ["fake/3"]
    assert (found["num_real"], found["num_fake"]) == (8, 7)
    assert "1 clips could not be read: fake/3" in capsys.readouterr().out
    assert "fake/3" in Path("r.html").read_text()
    assert run(FVD) == 2
    assert "1 of 8 clips unreadable" in capsys.readouterr().err


def test_compare_is_what_the_library_says(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run("eval compare real fake --metrics psnr flicker --json r.json --html r.html") == 0
    found = json.loads(Path("r.json").read_text())
    pairs = [(str(i), noise(i), noise(i) // 2 + 60) for i in range(8)]
    wanted = compare_clips(pairs, ("psnr", "flicker"))
    assert found["psnr"] == pytest.approx(wanted.metrics["psnr"], abs=1e-6)
    assert found["flicker"] == pytest.approx(wanted.metrics["flicker"], abs=1e-6)
    assert [clip["name"] for clip in found["clips"]] == [str(i) for i in range(8)]
    assert f"{found['psnr']:.2f}" in capsys.readouterr().out
    page = Path("r.html").read_text()
    assert page.count("<video") == 4
    assert page.count("data:image/svg+xml") == 4  # a curve and a histogram each


def test_compare_reads_the_part_that_is_asked_for(folder: Path):
    assert run("eval compare real fake --metrics psnr --num-frames 3 --stride 2 --resolution 8 --json r.json") == 0
    found = json.loads(Path("r.json").read_text())
    assert found["num_frames"] == 24
    assert (found["clips"][0]["height"], found["clips"][0]["width"]) == (8, 8)
    fitting = {"num_frames": 3, "stride": 2, "resolution": 8}
    assert found["protocol"] == fitting | {"mean": "over frames, then over clips", "networks": {}}


def test_compare_of_a_clip_with_itself_has_the_highest_psnr(folder: Path):
    assert run("eval compare real real --metrics psnr --json r.json") == 0
    assert json.loads(Path("r.json").read_text())["psnr"] == 100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokenizer")
    CausalVideoTokenizer(**TINY).save_pretrained(path)
    return path


def test_reconstruction(folder: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]):
    line = f"eval reconstruction --tokenizer {tokenizer} --data real --metrics psnr --fvd styleganv"
    line += " --chunk 9 --json r.json --html r.html"
    # The protocol's 16 frames are more than these clips have.
    assert run(line) == 2
    assert "must have at least 16 frames" in capsys.readouterr().err
    Path("real/0.mp4").unlink()
    for index in range(8):
        save(f"real/{index}", noise(index, 18))
    assert run(line) == 0
    found = json.loads(Path("r.json").read_text())
    assert found["psnr"] > 3
    assert found["rfvd"] > 0
    assert found["rfvd_details"]["num_real"] == 8
    assert (found["num_clips"], found["num_frames"], found["chunk"]) == (8, 8 * 18, 9)
    assert found["first_frame"].keys() == found["chunk_border"].keys() == {"psnr"}
    model = CausalVideoTokenizer.from_pretrained(tokenizer)
    assert found["tokenizer"]["latent_channels"] == model.latent_channels
    printed = capsys.readouterr().out
    assert f"rFVD {found['rfvd']:.2f}" in printed
    assert WHOLE_PROTOCOL in printed
    page = Path("r.html").read_text()
    assert "reconstruction" in page
    assert page.count("<video") == 4


def test_generation_of_clips_that_are_there(folder: Path, capsys: pytest.CaptureFixture[str]):
    line = (
        "eval generation --clips real --prompts prompts.txt --metrics temporal_flickering --json r.json --html r.html"
    )
    assert run(line) == 0
    found = json.loads(Path("r.json").read_text())
    assert found["clips"][3]["prompt"] == "a <clip> number 3"
    assert found["model"] == "real"
    pixels = noise(3).float()
    wanted = (255 - (pixels[1:] - pixels[:-1]).abs().mean()) / 255
    assert found["clips"][3]["metrics"]["temporal_flickering"] == pytest.approx(wanted.item(), abs=1e-6)
    assert "Temporal flickering" in capsys.readouterr().out
    page = Path("r.html").read_text()
    assert "a &lt;clip&gt; number 3" in page
    assert "a <clip>" not in page
    assert page.count("<video") == 2


def test_generation_with_a_model(folder: Path, pipeline: Any):
    line = "eval generation --model m --prompts prompts.txt --metrics temporal_flickering --seed 5 --num-steps 2"
    line += " --out-dir out --json r.json --reference fake --fvd styleganv --num-frames 16"
    for index in range(8):
        save(f"fake/{index}", noise(index, 16))
    assert run(line) == 0
    assert [call["seed"] for call in pipeline.calls] == list(range(5, 13))
    assert all(call["steps"] == 2 for call in pipeline.calls)
    assert len(list(Path("out").iterdir())) == 8
    found = json.loads(Path("r.json").read_text())
    assert found["temporal_flickering"] == pytest.approx(1.0)  # each of its clips is still
    assert found["generation"] == {"num_frames": 16, "num_inference_steps": 2, "seed": 5}
    assert found["fvd"] > 0
    assert found["fvd_details"]["num_fake"] == 8
    assert run(line) == 2  # the clips are there


def test_suite_measures_what_it_can_and_names_the_rest(
    folder: Path, tokenizer: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from kinema.errors import KinemaError

    def fetch(name: str, *_: Any) -> Path:
        if name == "i3d":
            return Path("i3d")
        raise KinemaError(f"no weights `{name}`")

    monkeypatch.setattr("kinema.eval.weights.fetch_weights", fetch)
    Path("real/0.mp4").unlink()
    for index in range(8):
        save(f"real/{index}", noise(index, 20, 32))
    line = f"eval suite --data real --tokenizer {tokenizer} --prompts prompts.txt --model m --resolution 32"
    assert run(f"{line} --json r.json --html r.html") == 0
    found = json.loads(Path("r.json").read_text())
    reconstruction, generation = found["reconstruction"], found["generation"]
    assert {"psnr", "ssim", "flicker", "rfvd"} <= reconstruction.keys()
    assert reconstruction["not_measured"]["lpips_alex"] == "no weights `lpips-alex`"
    assert {"temporal_flickering", "fvd"} <= generation.keys()
    assert {"clip_score", "dynamic_degree", "stream_t"} <= generation["not_measured"].keys()
    assert "--clip" in generation["not_measured"]["clip_score"]
    assert "not measured: lpips_alex" in capsys.readouterr().out
    assert "Not measured: lpips_alex" in Path("r.html").read_text()


MISTAKES = {
    "eval": "MEASURE",
    "eval nonsense": "nonsense",
    "eval fvd real": "FAKE",
    "eval fvd none fake": "`real` (='none')",
    "eval fvd real none": "`fake` (='none')",
    "eval fvd real empty": "must have a clip",
    "eval fvd prompts.txt fake": "must be a file of reference statistics",
    "eval fvd real fake": "must have at least 16 frames",
    "eval fvd real fake --protocol mine": "`protocol` (='mine') must be one of styleganv",
    "eval fvd real fake --num-frames 8": "`--num-frames` (=8) must be >= 9",
    "eval fvd real fake --stride 0": "`--stride` (=0)",
    "eval fvd real fake --batch-size 0": "`--batch-size` (=0)",
    "eval fvd real fake --metrics psnr": "`--metrics` (='psnr')",
    "eval fvd real fake --weights none": "`--weights` (='none')",
    "eval fvd real fake --json prompts.txt": "`--json` (='prompts.txt')",
    "eval fvd real fake --json empty": "it is a folder",
    "eval fvd real fake --json new --html new": "`--html` (='new')",
    "eval fvd real fake --max-unreadable 2": "`--max-unreadable` (=2)",
    "eval fvd real fake --device abacus": "`device` (='abacus')",
    "eval fvd real fake --save-statistics s.npz": "must end in .safetensors",
    "eval compare real empty": "must have a clip",
    "eval compare real fake --metrics fvd": "`metrics` (='fvd')",
    "eval compare real fake --metrics psnr psnr": "must name every metric once",
    "eval compare real fake --num-frames 0": "`--num-frames` (=0)",
    "eval reconstruction": "--data",
    "eval reconstruction --data none": "`--data` (='none')",
    "eval reconstruction --data real --tokenizer none": "`tokenizer` (='none')",
    "eval reconstruction --data real --chunk -1": "`--chunk` (=-1)",
    "eval reconstruction --data real --fvd mine": "`protocol` (='mine')",
    "eval generation": "--prompts",
    "eval generation --prompts none": "`prompts` (='none')",
    "eval generation --prompts prompts.txt --metrics psnr": "psnr",
    "eval generation --prompts prompts.txt --metrics clip_score": "clip",
    "eval generation --prompts prompts.txt --metrics stream_t": "reference",
    "eval generation --prompts prompts.txt --flow-side 0": "`--flow-side` (=0)",
    "eval generation --prompts prompts.txt --stream-frames 1": "`--stream-frames` (=1)",
    "eval generation --prompts prompts.txt --fvd styleganv": "`--fvd` (='styleganv')",
    "eval generation --prompts prompts.txt --clips real --model m": "`--model` (='m')",
    "eval generation --prompts prompts.txt --clips none --metrics temporal_flickering": "`--clips` (='none')",
    "eval suite": "`--data DIR` or `--prompts FILE`",
    "eval suite --data real --protocol mine": "`protocol` (='mine')",
    "eval suite --data real --num-frames 3": "`--num-frames` (=3)",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(line: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert run(line) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"kinema: error: .*\n", error.splitlines(keepends=True)[-1])
    assert len(error.splitlines()) == 1
    assert MISTAKES[line] in error
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_clips_without_partner_are_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    os.remove("fake/5.npy")
    assert run("eval compare real fake") == 2
    assert "has none named '5'" in capsys.readouterr().err
    shutil.copy("fake/4.npy", "fake/5.npy")
    save_file({"frames": noise(0)}, "fake/more.safetensors")
    assert run("eval compare real fake") == 2
    assert "`reference` must have a clip for each of `clips`, and has none named 'more'" in capsys.readouterr().err
