"""What a model cannot read of its prompts: said in warnings that always appear."""

import difflib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kinema.errors import KinemaError
from kinema.generation.words import encodable_text

_MAX_NAMED = 8
_MAX_SHOWN = 60
_NOT_THE_CALLER = ("kinema.", "torch.", "jaxtyping.")  # torch and jaxtyping wrap functions


class PromptWarning(UserWarning):
    """A prompt, or a part of it, has no effect: words outside the vocabulary, or words beyond the longest prompt."""


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a tokenizer made by `build_word_tokenizer`, in order of id."""
    special = set(tokenizer.all_special_tokens)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [word for word, _ in vocabulary if word not in special]


def missing_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The distinct words of a text that the vocabulary lacks, in order; split and looked up by this tokenizer itself.

    Args:
        tokenizer: made by `build_word_tokenizer`, of this or an older version.
        text: a prompt or captions.
    """
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    words = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(encodable_text(text)))
    unknown = tokenizer.unk_token_id
    return [word for word in dict.fromkeys(word for word, _ in words)
            if any(token.id == unknown for token in backend.model.tokenize(word))]  # fmt: skip


def unknown_words(tokenizer: PreTrainedTokenizerBase, prompt: str, num_near: int = 3) -> dict[str, list[str]]:
    """Finds the words of a prompt that the vocabulary lacks.

    Args:
        tokenizer: made by `build_word_tokenizer`.
        prompt: the prompt.
        num_near: how many near words to offer.

    Returns:
        Each unknown word with the known words that are spelled most like it, nearest first.
    """
    known = known_words(tokenizer)
    return {word: _near_words(word, known, num_near) for word in missing_words(tokenizer, prompt)}


def _near_words(word: str, known: list[str], num: int) -> list[str]:
    """Words spelled much like it; if there is none, the nearest all the same."""
    word = word[:_MAX_SHOWN]  # comparing costs the product of the lengths
    near = difflib.get_close_matches(word, known, n=num, cutoff=0.6)
    return near or difflib.get_close_matches(word, known, n=num, cutoff=0.0)


def prompt_list(prompts: Any, name: str = "prompt") -> list[str]:
    """One prompt or several as a list.

    Args:
        prompts: a string or a sequence of strings.
        name: what errors call the argument.

    Raises:
        KinemaError: there is none, or one that is no string.
    """
    texts = list(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else [prompts]
    if not texts:
        raise KinemaError(f"`{name}` (=[]) must have at least one prompt")
    for text in texts:
        if not isinstance(text, str):
            raise KinemaError(f"`{name}` (has a {type(text).__name__}) must be a string or a list of strings")
    return texts


def warn_of_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_length: int,
    *,
    is_word_tokenizer: bool,
    name: str = "prompt",
) -> None:
    """Warns, at each call, of prompts without effect, of unknown words, and of prompts that are cut.

    Args:
        tokenizer: a word tokenizer, or that of a text encoder.
        prompts: the prompts.
        max_length: tokens at which prompts are cut.
        is_word_tokenizer: whether unknown words are named.
        name: what warnings call the argument.
    """
    distinct = list(dict.fromkeys(prompts))
    without_effect = [p for p in distinct if not _has_known_token(tokenizer, p, max_length)]
    for prompt in without_effect:
        missing = missing_words(tokenizer, prompt) if is_word_tokenizer else []
        reason = f": {_named(tokenizer, missing)}" if missing else ""
        _warn(f"`{name}` (={_shown(prompt)}) has no word that the model knows, and so no effect{reason}")
    if is_word_tokenizer:
        text = "\n".join(p for p in distinct if p not in without_effect)
        missing = missing_words(tokenizer, text)
        if missing:
            of_name = "" if name == "prompt" else f" in `{name}`"
            _warn(f"words{of_name} that the model does not know: {_named(tokenizer, missing)}")
    for prompt in distinct:
        length = len(_token_ids(tokenizer, prompt))
        if length > max_length:
            _warn(f"a prompt of {length} tokens is cut to the model's {max_length}: {_shown(prompt)}")


def _token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    return tokenizer(encodable_text(prompt))["input_ids"]  # pyright: ignore[reportArgumentType, reportReturnType]


def _has_known_token(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int) -> bool:
    """Whether anything of the prompt, as far as the model reads it, is in the vocabulary."""
    return bool(set(_token_ids(tokenizer, prompt)[:max_length]) - set(tokenizer.all_special_ids))


def _named(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> str:
    """The first words with near ones, and how many more there are."""
    known = known_words(tokenizer)
    parts = [f"{_shown(word)} (near: {', '.join(_near_words(word, known, 3))})" for word in words[:_MAX_NAMED]]
    return "; ".join(parts) + (f"; and {len(words) - _MAX_NAMED} more" if len(words) > _MAX_NAMED else "")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]!r}..."


def _warn(message: str) -> None:
    """Warns, as of the place outside kinema that the call came from.

    `warnings.warn` would show a message only once for each place, and a second clip would come without one.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_CALLER):
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "")
    warnings.warn_explicit(message, PromptWarning, frame.f_code.co_filename, frame.f_lineno, module, registry=None)
