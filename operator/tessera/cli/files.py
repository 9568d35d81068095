"""Files that the options of commands name."""

import os
from pathlib import Path

from tessera.cli.errors import CommandError


def read_text(option: str, name: str) -> str:
    """Return the text of the file of an option; CommandError if it cannot be read."""
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{option} {name}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{option} {name}: {error}") from None


def writable_file(option: str, name: str) -> Path:
    """Return the file of an option; CommandError if it cannot be written."""
    path = Path(name).expanduser()
    is_file_in_folder = path.parent.is_dir() and not path.is_dir()
    if not is_file_in_folder or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(f"{option} {name} cannot be written; choose a file in a writable folder")
    return path
