"""Keeps the working folder off the module path: it may hold a client's files, named like modules.

Python itself looks for modules in the working folder after ``python -m``, and wherever ``PYTHONPATH`` has an empty or a
relative entry. This module imports nothing that is not loaded already, so that it can be imported first.
"""

import os
import sys

_VARIABLES = ("PYTHONPATH", "PYTHONSAFEPATH")
_given: dict[str, str | None] = {}
"""Those variables before ``isolate`` changed them."""


def isolate() -> None:
    """Removes the working folder from this process's module path, and from those of its children.

    Absolute entries of ``PYTHONPATH`` stay, since the user named them. So does the folder that holds this package.
    """
    for name in _VARIABLES:
        _given.setdefault(name, os.environ.get(name))
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in given if os.path.isabs(entry)]
    own = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))
    sys.path[:] = [entry for entry in sys.path if entry in kept or not _is_working_folder(entry)]
    if own not in sys.path:  # a copy of the repository that is not installed
        kept.append(own)
        sys.path.append(own)
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    os.environ["PYTHONSAFEPATH"] = "1"


def users_environment() -> dict[str, str]:
    """Returns the environment as the user gave it, for the user's own programs: they may have modules beside them."""
    changed = {name: value for name, value in _given.items() if value is not None}
    return {**{name: value for name, value in os.environ.items() if name not in _given}, **changed}


def _is_working_folder(entry: str) -> bool:
    try:
        return not os.path.isabs(entry) or os.path.samefile(entry, os.curdir)
    except OSError:  # not a folder, or the working folder was deleted
        return False
