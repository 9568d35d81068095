"""The file with an installation's entries for the catalog of GPUs and models."""

import logging
from pathlib import Path

from tessera.domain.hardware.catalog_entries import extended_catalog
from tessera.domain.hardware.gpu_catalog import Catalog, catalog, shipped

log = logging.getLogger("tessera")


def read_catalog(path: Path) -> tuple[Catalog, tuple[str, ...]]:
    """Return the catalog with the entries of a file, and a sentence for each that is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return shipped(), (f"{path} cannot be read, so the shipped catalog is used: {error}",)
    return extended_catalog(text)


def install_catalog(path: Path | None) -> None:
    """Let this process know the entries of a file; log what is left out of them."""
    if path is None:
        return
    extended, faults = read_catalog(path)
    for fault in faults:
        log.error("%s", fault)
    catalog.set(extended)
