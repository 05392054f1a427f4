"""One word rule: a vocabulary knows every word of the captions that it was made of."""

# ruff: noqa: RUF001 (letters of many scripts look alike)

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kinema.generation.prompts import missing_words, unknown_words
from kinema.generation.text import WordTextEncoder, build_word_tokenizer
from kinema.generation.words import split_words
from kinema.training.data.toybox import split_words as toybox_split_words
from kinema.training.data.toybox import vocabulary
from kinema.training.data.toybox.build import names_list
from kinema.weights import embedded_dir

UNKNOWN_ID = 1
SENTENCES = {
    "Hindi": ("लाल कार दाईं ओर चलती है", "लाल कार दाईं ओर चलती है"),
    "Tamil": ("நீல பறவை மேலே பறக்கிறது", "நீல பறவை மேலே பறக்கிறது"),
    "Bengali": ("একটি লাল গাড়ি ডানে যায়", "একটি লাল গাড়ি ডানে যায়"),
    "Thai": ("แมว กระโดด บน หิมะ", "แมว กระโดด บน หิมะ"),
    "Khmer": ("ខ្មែរ\u200bភាសា", "ខ្មែរ ភាសា"),
    "Burmese": ("မြန်မာ ဘာသာ", "မြန်မာ ဘာသာ"),
    "Sinhala with joiner": ("ශ්\u200dරී ලංකා", "ශ්රී ලංකා"),
    "Persian with non-joiner": ("خودرو می\u200cرود", "خودرو میرود"),
    "Arabic with harakat": ("مُحَمَّد يَكْتُب", "مُحَمَّد يَكْتُب"),
    "Hebrew with niqqud": ("שָׁלוֹם עוֹלָם", "שָׁלוֹם עוֹלָם"),
    "Vietnamese": ("Một chiếc xe màu đỏ rẽ phải", "một chiếc xe màu đỏ rẽ phải"),
    "French": ("une voiture à côté du café, l'été", "une voiture à côté du café l été"),
    "Turkish": ("İstanbul'da ışık", "istanbul da ışık"),
    "German": ("eine weiße Straße", "eine weiße straße"),
    "Greek": ("ο σκύλος τρέχει δεξιά", "ο σκύλος τρέχει δεξιά"),
    "Croatian": ("ǅungla i ǈubav", "ǆungla i ǉubav"),
    "Chinese": ("3辆红色的car。", "3 辆 红 色 的 car"),
    "Japanese": ("車が走る", "車 が 走 る"),
    "Korean": ("빨간 자동차", "빨간 자동차"),
    "digits": ("٣ कारें ४५ m² ½", "٣ कारें ४५ m² ½"),
    "signs": ("red_car co\u00adoperates 👩\u200d🚀 [PAD] don’t\u2028end", "red car cooperates pad don t end"),
    "half a surrogate pair": ("a\ud83db", "a b"),
    "bytes of UTF-8": ("b\udcc3\udca9b\udcc3\udca9", "bébé"),
}


def spellings(text: str) -> list[str]:
    """The same text composed, decomposed, and in capitals where they stand for the same letters."""
    capitals = text.upper()
    forms = [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]
    return [*forms, capitals] if capitals.lower() == text.lower() else forms


@pytest.mark.parametrize("name", SENTENCES)
def test_words_of_every_script(name: str):
    text, expected = SENTENCES[name]
    words = [unicodedata.normalize("NFC", word) for word in expected.split(" ")]
    assert split_words(text) == toybox_split_words(text) == words
    tokenizer = build_word_tokenizer(sorted(set(words)))
    for spelling in spellings(text):
        [ids] = WordTextEncoder(tokenizer)([spelling]).values.tolist()
        assert tokenizer.convert_ids_to_tokens(ids[1:]) == words
        assert missing_words(tokenizer, spelling) == []


# Of Unicode 3.2: `tokenizers` composes by old tables, which order some marks of later versions differently.
_KNOWN = st.characters(codec="utf-8").filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn")
_LETTERS_AND_MARKS = st.sampled_from("aBIıςΣßẞǅé\u0301\u0323\u0308 \u00ad\u200b\u200c\u200d红3कि्\u0e48ปאָي\u064eΐ")


@given(st.text(_KNOWN, max_size=12) | st.text(_LETTERS_AND_MARKS, max_size=12))
def test_vocabulary_knows_its_own_captions(caption: str):
    words = split_words(caption)
    tokenizer = build_word_tokenizer([*dict.fromkeys(words), "qqzzqq"])
    for spelling in spellings(caption):
        # Capital İ and I with a dot of its own are one letter, and Python's `lower` makes two of it.
        if spelling == caption or "\u0307" not in unicodedata.normalize("NFD", caption):
            assert tokenizer.convert_ids_to_tokens(tokenizer(spelling)["input_ids"])[1:] == words  # pyright: ignore


@given(st.text(max_size=20))
def test_any_text_is_split_into_known_words(caption: str):
    tokenizer = build_word_tokenizer([*dict.fromkeys(split_words(caption)), "qqzzqq"])
    assert UNKNOWN_ID not in tokenizer(caption)["input_ids"]  # pyright: ignore[reportOperatorIssue]
    assert unknown_words(tokenizer, caption) == {}


@given(st.text(max_size=20))
def test_words_unknown_to_a_tokenizer_are_those_it_has_no_id_for(caption: str):
    tokenizer = build_word_tokenizer(["qqzzqq"])
    assert missing_words(tokenizer, caption) == list(dict.fromkeys(w for w in split_words(caption) if w != "qqzzqq"))


def older_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """As kinema made them before words had marks."""
    ids = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[START]", *words])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    split = pre_tokenizers.Split(Regex(r"[^\W_]+"), "removed", invert=True)
    backend.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    start = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", 2)])
    backend.post_processor = start  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[START]", padding_side="right"
    )


def test_older_tokenizer_says_what_it_does_not_know(tmp_path):
    caption = "लाल कार दाईं ओर"
    older_tokenizer(list(dict.fromkeys(re.findall(r"[^\W_]+", caption)))).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = tokenizer(caption)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[START]", "[UNK]", "[UNK]", "[UNK]", "ओर"]
    assert list(unknown_words(tokenizer, caption)) == ["लाल", "कार", "दाईं"]


def test_embedded_model_reads_as_before():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(embedded_dir("toybox") / "tokenizer")
    words = vocabulary([sprite["name"] for sprite in names_list()["sprites"]])
    assert len(words) == 382
    assert tokenizer(" ".join(words))["input_ids"] == [2, *range(3, 385)]
    same_rule = build_word_tokenizer(words)
    golden = {
        "a red car drives to the right in a snowy field": [2, 3, 272, 70, 117, 345, 343, 275, 174, 3, 317, 128],
        "An ORANGE-fox runs, left!": [2, 10, 225, 136, 286, 190],
        "a zzz": [2, 3, 1],
        "": [2],
    }
    for prompt, ids in golden.items():
        assert tokenizer(prompt)["input_ids"] == same_rule(prompt)["input_ids"] == ids
