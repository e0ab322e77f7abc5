"""Metres on the ground: how large a pixel is, and which metric grid suits a place."""

import math

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

# The WGS 84 ellipsoid.
SEMI_MAJOR = 6_378_137.0
ECCENTRICITY_SQUARED = 0.00669437999014
DEGREES = CRS.from_epsg(4326)


def apply(transform: Affine, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an affine transform takes points."""
    a, b, c, d, e, f = transform[:6]
    return a * xs + b * ys + c, d * xs + e * ys + f


def to_degrees(crs: CRS, xs, ys) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes of points."""
    longitudes, latitudes = transform_points(crs, DEGREES, xs, ys)
    return np.asarray(longitudes), np.asarray(latitudes)


def metres_a_pixel(crs: CRS, transform: Affine, width: int, height: int) -> float | None:
    """The side of a square that is as large on the ellipsoid as the pixel at a raster's centre.

    None where the centre has no longitude and latitude.
    """
    x, y = width / 2, height / 2
    corners = apply(transform, np.array([x, x + 1, x]), np.array([y, y, y + 1]))
    longitudes, latitudes = to_degrees(crs, *corners)
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
