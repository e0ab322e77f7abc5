"""Files beside a raster that say where it lies: world files, .aux.xml and .prj.

GDAL's own reading of them is switched off, since it opens more than these and follows links.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sidecars:
    """What the files beside a raster say; None where they say nothing. crs: WKT or a name."""

    transform: tuple[float, float, float, float, float, float] | None = None  # a b c d e f
    crs: str | None = None


def read(path: str | Path, root: str | Path | None) -> Sidecars | None:
    """What the files beside a raster say of its place, None if there are none that may be read."""
    return None
