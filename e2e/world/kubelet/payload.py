"""Files of ConfigMap, Secret, projected and downward volumes, swapped all at once."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DATA = "..data"
DEFAULT_MODE = 0o644


@dataclass(frozen=True, slots=True)
class VolumeFile:
    content: bytes
    mode: int = DEFAULT_MODE


def write(folder: Path, files: Mapping[str, VolumeFile]) -> None:
    """Make the folder hold exactly these files.

    As kubelets do it: the files stand in a fresh folder, and one link is moved over to it, so that
    a reader sees the old set or the new one. Programs that watch for changes rely on that.
    """
    if _read(folder) == {name: file.content for name, file in files.items()}:
        return
    old = (folder / DATA).resolve() if (folder / DATA).is_symlink() else None
    fresh = folder / f"..{0 if old is None else int(old.name[2:]) + 1}"
    for name, file in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    fresh.mkdir(parents=True, exist_ok=True)
    _link(folder / DATA, fresh.name)
    _link_files(folder, {name.split("/")[0] for name in files})
    if old is not None:
        shutil.rmtree(old)


def _read(folder: Path) -> dict[str, bytes] | None:
    data = folder / DATA
    if not data.is_symlink():
        return None
    paths = (path for path in data.rglob("*") if path.is_file())
    return {str(path.relative_to(data)): path.read_bytes() for path in paths}


def _link(link: Path, target: str) -> None:
    partial = link.with_name("..partial")
    partial.symlink_to(target)
    partial.rename(link)


def _link_files(folder: Path, names: set[str]) -> None:
    present = {path.name for path in folder.iterdir() if not path.name.startswith("..")}
    for name in present - names:
        (folder / name).unlink()
    for name in names - present:
        (folder / name).symlink_to(f"{DATA}/{name}")
