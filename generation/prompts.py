"""Warnings about prompts: unknown words and truncation."""

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
_NOT_THE_CALLER = ("kinema.", "torch.", "jaxtyping.")  # modules that wrap functions, skipped in the stack


class PromptWarning(UserWarning):
    """A prompt, or a part of it, has no effect: words are unknown, or beyond the maximum length."""


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the words of a tokenizer made by `build_word_tokenizer`, in order of id."""
    special = set(tokenizer.all_special_tokens)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [word for word, _ in vocabulary if word not in special]


def missing_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the distinct words of a text that are not in the vocabulary, in order, as split by this tokenizer.

    Args:
        tokenizer: a tokenizer made by `build_word_tokenizer` of this or an older version.
        text: a prompt or captions.
    """
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    words = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(encodable_text(text)))
    unknown = tokenizer.unk_token_id
    return [word for word in dict.fromkeys(word for word, _ in words)
            if any(token.id == unknown for token in backend.model.tokenize(word))]  # fmt: skip


def unknown_words(tokenizer: PreTrainedTokenizerBase, prompt: str, num_near: int = 3) -> dict[str, list[str]]:
    """Return the words of a prompt that are not in the vocabulary, with suggestions.

    Args:
        tokenizer: a tokenizer made by `build_word_tokenizer`.
        prompt: the prompt.
        num_near: number of suggestions per word.

    Returns:
        The known words with the most similar spelling for each unknown word, most similar first.
    """
    known = known_words(tokenizer)
    return {word: _near_words(word, known, num_near) for word in missing_words(tokenizer, prompt)}


def _near_words(word: str, known: list[str], num: int) -> list[str]:
    """Return words with similar spelling, or the most similar ones if none is close."""
    word = word[:_MAX_SHOWN]  # the cost is proportional to the product of the lengths
    near = difflib.get_close_matches(word, known, n=num, cutoff=0.6)
    return near or difflib.get_close_matches(word, known, n=num, cutoff=0.0)


def prompt_list(prompts: Any, name: str = "prompt") -> list[str]:
    """Convert one or several prompts to a list.

    Args:
        prompts: a string or a sequence of strings.
        name: name of the argument in errors.

    Raises:
        KinemaError: `prompts` is empty, or contains something other than strings.
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
    """Warn of prompts without effect, unknown words and truncated prompts, at every call.

    Args:
        tokenizer: a word tokenizer, or the tokenizer of a text encoder.
        prompts: the prompts.
        max_length: maximum number of tokens.
        is_word_tokenizer: whether `tokenizer` has a fixed vocabulary of words, whose unknown words are reported.
        name: name of the argument in warnings.
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
    """Whether the prompt, truncated to `max_length`, contains a known token."""
    return bool(set(_token_ids(tokenizer, prompt)[:max_length]) - set(tokenizer.all_special_ids))


def _named(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> str:
    """Format the first words with suggestions, and the number of further words."""
    known = known_words(tokenizer)
    parts = [f"{_shown(word)} (near: {', '.join(_near_words(word, known, 3))})" for word in words[:_MAX_NAMED]]
    return "; ".join(parts) + (f"; and {len(words) - _MAX_NAMED} more" if len(words) > _MAX_NAMED else "")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]!r}..."


def _warn(message: str) -> None:
    """Issue a warning located at the caller outside of kinema.

    `warnings.warn` would show a repeated message only once per location; this shows it at every call.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_CALLER):
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "")
    warnings.warn_explicit(message, PromptWarning, frame.f_code.co_filename, frame.f_lineno, module, registry=None)
