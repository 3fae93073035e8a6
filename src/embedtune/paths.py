"""Paths as people type them."""

from __future__ import annotations

import os
from pathlib import Path

from embedtune.errors import ConfigError, brief


def expanded(name: str | Path) -> Path:
    """The path with a `~` or `~USER` at its beginning written out, as a shell does it.

    Shells leave it as it is in quotes and behind a `=`, and in a config file there is no shell. A file that is called
    so is taken as it is.

    Raises:
        ConfigError: that user has no home folder here.
    """
    try:
        path = os.path.expanduser(name)
    except ValueError:  # a NUL or half a character, which no path has
        path = str(name)
    if path.startswith("~") and not os.path.lexists(path):
        user, shown = path.partition("/")[0], brief(path, 300)
        raise ConfigError(
            f"'{shown}': no home folder is known for '{brief(user)}'; expected ~/ for your own, or ~USER/ "
            f"for that of a user of this machine.\nType the whole path; for a name that begins with ~, type:  ./{shown}"
        )
    return Path(path)
