"""What every loading of a model needs: errors of one line, and diffusers quiet."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, LogRecord, getLogger

from kinema.files import displayed
from kinema.stopping import stop_if_asked


def one_line(error: BaseException, longest: int = 300) -> str:
    """The message of an error in one line, cut where it is too long; the kind of error where it has no message.

    Control characters are escaped: file names and what libraries say may hold such, and a terminal would obey them.
    """
    text = displayed(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


def quiet_casting() -> None:
    """Keeps diffusers from warning, whenever a model is cast, of an empty list of modules that should stay float32."""
    getLogger("diffusers.models.modeling_utils").addFilter(_says_something)


def _says_something(record: LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within, diffusers logs nothing (it logs what it raises as well), and its bars are for terminals."""
    from diffusers.utils import logging

    verbosity, hide_bars = logging.get_verbosity(), logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    logging.set_verbosity(CRITICAL)
    if hide_bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # An option that diffusers still passes to the hub's client, and that does nothing.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if hide_bars:
            logging.enable_progress_bar()
        stop_if_asked()  # safetensors and torch pass over an interruption now and then
