"""Prompts of a training: the vocabulary or the text encoder, and where they come from."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kinema.errors import KinemaError
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.prompts import missing_words
from kinema.generation.text import (
    TextFeatures,
    TransformersTextEncoder,
    WordTextEncoder,
    build_word_tokenizer,
    known_words,
)
from kinema.loading import one_line
from kinema.training.config import DiffusionTrainingConfig
from kinema.training.data.sources import CaptionedClips
from kinema.training.record import Record
from kinema.weights import EMBEDDED, embedded_dir

logger = logging.getLogger(__name__)

EncodeText = Callable[[Sequence[str]], TextFeatures]


def make_text_encoder(
    config: DiffusionTrainingConfig, clips: CaptionedClips, start: Record | None
) -> tuple[Any, Any, EncodeText]:
    """Text tokenizer, text model (None for a vocabulary of words) and the encoder made of them.

    Args:
        config: which text encoder.
        clips: whose captions have the words, if there is no text encoder.
        start: the checkpoint from which the run goes on, whose vocabulary stays.

    Raises:
        KinemaError: there is no such text encoder, or captions have words that the vocabulary must know and lacks.
    """
    if config.text_encoder is None:
        tokenizer = make_vocabulary(config, clips.words(), start)
        return tokenizer, None, WordTextEncoder(tokenizer, config.text_max_length)
    from transformers import AutoModelForTextEncoding, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.text_encoder)
        model = AutoModelForTextEncoding.from_pretrained(config.text_encoder, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise KinemaError(f"`text_encoder` (={config.text_encoder}) must hold a text encoder: {reason}") from error
    return tokenizer, model, TransformersTextEncoder(tokenizer, model, config.text_max_length)


def make_vocabulary(config: DiffusionTrainingConfig, words: Sequence[str], start: Record | None) -> Any:
    """The tokenizer that makes ids of words: the run's own, that of `init_from`, or a new one of these words.

    Raises:
        KinemaError: there are no words, or some that a vocabulary lacks which weights were trained with.
    """
    if not words:
        raise KinemaError(f"`data` (={', '.join(config.data)}) must have captions")
    own = None if start is None else run_vocabulary(start)
    if own is not None:
        tokenizer = load_vocabulary(own)
        unknown = sorted(missing_words(tokenizer, " ".join(words)))
        if unknown:
            raise KinemaError(
                f"`data` (={', '.join(config.data)}) must have no words but those that the run in `output`"
                f" (={config.run_dir}) was started with, and has {', '.join(unknown)}, which its weights do not know"
            )
        gone = sorted(set(known_words(tokenizer)) - set(words))
        if gone:
            logger.info("the vocabulary keeps %d word(s) that no caption has now: %s", len(gone), ", ".join(gone[:20]))
        return tokenizer
    if config.init_from is not None:  # its embeddings belong to its own words
        tokenizer = load_pipeline(config.init_from, "init_from").tokenizer
        unknown = sorted(missing_words(tokenizer, " ".join(words)))
        if unknown:
            raise KinemaError(
                f"`init_from` (={config.init_from}) must know the words of `data`, and lacks {', '.join(unknown)}"
            )
        return tokenizer
    if start is not None:
        logger.warning("%s has no vocabulary: words are numbered as the captions have them now", start.path)
    return build_word_tokenizer(words)


def run_vocabulary(start: Record) -> Path | None:
    """The vocabulary of a run; one from before checkpoints had it may have it in its result, `model/`."""
    if start.vocabulary is not None or start.model:
        return start.vocabulary
    exported = start.path.parent.parent / "model" / "tokenizer"
    return exported if exported.is_dir() else None


def load_vocabulary(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        KinemaError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of many kinds: tokenizers raises plain exceptions
        raise KinemaError(f"`vocabulary` (={folder}) must hold the tokenizer of prompts: {one_line(error)}") from error


def vocabulary_hash(tokenizer: Any) -> str:
    """A hash of the words, their ids and how prompts are split; not of how the last batch was padded and cut."""
    values = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_pipeline(folder: Path, argument: str) -> Any:
    """The pipeline in a folder, or the embedded one of this name, for the setting `argument`.

    Raises:
        KinemaError: the folder holds none.
    """
    try:
        embedded = str(folder) in EMBEDDED and not folder.is_dir()
        return KinemaPipeline.from_pretrained(embedded_dir(str(folder)) if embedded else folder)
    except KinemaError as error:
        raise KinemaError(f"`{argument}` (={folder}) must be the folder of a pipeline: {error}") from error
