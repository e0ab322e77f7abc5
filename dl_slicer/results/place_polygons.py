"""GeoJSON (RFC 7946) of places on the ground and the cities they resemble."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rasterio.crs import CRS

from dl_slicer import cities
from dl_slicer.files import atomic
from dl_slicer.patch_sets import ground
from dl_slicer.results.familiar_places import Places
from dl_slicer.results.geotiffs import Cells

NAMED = 5  # cities named for each place
DIGITS = 7  # of degrees: a centimetre

Point = tuple[float, float]  # longitude, latitude in degrees


def write_places(path: Path, cells: Cells, places: Places, classes: Sequence[str]) -> None:
    """Write a polygon for each place with data: its most similar cities and their shares.

    And how familiar it is, where that is known.
    """
    by_place = places.shares
    corners = _corners(cells)
    codes = cities.labels(classes)
    with atomic(path, "w", encoding="utf-8", sync=False) as file:
        file.write('{"type": "FeatureCollection", "features": [')
        comma = "\n"
        for row, col in np.argwhere(~np.isnan(by_place[..., 0])).tolist():
            # Counter-clockwise where north is up.
            around = ((row, col), (row + 1, col), (row + 1, col + 1), (row, col + 1))
            ring = [(float(corners[at][0]), float(corners[at][1])) for at in around]
            if not np.isfinite(ring).all():
                continue
            feature = {
                "type": "Feature",
                "geometry": geometry(ring),
                "properties": {"row": row, "col": col}
                | _similar(by_place[row, col], classes, codes)
                | _familiar(places, row, col),
            }
            file.write(comma + json.dumps(feature, ensure_ascii=False))
            comma = ",\n"
        file.write("\n]}\n")


def _corners(cells: Cells) -> np.ndarray:
    """Longitudes and latitudes (rows + 1, cols + 1, 2) of the corners of all cells."""
    cols, rows = np.meshgrid(np.arange(cells.width + 1), np.arange(cells.height + 1))
    xs, ys = ground.apply(cells.transform, cols.ravel(), rows.ravel())
    places = ground.convert(CRS.from_user_input(cells.crs), ground.DEGREES, xs, ys)
    return np.stack(places, axis=-1).reshape(*cols.shape, 2)


def _similar(shares: np.ndarray, classes: Sequence[str], codes: Sequence[str]) -> dict:
    """Properties of a place: a GIS shows each in a column of its own."""
    properties = {}
    best_first = np.argsort(-shares, kind="stable")[:NAMED].tolist()
    for rank, city in enumerate(best_first, 1):
        properties[f"city_{rank}"] = classes[city]
        properties[f"code_{rank}"] = codes[city]
        properties[f"share_{rank}"] = round(float(shares[city]), 6)
    red, green, blue = cities.colour(best_first[0])
    return properties | {"fill": f"#{red:02x}{green:02x}{blue:02x}"}


def _familiar(places: Places, row: int, col: int) -> dict:
    """Properties of a place that say how familiar it is; none where that is not known."""
    if places.familiarity is None or np.isnan(places.familiarity[row, col]):
        return {}
    return {
        "familiarity": round(float(places.familiarity[row, col]), 6),
        "unlike": bool(places.unlike[row, col]),
    }


def geometry(ring: Sequence[Point]) -> dict:
    """Give the geometry of a ring of corners, cut where it crosses 180 degrees."""
    longitudes = np.array([point[0] for point in ring])
    if np.ptp(longitudes) <= 180:
        return {"type": "Polygon", "coordinates": [_closed(ring)]}
    east = [(x + 360 if x < 0 else x, y) for x, y in ring]
    west = [(x - 360, y) for x, y in east]
    parts = [list(_clip(east, 180, below=True)), list(_clip(west, -180, below=False))]
    polygons = [[_closed(part)] for part in parts if len(part) > 2]
    return {"type": "MultiPolygon", "coordinates": polygons}


def _clip(ring: Sequence[Point], meridian: float, below: bool) -> Iterator[Point]:
    """What of a ring lies on one side of a meridian."""
    for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if x == meridian or (x < meridian) == below:
            yield x, y
        if (x < meridian) != (next_x < meridian) and meridian not in (x, next_x):
            yield meridian, y + (next_y - y) * (meridian - x) / (next_x - x)


def _closed(ring: Sequence[Point]) -> list[list[float]]:
    """The corners as GeoJSON has them: counter-clockwise, the first once more at the end."""
    area = sum(
        x * next_y - next_x * y
        for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True)
    )
    ordered = list(ring) if area > 0 else list(ring)[::-1]
    rounded = [[round(x, DIGITS), round(y, DIGITS)] for x, y in ordered]
    return [*rounded, rounded[0]]
