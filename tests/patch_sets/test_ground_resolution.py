"""One piece of ground, published in five ways, is seen alike with --ground-resolution."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from conftest import picture
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import Resampling, calculate_default_transform, reproject, transform

METRES = 0.417  # a pixel of the first way
SHIFT = 7  # pixels of a stored patch: 5 m
UTM = CRS.from_epsg(32611)
WAYS = {
    "coarser pixels": UTM,
    "Web Mercator": CRS.from_epsg(3857),
    "degrees": CRS.from_epsg(4326),
    "feet of a state plane": CRS.from_epsg(2229),
}


class Raster(NamedTuple):
    """A raster in memory."""

    pixels: np.ndarray  # uint8 (3, H, W)
    has_data: np.ndarray  # uint8 (H, W), 255 where there is data
    crs: CRS
    transform: rasterio.Affine


def place(width, height, longitude, number):
    """A raster of its own ground, in the system of the views."""
    # Smooth over some pixels, as photographs are: what is compared is where things lie.
    pixels = np.asarray(picture(width, height, seed=number)).transpose(2, 0, 1)
    (x,), (y,) = transform("EPSG:4326", UTM, [longitude], [33.9 + 0.05 * number])
    corner = from_origin(x + 0.123, y + 0.289, METRES, METRES)
    return Raster(pixels, np.full((height, width), 255, np.uint8), UTM, corner)


def coarser(raster, metres=0.6):
    height, width = raster.has_data.shape
    size = (int(width * METRES / metres), int(height * METRES / metres))
    box = (0, 0, size[0] * metres / METRES, size[1] * metres / METRES)
    image = Image.fromarray(raster.pixels.transpose(1, 2, 0)).resize(size, Image.LANCZOS, box)
    corner = from_origin(raster.transform.c, raster.transform.f, metres, metres)
    pixels = np.asarray(image).transpose(2, 0, 1)
    return Raster(pixels, np.full(pixels.shape[1:], 255, np.uint8), UTM, corner)


def warped(raster, crs):
    height, width = raster.has_data.shape
    bounds = rasterio.transform.array_bounds(height, width, raster.transform)
    corner, width, height = calculate_default_transform(raster.crs, crs, width, height, *bounds)
    place = {"src_transform": raster.transform, "src_crs": raster.crs}
    place |= {"dst_transform": corner, "dst_crs": crs}
    pixels = np.zeros((3, height, width), np.uint8)
    has_data = np.zeros((height, width), np.uint8)
    reproject(raster.pixels, pixels, resampling=Resampling.cubic, **place)
    reproject(raster.has_data, has_data, resampling=Resampling.nearest, **place)
    return Raster(pixels, has_data, crs, corner)


def write(path, raster):
    path.parent.mkdir(parents=True)
    height, width = raster.has_data.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "width": width, "height": height}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", crs=raster.crs, transform=raster.transform, **profile) as file,
    ):
        file.write(raster.pixels)
        if not raster.has_data.all():
            file.write_mask(raster.has_data)


@pytest.fixture(scope="module", params=[-119.9, -117.0], ids=["rim of the zone", "its middle"])
def raws(request, tmp_path_factory):
    """{way: folder of rasters} of two cities of two sites each."""
    root = tmp_path_factory.mktemp("ways")
    for number in range(4):
        first = place(330, 290, request.param, number)
        name = Path(f"City {number // 2} (C{number // 2})", f"site{number % 2}", "2020.tif")
        write(root / "first" / name, first)
        for way, crs in WAYS.items():
            write(root / way / name, coarser(first) if crs == UTM else warped(first, crs))
    return root


class Patch(NamedTuple):
    """A patch of a set, and where it lies."""

    x: float  # of its centre, in metres of the view's system
    y: float
    pixels: np.ndarray


def patches(folder):
    """{(region, system): patches} of a set."""
    description = json.loads((folder / "dataset.json").read_text())
    size, stride, image_size = (description[k] for k in ("patch_size", "stride", "image_size"))
    step = stride * image_size // size
    found = {}
    with open(folder / "regions.csv", newline="") as rows:
        for row in csv.DictReader(rows):
            array = np.load(folder / row["file"])
            gone = numbers(row["without_data"])
            for number in range(int(row["rows"]) * int(row["cols"])):
                i, j = divmod(number, int(row["cols"]))
                if number in gone:
                    continue
                x = float(row["left"]) + METRES * (int(row["x"]) + j * stride + size / 2)
                y = float(row["top"]) - METRES * (int(row["y"]) + i * stride + size / 2)
                pixels = array[i * step : i * step + image_size, j * step : j * step + image_size]
                key = (row["region"], row["crs"])
                found.setdefault(key, []).append(Patch(x, y, pixels.astype(np.int16)))
    return found


def distance(patch, other):
    return np.hypot(other.x - patch.x, other.y - patch.y)


def nearest(patch, others):
    return min(others, key=partial(distance, patch), default=None)


def numbers(ranges):
    """0-2 5 as {0, 1, 2, 5}."""
    found = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def test_five_ways_to_publish_one_place_give_the_same_patches(raws, preprocess, tmp_path):
    def made(way):
        out = preprocess("--ground-resolution", METRES, raw=raws / way, out=tmp_path / way)
        return patches(out)

    first = made("first")
    count = sum(map(len, first.values()))
    for way in WAYS:
        other = made(way)
        assert sum(map(len, other.values())) >= 0.85 * count, way
        differences = []
        shifted = []
        for key, of_region in first.items():
            for patch in of_region:
                partner = nearest(patch, other.get(key, []))
                if partner is not None and distance(patch, partner) <= 1:
                    differences.append(np.abs(partner.pixels - patch.pixels).mean())
                    shifted.append(
                        np.abs(patch.pixels[:, SHIFT:] - patch.pixels[:, :-SHIFT]).mean()
                    )
        assert len(differences) >= 0.8 * count, way
        assert np.mean(differences) <= 6, way
        assert np.mean(shifted) > 3 * np.mean(differences), way
