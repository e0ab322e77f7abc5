"""Metres on the ground: how large a pixel is, and which metric grid suits a place."""

import math
import re
from contextlib import suppress

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from dl_slicer.patch_sets import gdal
from dl_slicer.patch_sets.image_files import UnreadableImage

# The WGS 84 ellipsoid.
SEMI_MAJOR = 6_378_137.0
ECCENTRICITY_SQUARED = 0.00669437999014
NAME = re.compile(r"(EPSG|ESRI|OGC|IGNF|IAU_\d+):\w+", re.IGNORECASE)
WKT = re.compile(r"\s*[A-Z_]+\s*[\[(]")
FILES = re.compile(r"grids=(?!@null)|PROJ4_GRIDS|PARAMETERFILE", re.IGNORECASE)

NOWHERE = "lies where its coordinate system is not defined; correct its georeference, or replace it"
DEGREES = CRS.from_epsg(4326)


def apply(transform: Affine, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an affine transform takes points."""
    a, b, c, d, e, f = transform[:6]
    return a * xs + b * ys + c, d * xs + e * ys + f


def windowed(transform: Affine, x: float, y: float, factor: float = 1) -> Affine:
    """The transform of a window that begins at a pixel, its pixels `factor` times as large."""
    a, b, c, d, e, f = transform[:6]
    return Affine(
        a * factor, b * factor, a * x + b * y + c, d * factor, e * factor, d * x + e * y + f
    )


def convert(
    system: CRS, other: CRS, xs: np.ndarray, ys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in another system; infinite where there are none."""
    if system == other:
        return xs, ys
    try:
        with gdal.session():
            xs, ys = transform_points(system, other, xs, ys)
    except UnreadableImage:
        raise UnreadableImage(NOWHERE) from None
    return np.asarray(xs), np.asarray(ys)


def usable_system(*candidates: CRS | str | None) -> CRS | None:
    """The first of some systems that places on the ground have, None if there is none."""
    for candidate in candidates:
        with suppress(UnreadableImage), gdal.session():
            system = _system(candidate) if isinstance(candidate, str) else candidate
            if (
                system
                and (system.is_geographic or system.is_projected)
                and not _names_files(system)
            ):
                return system
    return None


def _system(text: str) -> CRS | None:
    """A system by its name or as WKT. Other forms are not read: they may name files and URLs."""
    if NAME.fullmatch(text.strip()):
        return CRS.from_string(text.strip())
    if WKT.match(text) and not FILES.search(text):
        return CRS.from_wkt(text, morph_from_esri_dialect=True)
    return None


def _names_files(system: CRS) -> bool:
    """Whether a system is defined by grids in files."""
    texts = (system.to_wkt(), system.to_wkt(version="WKT2_2019"))
    return any(FILES.search(text) for text in texts)


def metres_a_pixel(crs: CRS, transform: Affine, width: int, height: int) -> float | None:
    """The side of a square that is as large on the ellipsoid as the pixel at a raster's centre.

    None where the centre has no longitude and latitude.
    """
    x, y = width / 2, height / 2
    corners = apply(transform, np.array([x, x + 1, x]), np.array([y, y, y + 1]))
    try:
        longitudes, latitudes = convert(crs, DEGREES, *corners)
    except UnreadableImage:
        return None
    if not np.isfinite([longitudes, latitudes]).all():
        return None
    here, right, below = _on_the_ellipsoid(longitudes, latitudes)
    area = np.linalg.norm(np.cross(right - here, below - here))
    return float(math.sqrt(area)) or None


def _on_the_ellipsoid(longitudes: np.ndarray, latitudes: np.ndarray) -> np.ndarray:
    """Points (n, 3) in metres from the centre of the earth."""
    across, up = np.radians(longitudes), np.radians(latitudes)
    radius = SEMI_MAJOR / np.sqrt(1 - ECCENTRICITY_SQUARED * np.sin(up) ** 2)
    return np.stack(
        [
            radius * np.cos(up) * np.cos(across),
            radius * np.cos(up) * np.sin(across),
            radius * (1 - ECCENTRICITY_SQUARED) * np.sin(up),
        ],
        axis=1,
    )


def metric_system(longitude: float, latitude: float) -> CRS:
    """WGS 84 / UTM of a place; beyond 84 degrees north and 80 south the polar UPS."""
    if latitude > 84:
        return CRS.from_epsg(5041)
    if latitude < -80:
        return CRS.from_epsg(5042)
    zone = int((longitude + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)
