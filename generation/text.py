"""Text encoding: from prompts to word ids, or to features of a frozen text encoder.

Nothing here is trained, so results can be cached. The trained part of the text path is
`transformer.layers.TextRefiner`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kinema.errors import KinemaError
from kinema.generation.prompts import PromptWarning as PromptWarning
from kinema.generation.prompts import known_words as known_words
from kinema.generation.prompts import unknown_words as unknown_words
from kinema.generation.words import encodable_text, split_words, word_normalizer, word_pre_tokenizer

PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[START]"


@dataclass(frozen=True)
class TextFeatures:
    """Encoded text of a batch of prompts.

    Attributes:
        values: word ids (b, l), or features (b, l, f).
        mask: true for text, false for padding; at least one true position per row.
    """

    values: Int[Tensor, "b l"] | Float[Tensor, "b l f"]
    mask: Bool[Tensor, "b l"]

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> "TextFeatures":
        """Move both tensors to a device."""
        return TextFeatures(self.values.to(device), self.mask.to(device))

    def select(self, rows: Int[Tensor, " m"] | Sequence[int]) -> "TextFeatures":
        """Select rows by index and drop columns that are padding in all of them."""
        rows = torch.as_tensor(rows, device=self.values.device)
        return TextFeatures(self.values[rows], self.mask[rows]).trim()

    def trim(self) -> "TextFeatures":
        """Drop trailing columns that are padding in every row."""
        used = self.mask.any(dim=0).nonzero()
        length = int(used.max()) + 1 if len(used) else 1
        return TextFeatures(self.values[:, :length], self.mask[:, :length])

    def pad(self, length: int) -> "TextFeatures":
        """Pad to a length."""
        extra = length - self.mask.shape[1]
        if extra <= 0:
            return self
        values = self.values.new_zeros(len(self), extra, *self.values.shape[2:])
        mask = self.mask.new_zeros(len(self), extra)
        return TextFeatures(torch.cat((self.values, values), dim=1), torch.cat((self.mask, mask), dim=1))

    def drop(self, rows: Bool[Tensor, " b"], null: "TextFeatures") -> "TextFeatures":
        """Replace rows by the empty prompt, for training with classifier-free guidance (arXiv:2207.12598, 3.1).

        Args:
            rows: which rows to replace.
            null: features of the empty prompt, one row.
        """
        length = max(self.mask.shape[1], null.mask.shape[1])
        text, null = self.pad(length), null.pad(length).to(self.values.device)
        rows = rows.to(self.values.device)
        values = torch.where(rows.reshape(-1, *[1] * (text.values.ndim - 1)), null.values, text.values)
        return TextFeatures(values, torch.where(rows[:, None], null.mask, text.mask))


def concatenate(parts: Sequence[TextFeatures]) -> TextFeatures:
    """Concatenate batches of text, padded to the longest."""
    length = max(part.mask.shape[1] for part in parts)
    padded = [part.pad(length) for part in parts]
    return TextFeatures(torch.cat([part.values for part in padded]), torch.cat([part.mask for part in padded]))


class TextEncoder(Protocol):
    """Encodes prompts as text features. Guidance uses the empty prompt as the default negative prompt."""

    def __call__(self, prompts: Sequence[str]) -> TextFeatures: ...


@dataclass(frozen=True)
class WordTextEncoder:
    """Encodes text as ids of a fixed word vocabulary; see `build_word_tokenizer`.

    Attributes:
        tokenizer: the word tokenizer.
        max_length: maximum number of tokens; longer prompts are truncated.
    """

    tokenizer: PreTrainedTokenizerFast
    max_length: int = 64

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Return ids (b, l) padded to the longest prompt; the empty prompt consists of the start token."""
        return _tokenize(self.tokenizer, prompts, self.max_length)


class TransformersTextEncoder:
    """Encodes text as the last hidden states of a frozen `transformers` text encoder (T5, CLIP, ...).

    Args:
        tokenizer: the encoder's tokenizer.
        model: the encoder; it is frozen and set to evaluation mode.
        max_length: maximum number of tokens; longer prompts are truncated.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module, max_length: int = 64) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.model: Any = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Return features (b, l, f), zero at padding."""
        tokens = _tokenize(self.tokenizer, prompts, self.max_length).to(self.model.device)
        states = self.model(input_ids=tokens.values, attention_mask=tokens.mask.long()).last_hidden_state
        return TextFeatures(states * tokens.mask[:, :, None], tokens.mask)


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int) -> TextFeatures:
    texts = [encodable_text(prompt) for prompt in prompts]
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return TextFeatures(encoded["input_ids"], encoded["attention_mask"].bool())  # pyright: ignore


def build_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a fixed vocabulary of words.

    Prompts are split by the rule of `split_words`. A start token is prepended, so that the empty prompt has one token.
    Ids: 0 padding, 1 unknown word, 2 start, then the words in order.

    Args:
        words: distinct words, as returned by `split_words`.

    Raises:
        KinemaError: `words` is empty, or contains a repeated word or one that `split_words` would change.
    """
    words = list(words)
    if not words:
        raise KinemaError("`words` (=[]) must name at least one word")
    vocabulary = {PAD: 0, UNKNOWN: 1, START: 2}
    for word in words:
        if word in vocabulary:
            raise KinemaError(f"`words` (has {word!r} twice) must be distinct")
        if split_words(word) != [word]:
            raise KinemaError(f"`words` (has {word!r}) must be words as returned by `split_words`: {split_words(word)}")
        vocabulary[word] = len(vocabulary)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = word_normalizer()  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = word_pre_tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        padding_side="right",
        split_special_tokens=True,  # "[PAD]" in a prompt is the word pad
    )
