"""A pipeline's folder: it comes back the same, and a damaged one is refused."""

import json
import shutil
from importlib import import_module

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from kinema.errors import KinemaError
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.holistic.model import HolisticVideoTokenizer
from kinema.tokenizers.holistic.presets import TINY as HOLISTIC_TINY
from kinema.tokenizers.presets import kl
from kinema.tokenizers.registry import TOKENIZERS
from kinema.tokenizers.transformer.model import TransformerVideoTokenizer
from kinema.tokenizers.transformer.presets import TINY as VIT_TINY


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height=16, width=24, seed=0):
    return torch.rand(3, height, width, generator=seeded(seed))


def run(pipeline):
    return pipeline("a red car", image=picture(), generator=seeded(), num_inference_steps=2).frames


def test_saved_pipeline_gives_the_same_clip(pipeline, saved):
    loaded = KinemaPipeline.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(loaded), run(pipeline))
    assert list(loaded.config["sample_size"]) == [9, 16, 24]
    assert loaded.config["sample_fps"] == 12.0
    assert loaded.scheduler.config["shift"] == 2.0
    assert loaded.text_encoder is None


def test_a_folder_has_the_settings_that_its_model_samples_best_with(pipeline, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    own = {"sample_steps": 3, "sample_guidance_scale": 2.5, "sample_guidance_interval": [0.3, 0.9]}
    index.write_text(json.dumps(json.loads(index.read_text()) | own))
    loaded = KinemaPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 3, "guidance_scale": 2.5, "guidance_interval": (0.3, 0.9)}
    expected = pipeline("red", generator=seeded(), **given).frames
    torch.testing.assert_close(loaded("red", generator=seeded(), return_dict=False)[0], expected)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_steps": 0}))
    with pytest.raises(KinemaError, match="`num_inference_steps` \\(=0\\) must be at least 1"):
        KinemaPipeline.from_pretrained(tmp_path / "model")


def test_a_pipeline_on_a_transformer_tokenizer_comes_back(pipeline, tmp_path):
    vae = TransformerVideoTokenizer(**VIT_TINY).eval()
    other = KinemaPipeline(pipeline.transformer, vae, pipeline.tokenizer, pipeline.scheduler, sample_size=(9, 16, 24))
    other.set_progress_bar_config(disable=True)
    other.save_pretrained(tmp_path)
    loaded = KinemaPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.vae, TransformerVideoTokenizer)
    torch.testing.assert_close(run(loaded), run(other))


def test_tokens_without_a_grid_are_refused(pipeline):
    vae = HolisticVideoTokenizer(**HOLISTIC_TINY)
    with pytest.raises(KinemaError, match=r"`vae` \(a HolisticVideoTokenizer\) must have latents on a grid"):
        KinemaPipeline(pipeline.transformer, vae, pipeline.tokenizer, pipeline.scheduler)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_diffusers_finds_the_base_class_beside_every_tokenizer(name):
    assert hasattr(import_module(TOKENIZERS[name]), "ModelMixin")


def test_saved_files_hold_no_code_and_no_pickles(saved):
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}


def test_text_encoder_is_saved_and_loaded(make_pipeline, tmp_path):
    config = T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pipeline = make_pipeline(text_encoder=T5EncoderModel(config).eval())
    pipeline.save_pretrained(tmp_path)
    loaded = KinemaPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.text_encoder, T5EncoderModel)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(loaded), run(pipeline))


def test_components_can_be_replaced_on_loading(saved):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert KinemaPipeline.from_pretrained(saved, scheduler=scheduler).scheduler is scheduler


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def drop_a_weight(path):
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path)


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGES = {
    "no index": (lambda d: (d / "model_index.json").unlink(), "model_index.json"),
    "index is no JSON": (lambda d: (d / "model_index.json").write_text("{"), "must be a readable JSON file"),
    "index is nested without end": (
        lambda d: (d / "model_index.json").write_text("[" * 100_000),
        "nested too deeply",
    ),
    "index is a list": (lambda d: (d / "model_index.json").write_text("[]"), "JSON object"),
    "index names no transformer": (
        lambda d: edit_json(d / "model_index.json", transformer=[None, None]),
        "must name a `transformer`",
    ),
    "foreign module": (
        lambda d: edit_json(d / "model_index.json", vae=["os.path", "join"]),
        "module of `vae` \\(='os.path'\\)",
    ),
    "no module of diffusers": (
        lambda d: edit_json(d / "model_index.json", vae=["diffusersx", "AutoencoderKL"]),
        "module of `vae` \\(='diffusersx'\\)",
    ),
    "component of another shape": (
        lambda d: edit_json(d / "model_index.json", vae="kinema"),
        "\\[module, class\\]",
    ),
    "no component folder": (lambda d: shutil.rmtree(d / "vae"), "lacks `vae/`"),
    "no config": (lambda d: (d / "transformer" / "config.json").unlink(), "lacks `transformer/`"),
    "no weights": (lambda d: (d / "transformer" / WEIGHTS).unlink(), "cannot be loaded"),
    "no tokenizer": (lambda d: (d / "tokenizer" / "tokenizer.json").unlink(), "cannot be loaded"),
    "truncated weights": (
        lambda d: (d / "vae" / WEIGHTS).write_bytes((d / "vae" / WEIGHTS).read_bytes()[:1000]),
        "not readable as safetensors",
    ),
    "a weight is missing": (lambda d: drop_a_weight(d / "transformer" / WEIGHTS), "1 missing and 0 unknown"),
    "weights of another model": (
        lambda d: shutil.copy(d / "vae" / WEIGHTS, d / "transformer" / WEIGHTS),
        "",
    ),
    "weights of another size": (lambda d: edit_json(d / "transformer" / "config.json", dim=64), "cannot be loaded"),
    "words of another model": (
        lambda d: build_word_tokenizer(["one", "two"]).save_pretrained(d / "tokenizer"),
        "`tokenizer` \\(of 5 words\\)",
    ),
    "latents of another model": (
        lambda d: CausalVideoTokenizer(**{**TINY, "bottleneck": kl(3)}).save_pretrained(d / "vae"),
        "`vae` \\(of 3 channels\\)",
    ),
    "statistics that are no numbers": (
        lambda d: edit_json(d / "vae" / "config.json", latents_std=[1.0, None, 1.0, 1.0]),
        "`latents_std` .* must be 4 finite numbers above 0",
    ),
    "statistics of zero": (
        lambda d: edit_json(d / "vae" / "config.json", latents_std=[1.0, 0.0, 1.0, 1.0]),
        "`latents_std` .* must be 4 finite numbers above 0",
    ),
    "half of the statistics": (
        lambda d: edit_json(d / "vae" / "config.json", latents_mean=None),
        "`latents_mean` .* must be 4 finite numbers",
    ),
    "layers without end": (
        lambda d: edit_json(d / "transformer" / "config.json", num_layers=10**30),
        "must have a config of that size",
    ),
    "blocks without end": (
        lambda d: edit_json(d / "vae" / "config.json", encoder_blocks=[10**30, 1]),
        "must have a config of that size",
    ),
    "ratios of two": (lambda d: edit_json(d / "vae" / "config.json", ratios=[[2, 2]]), "cannot be loaded"),
    "a size in fractions": (
        lambda d: edit_json(d / "model_index.json", sample_size=[9, 16.5, 24]),
        r"`sample_size` \(=\(9, 16.5, 24\)\)",
    ),
    "a rate of zero": (lambda d: edit_json(d / "model_index.json", sample_fps=0), r"`sample_fps` \(=0\)"),
    "a tokenizer without padding": (
        lambda d: edit_json(d / "tokenizer" / "tokenizer_config.json", pad_token=None),
        "`tokenizer` must be able to read text",
    ),
    "a longest text that is no number": (
        lambda d: edit_json(d / "tokenizer" / "tokenizer_config.json", model_max_length={}),
        "`tokenizer` must be able to read text",
    ),
    "a scheduler that needs more": (
        lambda d: edit_json(d / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True),
        "`scheduler` must be a flow-matching scheduler",
    ),
    "a scheduler of another kind": (
        lambda d: edit_json(d / "model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "scheduler",
    ),
    "noise levels that are no numbers": (
        lambda d: edit_json(d / "scheduler" / "scheduler_config.json", shift=float("nan")),
        "`scheduler` must be a flow-matching scheduler",
    ),
    "config of another kind": (lambda d: edit_json(d / "transformer" / "config.json", dim="x"), "cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore")  # diffusers and transformers may say more about the damage
def test_damaged_folders_are_refused_in_one_line(saved, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(KinemaError, match=message) as error:
        KinemaPipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert "copy" in str(error.value), "the folder must be named"


@pytest.mark.parametrize("name", ["missing", "a/b/c"])
def test_missing_folder_is_refused(tmp_path, name):
    with pytest.raises(KinemaError, match="does not exist"):
        KinemaPipeline.from_pretrained(tmp_path / name)
