"""Prompts to ids and features, and back to what is unknown."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from kinema.errors import KinemaError
from kinema.generation.prompts import PromptWarning, warn_of_prompts
from kinema.generation.text import (
    TextFeatures,
    TransformersTextEncoder,
    WordTextEncoder,
    build_word_tokenizer,
    concatenate,
    known_words,
    unknown_words,
)

WORDS = ["a", "red", "car", "drives", "left", "in", "the", "snow"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(WORDS)


def test_ids_follow_the_order_of_the_words(tokenizer):
    text = WordTextEncoder(tokenizer)(["a red car", ""])
    assert text.values.tolist() == [[2, 3, 4, 5], [2, 0, 0, 0]]
    assert text.mask.tolist() == [[True] * 4, [True, False, False, False]]


@pytest.mark.parametrize("prompt", ["A RED car!", "  a,red\ncar. ", "a-red_car"])
def test_case_and_punctuation_do_not_count(tokenizer, prompt):
    assert WordTextEncoder(tokenizer)([prompt]).values.tolist() == [[2, 3, 4, 5]]


@pytest.mark.parametrize("word", ["zebra", "3", "кошка", "ça"])
def test_unknown_words_have_one_id(tokenizer, word):
    assert WordTextEncoder(tokenizer)([f"a {word} car"]).values.tolist() == [[2, 3, 1, 5]]
    assert list(unknown_words(tokenizer, f"a {word.upper()} car")) == [word]


def test_prompts_are_cut_at_the_longest(tokenizer):
    assert WordTextEncoder(tokenizer, max_length=3)(["a red car drives"]).values.tolist() == [[2, 3, 4]]


def test_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    prompts = ["A red, car", "", "zebra snow"]
    before, after = (WordTextEncoder(each)(prompts) for each in (tokenizer, loaded))
    assert torch.equal(before.values, after.values)
    assert torch.equal(before.mask, after.mask)
    assert known_words(loaded) == WORDS


@pytest.mark.parametrize("words", [[], ["a", "a"], ["Red"], ["two words"], [""]])
def test_wrong_vocabularies_are_refused(words):
    with pytest.raises(KinemaError, match="`words`"):
        build_word_tokenizer(words)


def test_near_words_are_offered(tokenizer):
    unknown = unknown_words(tokenizer, "A Redd cars drive, redd snow")
    assert list(unknown) == ["redd", "cars", "drive"]
    assert [near[0] for near in unknown.values()] == ["red", "car", "drives"]


def test_something_is_offered_for_a_far_word(tokenizer):
    assert set(unknown_words(tokenizer, "xylophone")["xylophone"]) <= set(WORDS)
    assert len(unknown_words(tokenizer, "xylophone")["xylophone"]) == 3


def test_known_prompt_has_nothing_unknown(tokenizer):
    assert unknown_words(tokenizer, "The red CAR drives left, in the snow.") == {}


def test_prompt_of_a_text_encoder_without_effect_is_said(tokenizer):
    with pytest.warns(
        PromptWarning, match="`prompt` \\(='zebra'\\) has no word that the model knows, and so no effect$"
    ):
        warn_of_prompts(tokenizer, ["zebra", "a zebra"], 8, is_word_tokenizer=False)


def test_word_beyond_the_longest_prompt_has_no_effect(tokenizer):
    with pytest.warns(PromptWarning, match="no effect"), pytest.warns(PromptWarning, match="is cut to the model's 3"):
        warn_of_prompts(tokenizer, ["zebra zebra car"], 3, is_word_tokenizer=True)


def ids(*rows):
    values = torch.tensor(rows)
    return TextFeatures(values, values > 0)


def test_select_repeats_rows_and_trims():
    text = ids([2, 3, 4, 5], [2, 3, 0, 0], [2, 0, 0, 0])
    chosen = text.select([1, 2, 1])
    assert chosen.values.tolist() == [[2, 3], [2, 0], [2, 3]]
    assert len(chosen) == 3


def test_concatenate_pads():
    text = concatenate([ids([2, 3]), ids([2, 4, 5])])
    assert text.values.tolist() == [[2, 3, 0], [2, 4, 5]]
    assert text.mask.tolist() == [[True, True, False], [True] * 3]


@pytest.mark.parametrize("null", [ids([2]), ids([2, 9, 9, 9])], ids=["shorter", "longer"])
def test_dropped_rows_become_the_null_prompt(null):
    text = ids([2, 3, 4], [2, 5, 0])
    dropped = text.drop(torch.tensor([True, False]), null)
    assert dropped.select([0]).values.tolist() == null.values.tolist()
    assert dropped.select([1]).values.tolist() == [[2, 5]]


@pytest.fixture(scope="module")
def t5(tokenizer):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1
    )
    return TransformersTextEncoder(tokenizer, T5EncoderModel(config))


def test_features_do_not_depend_on_the_batch(t5):
    both, alone = t5(["red", "a red car drives"]), t5(["red"])
    assert both.values.shape == (2, 5, 16)
    torch.testing.assert_close(both.values[:1, :2], alone.values)
    assert both.values[0, 2:].eq(0).all()
    assert alone.values.abs().min() > 0


def test_encoder_is_frozen(t5):
    assert not t5.model.training
    assert not any(parameter.requires_grad for parameter in t5.model.parameters())


def test_features_can_be_dropped(t5):
    text, null = t5(["a red car", "snow"]), t5([""])
    dropped = text.drop(torch.tensor([False, True]), null)
    torch.testing.assert_close(dropped.values[0], text.values[0])
    torch.testing.assert_close(dropped.values[1, :1], null.values[0])
    assert dropped.mask[1].tolist() == [True, False, False, False]
