"""<name>.explorer/: the layers of a whole raster, of which the explorer's page is made.

Both --images and --raster write it, and the second keeps what the first has added: shares come
from either, maps of saliency from --raster alone.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.results import raster_figures
from dl_slicer.results.familiar_places import Places
from dl_slicer.results.raster_windows import SeenRaster
from dl_slicer.results.result_folder import Call, listed_files, taken_names

FOLDER = ".explorer"
PAGE = ".html"
JSON = "explorer.json"
LONGEST_MAP = 1600  # pixels of the longer side of a map of saliency
QUALITY = 85  # of the raster's JPEG
SAME = ("raster", "width", "height", "patch_size", "classes")  # what layers must share


class Saliency(NamedTuple):
    """What one method says of a raster."""

    target: str  # city
    maps: Mapping[str, np.ndarray]  # {layer: (h, w)}, at most LONGEST_MAP long, NaN without data


def pick_name(file: Path, endings: Sequence[str], call: Call, used: set[str]) -> str:
    """Pick the name that the files of a raster begin with.

    It is the raster's, with the names of its folders before it, as many as are needed, where that
    is taken, as rasters of two sites often have one name. endings: of the files that will be made
    besides the explorer's; used: names of other rasters of this call. InputError if all are taken.
    """
    taken = taken_names(call)
    listed = listed_files(call.out)
    parts = file.resolve().parts
    for depth in range(1, len(parts)):
        name = "_".join([*parts[-depth:-1], file.stem])
        is_taken = name in used or any(f"{name}{ending}" in taken for ending in endings)
        if not is_taken and _may_explore(call.out, name, file, taken, listed):
            return name
    raise InputError(
        f"{printable(file)}: figures of this name are there already; choose another --out"
    )


def _may_explore(out: Path, name: str, file: Path, taken: set[str], listed: set[str]) -> bool:
    """Whether an explorer of this name would be this raster's, and in nobody's way."""
    found = read(out, name)
    if found is not None:
        return found.get("raster") == str(file.resolve())
    is_ours = any(path.startswith(f"{name}{FOLDER}/") for path in listed)
    if (out / f"{name}{FOLDER}").exists() and not is_ours:
        return False
    return f"{name}{PAGE}" not in taken


def read(out: Path, name: str) -> dict | None:
    """Give what the explorer.json of a name says, None where there is none of ours."""
    try:
        content = json.loads((out / f"{name}{FOLDER}" / JSON).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write(
    folder: Path,
    file: Path,
    seen: SeenRaster,
    by_place: Places,
    classes: Sequence[str],
    saliency: Mapping[str, Saliency] | None = None,
    before: Path | None = None,
) -> None:
    """Write the layers of a raster into a folder named <name>.explorer.

    file: where it was read; saliency: {method: ...}; before: a folder of layers of which those of
    saliency are kept, if they are of the same raster seen in the same way.
    """
    rows, cols = by_place.shares.shape[:2]
    has_data = ~np.isnan(by_place.shares[..., 0])
    content = {
        "name": folder.name.removesuffix(FOLDER),
        "title": printable(Path(*file.parts[-3:])),
        "raster": str(file.resolve()),
        "width": seen.width,
        "height": seen.height,
        "metres_a_pixel": seen.raster.metres_a_pixel,
        "patch_size": seen.windows.patch_size,
        "cell": seen.cell,
        "rows": rows,
        "cols": cols,
        "classes": list(classes),
        "labels": cities.labels(classes),
        "colours": ["#{:02x}{:02x}{:02x}".format(*cities.colour(k)) for k in range(len(classes))],
        "picture": "raster.jpg",
        "shares": "shares.u8",
        "no_data": np.flatnonzero(~has_data).tolist(),
        "unlike": np.flatnonzero(by_place.unlike & has_data).tolist(),
        "saliency": {},
    }
    folder.mkdir(parents=True)
    with atomic(folder / "raster.jpg", sync=False) as opened:
        seen.picture.save(opened, "JPEG", quality=QUALITY)
    shares = np.rint(255 * np.nan_to_num(by_place.shares)).astype(np.uint8)
    with atomic(folder / "shares.u8", sync=False) as opened:
        opened.write(shares.tobytes())
    for method, explained in (saliency or {}).items():
        content["saliency"][method] = _write_maps(folder, method, explained)
    if before is not None:
        content["saliency"] |= _keep_maps(before, folder, content)
    with atomic(folder / JSON, "w", encoding="utf-8") as opened:
        json.dump(content, opened, ensure_ascii=False)


def _write_maps(folder: Path, method: str, explained: Saliency) -> dict:
    names = {}
    for layer, values in explained.maps.items():
        names[layer] = f"{method}.{layer}.png"
        grey = np.rint(255 * np.nan_to_num(raster_figures.scaled(values))).astype(np.uint8)
        with atomic(folder / names[layer], sync=False) as opened:
            Image.fromarray(grey).save(opened, "PNG")
    return {"target": explained.target, "layers": names}


def _keep_maps(before: Path, folder: Path, content: dict) -> dict:
    """Copy the maps that lie in a folder, and give what explorer.json says of them."""
    found = read(before.parent, before.name.removesuffix(FOLDER))
    if found is None or any(found.get(key) != content[key] for key in SAME):
        return {}
    kept = {}
    for method, explained in found.get("saliency", {}).items():
        files = [before / name for name in explained["layers"].values()]
        if all(file.parent == before and file.is_file() for file in files):
            for file in files:
                shutil.copyfile(file, folder / file.name)
            kept[method] = explained
    return kept
