"""A report as HTML."""

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import kinema
from kinema.eval.report.document import Report, number
from kinema.files import atomic_path, check_output_file, displayed


def render(report: Report) -> str:
    """The page: one file that refers to nothing outside itself. Names and prompts in it are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # Before the escaping: names of files may hold control characters, and bytes that are no text.
        finalize=lambda value: displayed(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html.j2").render(report=report, version=kinema.__version__)


def write_html(report: Report, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes the page, whole or not at all.

    Raises:
        KinemaError: The file exists and `overwrite` is not set.
    """
    check_output_file(path, overwrite=overwrite, name="--html")
    text = render(report)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
