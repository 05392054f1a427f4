"""Word splitting, the same for vocabularies, prompts and warnings.

It consists of a normalizer and a pre-tokenizer of the `tokenizers` library. Saved word tokenizers contain both, and
`split_words` runs the same two, so that all agree.
"""

from contextlib import suppress

from tokenizers import Regex, normalizers, pre_tokenizers

_SIGMA, _FINAL_SIGMA = "\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"
_LETTER = r"[\p{L}&&\P{Han}]"
_FIRST_IN_WORD = r"[\p{L}\p{N}&&\P{Han}]"
_IN_WORD = r"[\p{L}\p{M}\p{N}&&\P{Han}]"
_CHINESE_CHARACTER = r"[\p{L}\p{N}&&\p{Han}]\p{M}*"


def word_normalizer() -> normalizers.Normalizer:
    """Return the normalizer of words: NFC, lower case, without invisible characters.

    Invisible characters are Unicode's default ignorable code points (joiners, soft hyphens, direction marks, variation
    selectors), which people type or omit at will. A zero-width space separates words in Khmer, Thai and Burmese. Σ at
    the end of a word becomes ς, whether σ or ς was typed, and İ becomes i.
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
    """Return the pre-tokenizer that extracts the words of normalised text.

    A word is a run of letters, digits and combining marks. Each Chinese character is a separate word, because Chinese
    and Japanese are written without spaces.
    """
    return pre_tokenizers.Split(Regex(f"{_CHINESE_CHARACTER}|{_FIRST_IN_WORD}{_IN_WORD}*"), "removed", invert=True)


_NORMALIZER, _PRE_TOKENIZER = word_normalizer(), word_pre_tokenizer()


def split_words(text: str) -> list[str]:
    """Return the normalised words of a text in order: a, red, hot, café for `"A red-hot CAFÉ"`.

    Case, punctuation, symbols and spaces are ignored in all scripts; composed and decomposed spellings are equal.

    Args:
        text: Any text; unpaired surrogates, as in damaged files, separate words.
    """
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(encodable_text(text)))]


def encodable_text(text: str) -> str:
    """Replace unpaired surrogates, which tokenizers reject, by U+FFFD.

    They come from JSON escapes, and from command-line bytes that are invalid in the locale's encoding. If those bytes
    are valid UTF-8 (as in a shell with `LC_ALL=POSIX`), they are decoded as UTF-8.
    """
    with suppress(UnicodeError):
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
