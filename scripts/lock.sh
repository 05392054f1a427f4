#!/bin/sh
# Writes constraints.txt (the versions that `make setup` installs) and constraints-oldest.txt (the lowest that pyproject.toml
# allows) for Python 3.11 to 3.13 on all platforms. Options go to uv: `lock.sh --upgrade`, `lock.sh --upgrade-package torch`.
set -eu
cd "$(dirname "$0")/.."
if ! command -v uv > /dev/null 2>&1; then
    [ -x .venv-lock/bin/uv ] || { python3 -m venv --clear .venv-lock && .venv-lock/bin/python -m pip install --quiet uv; }
    PATH=$PWD/.venv-lock/bin:$PATH
fi

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --all-extras --no-annotate \
        --custom-compile-command "make lock" pyproject.toml "$@"
}

# Versions that are in the file already stay, unless they are to be upgraded or pyproject.toml rules them out.
compile --output-file constraints.txt "$@"
rm -f constraints-oldest.txt
compile --output-file constraints-oldest.txt --resolution lowest-direct
