"""Pipelines of diffusers behind `kinema generate`, tiny and random, saved in a folder first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from kinema.apps.any_pipeline import load_any_pipeline
from kinema.apps.cli import main
from kinema.errors import KinemaError
from kinema.video import read_video


def tiny_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    pipeline = WanPipeline(
        tokenizer=tiny_tokenizer(folder / "words"),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=8, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, num_decoder_layers=1)
        ),
        vae=AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=16,
            num_layers=2,
        ),
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def generate(wan: Path, output: Path, *more: str) -> torch.Tensor:
    sizes = ["--num-frames", "9", "--height", "32", "--width", "48", "--num-steps", "2"]
    status = main(["generate", "a cat", "--model", str(wan), "-o", str(output), "--lossless", *sizes, *more])
    assert status == 0
    return read_video(output).frames


def test_a_folder_of_diffusers_generates(wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dense = generate(wan, tmp_path / "dense.mp4")
    assert dense.shape == (9, 32, 48, 3)
    assert "9 frames of 32x48" in capsys.readouterr().out
    assert torch.equal(generate(wan, tmp_path / "full.mp4", "--attention", "full"), dense)
    pattern = "sliding-tile:1x1x1,tile=1x1x1"
    all_dense = generate(wan, tmp_path / "steps.mp4", "--attention", pattern, "--dense-steps", "2")
    assert torch.equal(all_dense, dense)
    both_ends = generate(wan, tmp_path / "ends.mp4", "--attention", pattern, "--dense-steps", "1,1")
    assert torch.equal(both_ends, dense)
    sparse = generate(wan, tmp_path / "sparse.mp4", "--attention", pattern)
    assert sparse.shape == dense.shape
    assert not torch.equal(sparse, dense)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attention", "tiles"], "`pattern` (=tiles) must begin with one of"),
        (["--dense-steps", "2"], "`--dense-steps` (=2) must go with `--attention`"),
        (["--attention", "full", "--dense-steps", "1,x"], "`--dense-steps` (='1,x') must be a number, or two such as"),
        (["--attention", "full", "--dense-layers", "-1"], "`--dense-layers` (=-1) must be >= 0"),
        (
            ["--attention", "spatial", "--dense-steps", "5", "--num-steps", "4"],
            "`dense_steps` (=(5, 0)) must be at most `num_steps` (=4)",
        ),
        (
            ["--attention", "spatial", "--dense-steps", "12,1"],
            "`dense_steps` (=(12, 1)) must be at most `num_steps` (=12)",
        ),
        (["--attention", "spatial", "--dense-layers", "99"], "`dense_layers` (=99) must be at most 8"),
        (["--model", "no/such-hub-id"], "`model` (='no/such-hub-id') must be a pipeline's folder, or the hub id"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["generate", "a cat", "-o", str(tmp_path / "x.mp4"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_pipeline_is_refused(wan: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KinemaError, match=r"must be a pipeline's folder, and it has no model_index.json"):
        load_any_pipeline(str(tmp_path / "empty"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model_index.json").write_text("{")
    with pytest.raises(KinemaError, match=r"must be a readable JSON file|names no `_class_name`"):
        load_any_pipeline(str(damaged))
    (damaged / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(KinemaError, match=r"`model` \(=.*damaged"):
        load_any_pipeline(str(damaged))
