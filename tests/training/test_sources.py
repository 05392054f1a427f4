"""A data source is one file and one line in a table: a source that is added here is found everywhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import diffusion, tokenizer
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig, TrainingConfig, from_dict, to_dict
from kinema.training.data.batches import TokenizerBatches
from kinema.training.data.registry import SOURCES
from kinema.training.data.source import CaptionedSource, Shape
from kinema.training.data.sources import CaptionedClips
from kinema.training.data.toybox.source import ToyboxSettings
from kinema.training.entry import parse_arguments
from kinema.training.presets import DIFFUSION_PRESETS, TOKENIZER_PRESETS
from kinema.weights import embedded_dir


@dataclass(frozen=True, kw_only=True)
class StripesSettings:
    stripes_width: int = 4
    """Stripes: their width in pixels."""
    stripes_folder: Path | None = None
    """Stripes: a folder."""


class Stripes(CaptionedSource):
    help: ClassVar[str] = "stripes that stand still"
    settings_class: ClassVar[type[Any] | None] = StripesSettings

    def __len__(self) -> int:
        return 100

    def clip(self, index: int, shape: Shape, generator: torch.Generator) -> tuple[Float[Tensor, "3 t h w"], str]:
        frames, height, width = shape
        columns = torch.arange(width) // self.request.settings.stripes_width % 2
        brightness = float(torch.rand(1, generator=generator))
        return (brightness * columns).expand(3, frames, height, width) * 2 - 1, f"stripes {index % 2}"

    def vocabulary(self) -> Sequence[str]:
        return ["stripes", "0", "1"]

    def fingerprint(self) -> list[str]:
        return [str(self.request.settings.stripes_width)]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "stripes", Stripes)


def common(tmp_path: Path) -> dict[str, Any]:
    return dict(
        data=("stripes", "toybox"),
        source_settings=(StripesSettings(stripes_width=2),),
        output=tmp_path / "run",
        num_steps=2,
        batch_size=4,
        num_workers=0,
        validation_clips=1,
        cpu=True,
    )


def check_run(config: TrainingConfig) -> None:
    """The run's files know the source and its settings."""
    report = json.loads((config.run_dir / "data_report.json").read_text())
    assert [entry["source"] for entry in report] == ["stripes", "toybox"]
    assert report[0]["num_clips"] == 100
    saved = json.loads((config.run_dir / "config.json").read_text())
    assert saved["stripes_width"] == 2
    assert saved["toybox_objects"] == "default"
    (checkpoint,) = (config.run_dir / "checkpoints").glob("*/data.json")
    assert "stripes/2" in json.loads(checkpoint.read_text())


def test_command_line():
    arguments = ["tiny", "--data", "stripes", "--stripes-width", "3", "--toybox-num-objects", "1", "2"]
    config = parse_arguments(DIFFUSION_PRESETS, arguments, "train")
    assert config.data == ("stripes",)
    assert config.settings_for(StripesSettings) == StripesSettings(stripes_width=3)
    assert config.settings_for(ToyboxSettings) == ToyboxSettings(toybox_num_objects=(1, 2))
    with pytest.raises(KinemaError, match=r"`data` \(=\) must name .*`toybox`, `stripes`"):
        CaptionedClips(DIFFUSION_PRESETS["tiny"])


@pytest.mark.parametrize("presets", [DIFFUSION_PRESETS, TOKENIZER_PRESETS], ids=["diffusion", "tokenizer"])
def test_help(presets, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(presets, ["--help"], "train")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "`toybox`: rendered clips of moving objects; `stripes`: stripes that stand still" in text
    assert "--stripes-width INT Stripes: their width in pixels. (default: 4)" in text
    assert "--sprites {None}|PATH" in text
    assert "source_settings" not in text
    assert "source-settings" not in text


def test_tokenizer_trains_on_it_and_resumes_only_with_the_same_settings(tmp_path):
    config = TokenizerTrainingConfig(
        preset="x", shapes=("5x16x16", "1x16x16"), validation_shape="5x16x16", **common(tmp_path)
    )
    assert {name: clips.shape[0] for name, clips in TokenizerBatches(config).validation_clips().items()} == {
        "stripes": 4,
        "toybox": 4,
    }
    tokenizer.train(config, CausalVideoTokenizer(**TINY))
    check_run(config)
    moved = replace(config, resume=True, num_steps=3, source_settings=(StripesSettings(),))
    with pytest.raises(KinemaError, match=r"`stripes_width` \(=4\) must stay 2"):
        tokenizer.train(moved, CausalVideoTokenizer(**TINY))


def test_diffusion_trains_on_it(tmp_path, tiny_tokenizer_folder):
    config = DiffusionTrainingConfig(
        preset="tiny", tokenizer=tiny_tokenizer_folder, shape="5x16x16", num_clips=4, **common(tmp_path)
    )
    folder = diffusion.train(config)
    check_run(config)
    assert "stripes" in (folder / "tokenizer" / "tokenizer.json").read_text()


def test_default_batch_is_clip_by_clip():
    config = DiffusionTrainingConfig(preset="tiny", data=("stripes",), shape="5x16x16")
    clips = CaptionedClips(config)
    video, captions = clips([3, 8])
    assert captions == ["stripes 1", "stripes 0"]
    again, _ = clips([8])
    assert torch.equal(video[1:], again)
    assert clips.fps == 8
    other = CaptionedClips(replace(config, source_settings=(StripesSettings(stripes_width=2),)))
    assert other.fingerprint() != clips.fingerprint()


def test_a_path_may_be_left_out_on_resume_and_names_no_folder_in_a_release(tmp_path):
    from kinema.training.record import Record, continue_settings
    from kinema.training.release import without_paths

    config = DiffusionTrainingConfig(preset="tiny", source_settings=(StripesSettings(stripes_folder=tmp_path / "s"),))
    resumed = continue_settings(DiffusionTrainingConfig(preset="tiny"), Record(tmp_path, to_dict(config)))
    assert resumed == config
    assert without_paths(to_dict(config))["stripes_folder"] == "s"


def test_settings_of_no_source_are_refused(monkeypatch):
    monkeypatch.delitem(SOURCES, "stripes")
    with pytest.raises(KinemaError, match=r"`source_settings` .* must be settings of registered data sources"):
        TokenizerTrainingConfig(preset="x", source_settings=(StripesSettings(),))


@pytest.mark.parametrize(
    ("model", "file", "kind"),
    [
        ("toybox", "training_config.json", DiffusionTrainingConfig),
        ("kl-4x8x8-c16", "training_config.json", TokenizerTrainingConfig),
        ("kl-4x8x8-c16", "first_stage.json", TokenizerTrainingConfig),
        ("fsq-4x8x8-32768", "training_config.json", TokenizerTrainingConfig),
    ],
)
def test_shipped_settings_load_and_keep_their_keys(model, file, kind):
    values = json.loads((embedded_dir(model) / file).read_text())
    config = from_dict(kind, values)
    toybox = config.settings_for(ToyboxSettings)
    assert toybox.toybox_objects == values["toybox_objects"] == "all"
    assert toybox.toybox_num_objects == tuple(values["toybox_num_objects"])
    assert toybox.sprites == Path(values["sprites"])
    assert to_dict(config).items() >= values.items()
