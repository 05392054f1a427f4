"""The transformer: its parts against plain references, and the properties that the pipeline relies on."""

import math

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel

from kinema.errors import KinemaError
from kinema.generation.text import TransformersTextEncoder, build_word_tokenizer
from kinema.generation.transformer import layers, rope
from kinema.generation.transformer.layers import attend, modulate, timestep_groups
from kinema.generation.transformer.model import VideoTransformer
from kinema.generation.transformer.presets import PRESETS

VOCABULARY = 11


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(**overrides):
    """A tiny model with no zero left that would hide a path, the same on every machine."""
    model = VideoTransformer.from_preset("tiny", **{"text_vocab_size": VOCABULARY, **overrides}).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 1.3 + index)
            parameter.copy_((wave * 0.25).reshape(parameter.shape) + (1.0 if parameter.ndim == 1 else 0.0) * 0.1)
    return model


def example(batch=2, grid=(3, 2, 2), channels=4, length=5):
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, length - 2 :] = False
    return {
        "hidden_states": normal(batch, channels, *grid),
        "timestep": torch.linspace(100.0, 900.0, batch),
        "encoder_hidden_states": torch.arange(batch * length).reshape(batch, length) % VOCABULARY,
        "encoder_attention_mask": mask,
    }


@pytest.fixture(scope="module")
def model():
    return randomised()


# Places


def test_rotary_scores_depend_on_distance_alone():
    query, key = normal(1, 1, 1, 1, 16), normal(1, 1, 1, 1, 16, seed=1)

    def score(query_place, key_place):
        turned = [
            rope.apply_rotary(x, rope.rotary_table(torch.tensor([place]), 16, theta=100.0))
            for x, place in ((query, query_place), (key, key_place))
        ]
        return float((turned[0] * turned[1]).sum())

    near = score([1.0, 2.0, 3.0], [2.0, 0.5, 3.0])
    assert near == pytest.approx(score([11.0, 7.0, 1.5], [12.0, 5.5, 1.5]), abs=1e-5)
    moved = [score([1.0, 2.0, 3.0], place) for place in ([3.0, 0.5, 3.0], [2.0, 1.5, 3.0], [2.0, 0.5, 4.0])]
    assert all(abs(other - near) > 1e-3 for other in moved), "every axis must count"


def test_rotary_keeps_lengths():
    x = normal(2, 12, 2, 3, 16)
    turned = rope.apply_rotary(x, rope.rotary_table(rope.grid_positions((3, 2, 2)), 16))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, 0], x[:, 0])  # the place (0, 0, 0) turns nothing


@pytest.mark.parametrize("head_dim", [6, 8, 16, 64, 128])
def test_head_is_shared_out_in_pairs(head_dim):
    parts = rope.split_head(head_dim)
    assert sum(parts) == head_dim
    assert all(part >= 2 and part % 2 == 0 for part in parts)


def test_grid_positions_are_in_token_order():
    grid = normal(1, 1, 3, 4, 5)
    tokens = rearrange(grid, "1 1 t h w -> (t h w)")
    for place, token in zip(rope.grid_positions((3, 4, 5)).long().tolist(), tokens, strict=True):
        assert grid[0, 0, place[0], place[1], place[2]] == token


def test_places_are_told_apart():
    features = rope.place_features((9, 16, 16))
    distances = torch.cdist(features, features) + torch.eye(len(features)) * 9
    assert distances.min() > 0.1


# Attention


def reference_attention(query, key, value, mask):
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for k in range(query.shape[2]):
            scores = query[b, :, k] @ key[b, :, k].T / math.sqrt(query.shape[-1])
            if mask is not None:
                scores = scores + torch.where(mask[b], 0.0, -1e9)
            out[b, :, k] = torch.exp(scores - scores.logsumexp(-1, keepdim=True)) @ value[b, :, k]
    return out


@pytest.mark.parametrize("limit", [0, 10**9], ids=["dispatched", "explicit"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_attention(monkeypatch, limit, masked):
    monkeypatch.setattr(layers, "_EXPLICIT_SCORES_LIMIT", limit)
    query, key, value = normal(2, 7, 2, 8), normal(2, 5, 2, 8, seed=1), normal(2, 5, 2, 8, seed=2)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]]) if masked else None
    torch.testing.assert_close(attend(query, key, value, mask), reference_attention(query, key, value, mask))


def test_head_norm_is_rms_norm():
    norm = layers.HeadNorm(2, 8)
    with torch.no_grad():
        norm.weight.copy_(normal(2, 1, 8))
    x = normal(2, 5, 2, 3, 8, seed=1)
    expected = [F.rms_norm(x[:, :, s], (8,), norm.weight[s, 0], eps=1e-6) for s in range(2)]
    torch.testing.assert_close(norm(x), torch.stack(expected, dim=2))


# Timesteps


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3), (2, 12)])
def test_the_shape_of_timesteps_says_what_shares_one(shape):
    timestep = normal(*shape)
    groups = timestep_groups(timestep, (3, 2, 2))
    assert groups.shape == (2, shape[1] if len(shape) > 1 else 1)
    assert torch.equal(groups.flatten(), timestep.flatten())


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 0)])
def test_timesteps_of_another_shape(model, shape):
    with pytest.raises(
        KinemaError, match=r"`timestep` \(of shape .*\) must have one number per clip, per latent step .3."
    ):
        model(**{**example(), "timestep": torch.zeros(shape)})


def test_modulate_serves_groups():
    x, shift, scale = normal(2, 6, 3), normal(2, 3, 3, seed=1), normal(2, 3, 3, seed=2)
    expected = x * (1 + scale.repeat_interleave(2, 1)) + shift.repeat_interleave(2, 1)
    torch.testing.assert_close(modulate(x, shift, scale), expected)


def test_equal_timesteps_are_one_timestep(model):
    inputs = example()
    expected = model(**inputs).sample
    per_token = inputs["timestep"][:, None].expand(2, 12)
    torch.testing.assert_close(model(**{**inputs, "timestep": per_token}).sample, expected)


@pytest.mark.parametrize("per_step", [False, True])
def test_shared_modulation_is_that_of_each_token(model, per_step):
    inputs = example()
    timestep = torch.tensor([[0.0, 500, 700], [0, 0, 900]]) if per_step else torch.tensor([[5.0], [700.0]])
    per_token = timestep.repeat_interleave(12 // timestep.shape[1], 1)
    expected = model(**{**inputs, "timestep": per_token}).sample
    torch.testing.assert_close(model(**{**inputs, "timestep": timestep}).sample, expected)


def test_modulation_is_computed_once_a_group(model):
    rows = []
    handle = model.modulation.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:-1].numel()))
    for groups in (1, 3, 12):
        model(**{**example(), "timestep": torch.full((2, groups), 500.0)})
    handle.remove()
    assert rows == [2, 6, 24]


def test_each_token_feels_its_own_timestep(model):
    inputs = example()
    timestep = torch.full((2, 12), 400.0)
    before = model(**{**inputs, "timestep": timestep}).sample
    timestep[:, :4] = 0.0
    after = model(**{**inputs, "timestep": timestep}).sample
    change = (after - before).abs().mean(dim=(0, 1, 3, 4))
    assert change[0] > 2 * change[1:].max()


# Text


def test_padding_has_no_influence(model):
    inputs = example()
    expected = model(**inputs).sample
    text = inputs["encoder_hidden_states"].clone()
    text[0, 3:] = 7
    longer = torch.cat((text, torch.full((2, 4), 9)), dim=1)
    mask = torch.cat((inputs["encoder_attention_mask"], torch.zeros(2, 4, dtype=torch.bool)), dim=1)
    padded = {**inputs, "encoder_hidden_states": longer, "encoder_attention_mask": mask}
    torch.testing.assert_close(model(**padded).sample, expected)


def test_words_and_their_order_count(model):
    inputs = example()
    expected = model(**inputs).sample
    for words in ([[1, 2, 4, 0, 0]], [[2, 1, 3, 0, 0]]):
        inputs["encoder_hidden_states"][:1] = torch.tensor(words)
        sample = model(**inputs).sample
        assert (sample[0] - expected[0]).abs().max() > 1e-3
        torch.testing.assert_close(sample[1], expected[1])


def test_no_mask_means_all(model):
    inputs = example()
    every = {**inputs, "encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool)}
    none = {**inputs, "encoder_attention_mask": None}
    torch.testing.assert_close(model(**none).sample, model(**every).sample)


def test_features_of_a_text_encoder():
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["red", "car", "left"])
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    text = TransformersTextEncoder(tokenizer, T5EncoderModel(config))(["red car", "left"])
    model = randomised(text_vocab_size=None, text_dim=16)
    inputs = {**example(), "encoder_hidden_states": text.values, "encoder_attention_mask": text.mask}
    both = model(**inputs).sample
    alone = model(inputs["hidden_states"][1:], inputs["timestep"][1:], text.values[1:, :2], text.mask[1:, :2]).sample
    assert both.shape == (2, 4, 3, 2, 2)
    torch.testing.assert_close(both[1:], alone)


# The whole model


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("grid", [(2, 4, 4), (4, 2, 6)])
def test_shapes(patch, grid):
    model = randomised(patch_size=patch, in_channels=3, out_channels=5)
    assert model(**example(grid=grid, channels=3)).sample.shape == (2, 5, *grid)


def test_patches_come_back():
    model = randomised(patch_size=(1, 2, 2))
    latents = normal(2, 4, 3, 4, 6)
    torch.testing.assert_close(model._unpatchify(model._patchify(latents), (3, 2, 3)), latents)


def test_untrained_model_predicts_nothing():
    model = VideoTransformer.from_preset("tiny", text_vocab_size=VOCABULARY)
    assert model(**example()).sample.eq(0).all()


def test_tuple_output(model):
    assert torch.equal(model(**example(), return_dict=False)[0], model(**example()).sample)


def test_golden_values(model):
    """Values computed with this code when it was written: a change of them is a change of every trained model."""
    sample = model(**example()).sample
    expected = torch.tensor(GOLDEN)
    torch.testing.assert_close(sample[:, :, 1, 0, 1], expected, atol=2e-4, rtol=1e-3)


GOLDEN = [[0.110300, 1.639457, -2.530160, 1.972562], [-0.476023, 1.849342, -2.248305, 1.353806]]


def test_gradient_reaches_every_parameter():
    model = randomised().train()
    model(**example()).sample.square().mean().backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert silent == []


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = randomised().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**example()).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_autocast_is_close_to_float32(model):
    with torch.autocast("cpu", torch.bfloat16):
        low = model(**example()).sample
    high = model(**example()).sample
    assert (low.float() - high).norm() / high.norm() < 0.03


def test_whole_model_in_bfloat16():
    model = randomised().bfloat16()
    inputs = example()
    sample = model(**{**inputs, "hidden_states": inputs["hidden_states"].bfloat16()}).sample
    assert sample.dtype == torch.bfloat16
    assert sample.isfinite().all()


def test_saving(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    loaded = VideoTransformer.from_pretrained(tmp_path)
    assert loaded.config["text_vocab_size"] == VOCABULARY
    assert torch.equal(loaded(**example()).sample, model(**example()).sample)


def test_every_preset_can_be_made():
    with torch.device("meta"):
        sizes = {name: VideoTransformer.from_preset(name, text_vocab_size=300).num_parameters() for name in PRESETS}
    assert 8e6 < sizes["toybox-s"] < 14e6
    assert sizes["tiny"] < sizes["toybox-s"] < sizes["toybox-m"] < sizes["base"] < sizes["large"] < sizes["xlarge"]
    assert sizes["latte-s"] < sizes["latte-b"] < sizes["latte-l"] < sizes["latte-xl"]
    assert sizes["latte-xl"] == sizes["latte-xl-late"] == sizes["latte-xl-heads"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"num_heads": 5}, "`num_heads` \\(=5\\)"),
        ({"dim": 10, "num_heads": 2}, "`dim` / `num_heads` \\(=5\\)"),
        ({"patch_size": (1, 0, 2)}, "`patch_size`"),
        ({"text_dim": 8}, "`text_vocab_size` \\(=11\\) and `text_dim` \\(=8\\)"),
        ({"text_vocab_size": None}, "`text_vocab_size`"),
    ],
)
def test_wrong_arguments_are_refused(overrides, named):
    with pytest.raises(KinemaError, match=named):
        randomised(**overrides)


def test_unknown_preset_is_refused():
    with pytest.raises(KinemaError, match="toybox-s"):
        VideoTransformer.from_preset("huge")


def test_latents_that_are_no_whole_patches_are_refused():
    with pytest.raises(KinemaError, match="`w` \\(=3\\)"):
        randomised(patch_size=(1, 2, 2))(**example(grid=(2, 4, 3)))


def test_lora():
    peft = pytest.importorskip("peft")
    model = randomised()
    before = model(**example()).sample
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["qkv", "key_value"], init_lora_weights=False))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    assert (model(**example()).sample - before).abs().max() > 1e-4
    model.disable_adapters()
    torch.testing.assert_close(model(**example()).sample, before)
