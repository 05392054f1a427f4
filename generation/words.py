"""What a word is: the one rule by which vocabularies are made, prompts are read and warnings are given.

The rule is a normalizer and a pre-tokenizer of the `tokenizers` library. The saved file of a word tokenizer has both,
and `split_words` runs the same two, so that there is no second splitter that could disagree.
"""

from contextlib import suppress

from tokenizers import Regex, normalizers, pre_tokenizers

_SIGMA, _FINAL_SIGMA = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"
_LETTER = r"[\p{L}&&\P{Han}]"
_FIRST_IN_WORD = r"[\p{L}\p{N}&&\P{Han}]"
_IN_WORD = r"[\p{L}\p{M}\p{N}&&\P{Han}]"
_CHINESE_CHARACTER = r"[\p{L}\p{N}&&\p{Han}]\p{M}*"


def word_normalizer() -> normalizers.Normalizer:
    """Text as words are compared: one spelling of each character (NFC), lower case, nothing invisible.

    Invisible is what Unicode says to ignore where it is not supported (joiners, soft hyphens, direction marks,
    variation selectors): people type a word with or without them. A zero-width space ends a word in Khmer, Thai and
    Burmese. Σ at the end of a word becomes ς, whichever of σ and ς was typed, and İ becomes i.
    """
    return normalizers.Sequence(
        [
            normalizers.Replace("\N{ZERO WIDTH SPACE}", " "),
            normalizers.Replace(Regex(r"\p{Default_Ignorable_Code_Point}"), ""),
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("i\N{COMBINING DOT ABOVE}+"), "i"),
            normalizers.NFC(),
            normalizers.Replace(_FINAL_SIGMA, _SIGMA),
            normalizers.Replace(Regex(f"(?<={_LETTER}){_SIGMA}(?!{_IN_WORD})"), _FINAL_SIGMA),
        ]
    )


def word_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cuts normalised text into words and leaves out what is between them.

    A word is a run of letters, digits and the marks on them. A Chinese character is a word of its own, because Chinese
    and Japanese are written without spaces.
    """
    return pre_tokenizers.Split(Regex(f"{_CHINESE_CHARACTER}|{_FIRST_IN_WORD}{_IN_WORD}*"), "removed", invert=True)


_NORMALIZER, _PRE_TOKENIZER = word_normalizer(), word_pre_tokenizer()


def split_words(text: str) -> list[str]:
    """The words of a text, normalised, in order: `"A red-hot CAFÉ"` has a, red, hot, café.

    Case, punctuation, symbols and spaces do not count, whatever the script; composed and decomposed spellings are one
    word.

    Args:
        text: Any text; halves of surrogate pairs, as damaged files have them, separate words.
    """
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(encodable_text(text)))]


def encodable_text(text: str) -> str:
    """The text with U+FFFD in place of halves of surrogate pairs, which no tokenizer takes.

    They come from escapes in JSON, and from bytes on the command line that are not of its encoding. Where those bytes
    are UTF-8 (a shell with `LC_ALL=POSIX`), the text is read as such.
    """
    with suppress(UnicodeError):
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
