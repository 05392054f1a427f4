"""The help of `kinema eval` says what the library knows."""

import re
import subprocess
import sys

import pytest

from kinema.apps.cli import main
from kinema.apps.commands.evaluate import MEASURES
from kinema.eval.fvd import EXTRAS


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_has_help_without_torch(measure: str):
    code = f"""
import sys
from kinema.apps.cli import main
status = main(["eval", {measure!r}, "--help"])
heavy = [name for name in ("torch", "numpy", "diffusers", "av") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: kinema eval {measure}")


def test_help_and_library_agree_on_what_may_be_unreadable():
    from kinema.apps.commands.eval_fvd import Options
    from kinema.eval.clips import DEFAULT_MAX_UNREADABLE

    assert Options(real="a", fake="b").reading.max_unreadable == DEFAULT_MAX_UNREADABLE


def test_help_names_every_metric_and_protocol(capsys: pytest.CaptureFixture[str]):
    """The protocols are written by hand, because their table would import torch."""
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


def test_words_that_begin_with_a_dash(monkeypatch: pytest.MonkeyPatch):
    """Folders after `--`, and values of options; --statistics-dir takes one folder or none."""
    from kinema.apps.commands import eval_fvd

    got: list[eval_fvd.Options] = []
    monkeypatch.setattr(eval_fvd, "run", got.append)
    for line in (
        "--value-range -1,1 -- -real -fake",
        "a b --statistics-dir --overwrite",
        "--statistics-dir kept a b",
        "--metrics kvd mmd -- a b",
    ):
        assert main(["eval", "fvd", *line.split()]) == 0
    assert (got[0].real, got[0].fake, got[0].reading.value_range) == ("-real", "-fake", "-1,1")
    assert [options.statistics_dir for options in got] == [None, (), ("kept",), None]
    assert [options.metrics for options in got] == [None, None, None, ("kvd", "mmd")]
