"""The fuzzer: a few cases of each kind here, many with `make fuzz`; and that it sees what must not happen."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.kinds import KINDS
from fuzz.mutations import MARKER, mutate
from fuzz.runner import kind_of

HELPERS = Path(__file__).parent / "helpers"
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{HELPERS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_some_cases_of_each_kind_are_survived(tmp_path):
    """In a process of its own, which forks: tests may have threads."""
    command = [sys.executable, "-m", "fuzz", "--count", "30", "--seed", "7", "--jobs", "1", "--folder", str(tmp_path)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "30 cases, 0 went wrong" in result.stdout


def test_each_hundred_cases_have_all_kinds_by_their_shares():
    kinds = [kind_of(index) for index in range(100, 200)]
    assert {name: kinds.count(name) for name in KINDS} == {name: share for name, (_, share) in KINDS.items()}


@pytest.mark.parametrize("suffix", [".json", ".csv", ".safetensors", ".mp4"])
def test_mutations_repeat_and_differ(suffix):
    data = b'{"a": [1, 2.5, null, "word"], "b": {"c": true}}'
    found = [mutate(data, suffix, random.Random(f"0-{index}")) for index in range(50)]
    assert found == [mutate(data, suffix, random.Random(f"0-{index}")) for index in range(50)]
    assert len(set(found)) > 25


WRONG = {
    "raise ZeroDivisionError": ["exit status 99", "a traceback"],
    "os.kill(os.getpid(), 9)": ["exit status -9"],
    f"open({MARKER!r}, 'w')": ["executed what a file contains"],
    "pickle.loads(pickled())": ["executed what a file contains"],
    "subprocess.run(['true'])": ["ran a program or opened a connection"],
    "sys.stderr.write('oh'); return 2": ["an error that is not said in the last line", "not exactly one error line"],
    "open('.tmp-x', 'w')": ["a temporary file is left"],
    "time.sleep(30)": ["exit status -9", "more than 1 s"],
    "x = bytearray(3 * 2**28); time.sleep(30)": ["exit status -9", "0.6 GB in memory"],
    "return 0": [],
}
"""What a command might do, and what the fuzzer must say of it."""

PROGRAM = """
import json, os, pickle, subprocess, sys, time
from pathlib import Path
import kinema.apps.cli
from fuzz import kinds, runner
from fuzz.mutations import pickled

kinds.KINDS["video"] = (lambda *_: [], 25)
runner.TIME_LIMIT, runner.MEMORY_LIMIT = 1.0, int(0.6 * 2**30)
for command in json.loads(sys.argv[1]):
    exec(f"def main(arguments):\\n    {command}\\n    return 0", globals())
    kinema.apps.cli.main = main
    print(json.dumps(runner.run_case(Path("bases"), Path("cases"), 0, 0).problems))
"""


def test_what_must_not_happen_is_seen(tmp_path):
    assert kind_of(0) == "video"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(WRONG))], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert dict(zip(WRONG, map(json.loads, result.stdout.splitlines()), strict=True)) == WRONG
