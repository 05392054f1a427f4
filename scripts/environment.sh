#!/bin/sh
# Makes or updates a virtual environment with kinema and its tools: environment.sh FOLDER locked|oldest|newest
# Versions are those of constraints.txt, those of constraints-oldest.txt, or the newest.
# uv installs where it is on the PATH, pip otherwise.
set -eu
cd "$(dirname "$0")/.."
folder=$1
versions=$2
python=$folder/bin/python

fail() {
    echo "kinema: $1" >&2
    exit 1
}

# Git on Windows writes links as text files unless it is told to make them.
for area in tokenizers generation training eval apps; do
    [ -d "src/kinema/$area" ] || fail "src/kinema/$area must be a link to $area: git config core.symlinks true, then clone again"
done

has_uv() {
    command -v uv > /dev/null 2>&1
}

# The first Python from 3.11 to 3.13 that can import the named modules.
find_python() {
    case $versions in
        oldest) names="python3.11 python3.12 python3.13 python3 python" ;;
        newest) names="python3.13 python3.12 python3.11 python3 python" ;;
        *) names="python3 python3.13 python3.12 python3.11 python" ;;
    esac
    for name in $names; do
        if "$name" -c "import $1; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" > /dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
}

make_environment() {
    if has_uv; then
        found=$(find_python sys)
        # Without one on the PATH uv may have, or fetch, a Python of its own.
        uv venv --quiet --clear --seed --python "${found:-3.12}" "$folder" || fail "uv could not make $folder, see above"
        return
    fi
    found=$(find_python "ensurepip, sys, venv")
    if [ -z "$found" ]; then
        found=$(find_python sys)
        [ -z "$found" ] && fail "needs Python 3.11, 3.12 or 3.13 on the PATH, and found none"
        fail "$found has no ensurepip: install its venv package (Debian, Ubuntu: apt install python3-venv), or uv"
    fi
    "$found" -m venv --clear "$folder" || fail "$found could not make $folder, see above"
}

install() {
    case $versions in
        locked) set -- --constraint constraints.txt "$@" ;;
        oldest) set -- --constraint constraints-oldest.txt "$@" ;;
        newest) set -- --upgrade "$@" ;;
    esac
    if has_uv; then
        uv pip install --quiet --python "$python" "$@"
    else
        "$python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

# An environment that an interrupted set-up or a removed Python left broken is made anew.
if ! "$python" -c "import pip" > /dev/null 2>&1; then
    make_environment
fi
echo "Installing kinema and what it needs into $folder ($("$python" --version), $versions versions): minutes the first time"
# The build backend first, so that it is of the same version too: built in isolation, it would be the newest.
install "editables>=0.5" "hatchling>=1.27" && install --no-build-isolation --editable ".[test,lint]" ||
    fail "installing failed, see above; it needs the package index, or a mirror of it in pip's or uv's settings"
