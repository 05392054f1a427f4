"""The help of `kinema eval` says what the library knows."""

import re

import pytest

from kinema.apps.cli import main
from kinema.apps.commands.evaluate import MEASURES
from kinema.eval.fvd import EXTRAS


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_has_help(measure: str, capsys: pytest.CaptureFixture[str]):
    assert main(["eval", measure, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: kinema eval {measure}")


def test_help_and_library_agree_on_what_may_be_unreadable():
    from kinema.apps.cli import build_parser
    from kinema.eval.clips import DEFAULT_MAX_UNREADABLE

    assert build_parser().parse_args(["eval", "fvd", "a", "b"]).max_unreadable == DEFAULT_MAX_UNREADABLE


def test_help_names_every_metric_and_protocol(capsys: pytest.CaptureFixture[str]):
    """The help is written by hand, because the tables would import torch."""
    from kinema.eval.frames import METRICS as FRAMES
    from kinema.eval.fvd import PROTOCOLS
    from kinema.eval.generation import METRICS as GENERATION

    for measure, names in (
        ("fvd", (*PROTOCOLS, *EXTRAS)),
        ("compare", FRAMES),
        ("reconstruction", FRAMES),
        ("generation", GENERATION),
    ):
        assert main(["eval", measure, "--help"]) == 0
        words = set(re.split(r"[\s,();]+", capsys.readouterr().out))
        assert set(names) <= words, measure
