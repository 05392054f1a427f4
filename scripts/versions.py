"""Prints the versions of Python and of the packages that kinema names, as they are in the environment that runs it."""

import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requires("kinema") or ()}
found = [f"python {platform.python_version()}"]
for name in sorted(names):
    with suppress(PackageNotFoundError):  # of an extra that is not installed
        found.append(f"{name} {version(name)}")
print(", ".join(found))
