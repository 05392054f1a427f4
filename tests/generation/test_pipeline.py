"""The pipeline: what it gives for prompts and images, and what it says about wrong arguments."""

import warnings

import numpy as np
import pytest
import torch

from kinema.errors import KinemaError
from kinema.generation.guidance import SamplerSettings
from kinema.generation.pipeline import PromptWarning
from kinema.generation.prompts import prompt_list


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height=16, width=24, seed=0):
    return torch.rand(3, height, width, generator=seeded(seed))


def reconstruction(pipeline, image):
    """The first frame that an image must give, (3, h, w) in [0, 1]."""
    with torch.no_grad():
        return pipeline.vae.reconstruct(image[None, :, None] * 2 - 1)[0, :, 0] / 2 + 0.5


# Text to video


def test_default_size_is_the_trained_one(pipeline):
    frames = pipeline("a red car", num_inference_steps=2).frames
    assert frames.shape == (1, 9, 3, 16, 24)
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert frames.std() > 0.01


@pytest.mark.parametrize("size", [(1, 16, 16), (6, 9, 17), (2, 8, 30)])
@pytest.mark.parametrize("patch_size", [(1, 1, 1), (2, 2, 2)])
def test_any_size(make_pipeline, size, patch_size):
    pipeline = make_pipeline(patch_size=patch_size)
    frames = pipeline("left", num_frames=size[0], height=size[1], width=size[2], num_inference_steps=1).frames
    assert frames.shape == (1, size[0], 3, *size[1:])


def test_sampler_reaches_the_clean_latents_of_an_exact_velocity(pipeline, monkeypatch):
    clean = torch.randn(1, 4, 3, 2, 3, generator=seeded(5))

    def exact(hidden_states, timestep, **_):
        return ((hidden_states - clean) / (timestep[:, None, None, None, None] / 1000),)

    monkeypatch.setattr(pipeline.transformer, "forward", exact)
    latents = pipeline("red", num_inference_steps=3, guidance_scale=3.0, output_type="latent").frames
    torch.testing.assert_close(latents, clean, atol=1e-5, rtol=0)


def test_times_run_evenly_before_the_shift(pipeline):
    pipeline("red", num_inference_steps=4, output_type="latent")
    t = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(pipeline.scheduler.timesteps, 1000 * 2 * t / (1 + t))
    assert pipeline.num_timesteps == 4


def test_prompts_and_seeds_matter(pipeline):
    def run(prompt, seed):
        return pipeline(prompt, generator=seeded(seed), num_inference_steps=2, output_type="latent").frames

    first = run("a red car", 0)
    assert torch.equal(run("a red car", 0), first)
    assert (run("a blue car", 0) - first).abs().max() > 1e-3
    assert (run("a red car", 1) - first).abs().max() > 1e-1


def test_batch_gives_what_single_calls_give(pipeline):
    prompts, seeds = ["a red car drives left", "blue"], [3, 8]
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    batch = pipeline(prompts, generator=[seeded(seed) for seed in seeds], **arguments).frames
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = pipeline(prompt, generator=seeded(seed), **arguments).frames
        torch.testing.assert_close(batch[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_several_clips_a_prompt_follow_each_other(pipeline):
    arguments = {"num_inference_steps": 1, "output_type": "latent"}
    generators = [seeded(seed) for seed in (0, 0, 1, 1)]
    many = pipeline(["red", "blue left"], num_videos_per_prompt=2, generator=generators, **arguments).frames
    torch.testing.assert_close(many[0], many[1])
    torch.testing.assert_close(many[2], many[3])
    alone = pipeline("blue left", generator=seeded(1), **arguments).frames
    torch.testing.assert_close(many[2:3], alone, atol=1e-5, rtol=1e-5)


def test_given_noise_replaces_the_generator(pipeline):
    noise = torch.randn(1, 4, 3, 2, 3, generator=seeded(7))
    arguments = {"num_inference_steps": 1, "output_type": "latent"}
    torch.testing.assert_close(
        pipeline("red", latents=noise, **arguments).frames, pipeline("red", generator=seeded(7), **arguments).frames
    )


def test_text_features_stand_for_prompts(pipeline):
    text = pipeline.encode_text(["red car", "left"])
    arguments = {"num_inference_steps": 1, "output_type": "latent", "latents": torch.randn(2, 4, 3, 2, 3)}
    assert torch.equal(pipeline(text, **arguments).frames, pipeline(["red car", "left"], **arguments).frames)


# Guidance


def test_guidance_extrapolates_from_the_negative_prompt(pipeline):
    noise = torch.randn(1, 4, 3, 2, 3, generator=seeded(2))

    def velocity(prompt, **arguments):  # one step from t = 1 to 0: latents = noise - velocity
        found = pipeline(prompt, latents=noise, num_inference_steps=1, output_type="latent", **arguments).frames
        return noise - found

    positive, negative = (velocity(prompt, guidance_scale=1.0) for prompt in ("a red car", "blue left"))
    with pytest.warns(PromptWarning, match="no effect"):
        empty = velocity("", guidance_scale=1.0)
    assert (positive - negative).abs().max() > 1e-3
    torch.testing.assert_close(velocity("a red car", guidance_scale=3.0), empty + 3 * (positive - empty))
    torch.testing.assert_close(
        velocity("a red car", guidance_scale=3.0, negative_prompt="blue left"), negative + 3 * (positive - negative)
    )


@pytest.mark.parametrize(("guidance_scale", "calls"), [(1.0, 2), (0.0, 2), (2.0, 4)])
def test_no_guidance_costs_nothing(pipeline, guidance_scale, calls):
    seen = []
    handle = pipeline.transformer.register_forward_hook(lambda *_: seen.append(1))
    pipeline("red", num_inference_steps=2, guidance_scale=guidance_scale, output_type="latent")
    handle.remove()
    assert len(seen) == calls


@pytest.mark.parametrize(
    ("interval", "calls"), [((0.0, 1.0), 8), ((0.0, 0.99), 7), ((0.4, 1.0), 7), ((0.4, 0.86), 6), ((0.0, 0.3), 4)]
)
def test_guidance_stays_within_its_noise_levels(pipeline, interval, calls):
    # Four steps of shift 2 start at 1, 6/7, 2/3, 2/5.
    seen = []
    handle = pipeline.transformer.register_forward_hook(lambda *_: seen.append(1))
    pipeline("red", num_inference_steps=4, guidance_scale=2.0, guidance_interval=interval, output_type="latent")
    handle.remove()
    assert len(seen) == calls


@pytest.mark.parametrize("error", [-1, 0, 1])
def test_guidance_does_not_depend_on_the_last_bit_of_a_noise_level(error):
    settings = SamplerSettings(num_inference_steps=4, guidance_scale=2.0, guidance_interval=(0.4, 0.8))
    low, high = (float(np.float32(bound) + np.float32(error * 2**-24)) for bound in settings.guidance_interval)
    assert not settings.guides(low)
    assert settings.guides(high)


def test_without_any_noise_level_in_it_guidance_does_nothing(pipeline):
    def clip(**arguments):
        return pipeline("red", num_inference_steps=3, generator=seeded(), output_type="latent", **arguments).frames

    assert torch.equal(clip(guidance_scale=5.0, guidance_interval=(0.0, 0.1)), clip(guidance_scale=1.0))
    assert torch.equal(clip(guidance_scale=5.0, guidance_interval=(0.0, 1.0)), clip(guidance_scale=5.0))
    assert not torch.equal(clip(guidance_scale=5.0, guidance_interval=(0.5, 1.0)), clip(guidance_scale=5.0))


# Image to video


@pytest.mark.parametrize("size", [(16, 24), (11, 19)])
@pytest.mark.parametrize("num_frames", [1, 6])
def test_first_frame_is_the_image_as_the_tokenizer_gives_it(pipeline, size, num_frames):
    image = picture(*size)
    frames = pipeline(
        "red", image=image, num_frames=num_frames, height=size[0], width=size[1], num_inference_steps=2
    ).frames
    assert frames.shape == (1, num_frames, 3, *size)
    torch.testing.assert_close(frames[0, 0], reconstruction(pipeline, image), atol=1e-5, rtol=0)


def test_image_changes_the_other_frames_too(pipeline):
    arguments = {"num_inference_steps": 2, "generator": None, "latents": torch.randn(1, 4, 3, 2, 3)}
    frames = [pipeline("red", image=picture(seed=seed), **arguments).frames for seed in (0, 1)]
    assert (frames[0][0, 1:] - frames[1][0, 1:]).abs().max() > 1e-3


def test_given_latents_hold_at_every_step(pipeline):
    first, seen = [], []

    def remember(pipe, step, timestep, tensors):
        first.append(tensors["latents"][:, :, 0].clone())
        return {}

    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"].clone()), with_kwargs=True
    )
    pipeline("red", image=picture(), num_inference_steps=3, guidance_scale=1.0, callback_on_step_end=remember)
    handle.remove()
    with torch.no_grad():
        given = pipeline.vae.normalize(pipeline.vae.encode(picture()[None, :, None] * 2 - 1).latents)[:, :, 0]
    assert len(first) == 3
    for latents in first:
        torch.testing.assert_close(latents, given)
    for timestep in seen:
        assert timestep.shape == (1, 3)  # one a latent step
        assert timestep[:, 0].eq(0).all()
        assert timestep[:, 1:].gt(0).all()


def test_one_image_for_each_prompt(pipeline):
    images = [picture(seed=1), picture(seed=2)]
    frames = pipeline(["red", "left"], image=images, num_inference_steps=1, num_videos_per_prompt=2).frames
    for clip, image in zip(frames, (images[0], images[0], images[1], images[1]), strict=True):
        torch.testing.assert_close(clip[0], reconstruction(pipeline, image), atol=1e-5, rtol=0)


# Output


def test_tuple_output(pipeline):
    frames = pipeline("red", num_inference_steps=1, return_dict=False, output_type="np")[0]
    assert frames.shape == (1, 9, 16, 24, 3)


# Steps


def test_callback_replaces_latents(pipeline):
    def zero(pipe, step, timestep, tensors):
        assert set(tensors) == {"latents", "prompt_embeds"}
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipeline(
        "red",
        num_inference_steps=2,
        output_type="latent",
        callback_on_step_end=zero,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    ).frames
    assert latents.eq(0).all()


def test_interrupt_stops_the_steps(pipeline):
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1
        return {}

    pipeline("red", num_inference_steps=5, callback_on_step_end=stop, output_type="latent")
    assert steps == [0, 1]
    pipeline("red", num_inference_steps=1, callback_on_step_end=stop, output_type="latent")
    assert steps == [0, 1, 0], "a new call starts afresh"


# Prompts that cannot be read


def test_unknown_words_are_named_with_near_ones(pipeline):
    with pytest.warns(PromptWarning, match="'zebra'.*'drivez' \\(near: drives\\)") as caught:
        frames = pipeline(["a zebra", "drivez left"], num_inference_steps=1).frames
    assert len(caught) == 1
    assert frames.shape[0] == 2


def test_known_words_do_not_warn(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline("A red, blue car!", num_inference_steps=1, output_type="latent")


@pytest.mark.parametrize("prompt", ["", "   ", "!!!", "\u200b", "🚗 👩\u200d🚀", "zebra", "[PAD] [START]", "\udce9"])
def test_prompt_without_a_known_word_is_said_each_time(pipeline, prompt):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # shows what `warnings.warn` says once for each place
        for _ in range(2):
            pipeline([prompt, "red"], num_inference_steps=1, output_type="latent")
    assert [warning.category for warning in caught] == [PromptWarning] * 2
    assert all(f"`prompt` (={prompt!r}) has no word that the model knows" in str(w.message) for w in caught)
    assert {warning.filename for warning in caught} == {__file__}


def test_words_unknown_of_a_prompt_without_effect_are_named(pipeline):
    with pytest.warns(PromptWarning, match="no effect: 'zebra' \\(near: .*'redd' \\(near: red"):
        pipeline("zebra redd", num_inference_steps=1, output_type="latent")


@pytest.mark.parametrize(("negative", "count"), [(None, 0), ("", 0), ("red", 0), ("!!!", 1), ("zebra", 1), (" ", 1)])
def test_negative_prompts_are_checked_too(pipeline, negative, count):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        pipeline("red", negative_prompt=negative, num_inference_steps=1, output_type="latent")
    assert len(caught) == count
    assert all("`negative_prompt`" in str(warning.message) for warning in caught)


def test_many_unknown_words_make_one_line_in_little_time(pipeline):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        pipeline("red " + " ".join(f"w{n}" for n in range(500)), num_inference_steps=1, output_type="latent")
    assert "and 492 more" in str(caught[0].message)
    assert max(len(str(warning.message)) for warning in caught) < 1000


@pytest.mark.parametrize("prompt", [None, 3, [None], [["red"]], b"red"])
def test_prompts_must_be_text(prompt):
    with pytest.raises(KinemaError, match="`negative_prompt` \\(has a"):
        prompt_list(prompt, "negative_prompt")


def test_long_prompts_are_cut_with_a_warning(pipeline):
    with pytest.warns(PromptWarning, match="31 tokens is cut to the model's 24"):
        pipeline("red " * 30, num_inference_steps=1, output_type="latent")


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "`num_frames` \\(=0\\) must be at least 1"),
        ({"height": 7}, "`height` \\(=7\\) must be at least 8"),
        ({"width": -8}, "`width` \\(=-8\\) must be at least 8"),
        ({"num_inference_steps": 0}, "`num_inference_steps` \\(=0\\)"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` \\(=0\\)"),
        ({"output_type": "gif"}, "`output_type` \\(='gif'\\) must be one of pt, np"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` \\(=nan\\)"),
        ({"guidance_interval": (0.5, 0.5)}, "`guidance_interval` \\(=0.5, 0.5\\)"),
        ({"guidance_interval": (-0.1, 0.5)}, "`guidance_interval`"),
        ({"guidance_interval": (0.1, float("nan"))}, "`guidance_interval`"),
        ({"guidance_interval": (0.1, 0.5, 1.0)}, "`guidance_interval` \\(=\\(0.1, 0.5, 1.0\\)\\)"),
        ({"generator": [torch.Generator()] * 3}, "`generator` \\(a list of 3\\)"),
        ({"latents": torch.zeros(1, 4, 3, 2, 2)}, "`latents`"),
        ({"negative_prompt": ["red", "blue", "left"]}, "`negative_prompt` \\(a list of 3\\)"),
        ({"image": [picture()] * 3}, "`image` \\(a list of 3\\)"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "has 'noise'"),
    ],
)
def test_wrong_arguments_are_refused(pipeline, arguments, message):
    with pytest.raises(KinemaError, match=message):
        pipeline("red", **arguments)


def test_no_prompt_is_refused(pipeline):
    with pytest.raises(KinemaError, match="`prompt`"):
        pipeline([])
