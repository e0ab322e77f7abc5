"""Where the rasters of a patch set lie, looked at once and remembered from one run to the next."""

import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.patch_sets import footprints, on_disk, rasters
from dl_slicer.patch_sets.footprints import Footprint
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.jobs import Request
from dl_slicer.patch_sets.rasters import Raster

Stamped = tuple[str, list[int]]  # a raster, and bytes and time of its file


class Survey:
    """The footprints of a set's rasters: read once, and then remembered in the patch set."""

    def __init__(self, request: Request):
        self._request = request
        self._view = json.loads(json.dumps(asdict(request.view)))
        self._known: dict[str, dict[str, Any]] = {}
        self._before = _text(request.out)
        self._load()
        self._used: set[str] = set()
        self._footprints: dict[str, Footprint | None] = {}
        self.faults: dict[str, str] = {}  # {raster: why it cannot be read}

    def _load(self) -> None:
        try:
            content = json.loads(self._before)
            if content["view"] == self._view:
                self._known = dict(content["rasters"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self._known = {}  # it is made anew

    @contextmanager
    def opened(self, raster: str) -> Iterator[Raster]:
        """Open a raster with its own pixels, to look closer; InputError if it is damaged."""
        try:
            with self._opened(raster) as opened:
                yield opened
        except UnreadableImage as error:
            raise InputError(f"{printable(self._path(raster))}: {error}") from None

    def _opened(self, raster: str) -> AbstractContextManager[Raster]:
        view = replace(self._request.view, ground_resolution=None)
        return rasters.open_raster(self._path(raster), view, self._request.raw)

    def _path(self, raster: str) -> Path:
        return on_disk.raster_path(self._request.out, self._request.raw, raster)

    def look(self, stamped: Iterable[Stamped]) -> dict[str, Footprint]:
        """{raster: its footprint} of those that have a georeference and can be read."""
        found = {}
        for raster, stamp in tqdm(
            list(stamped), unit=" rasters", desc="ground", disable=None, leave=False, delay=2
        ):
            footprint = self._of(raster, stamp)
            if footprint is not None:
                found[raster] = footprint
        return found

    def _of(self, raster: str, stamp: list[int]) -> Footprint | None:
        self._used.add(raster)
        if raster not in self._footprints and raster not in self.faults:
            try:
                self._footprints[raster] = self._remembered(raster, stamp)
            except UnreadableImage as error:
                self._known.pop(raster, None)
                self.faults[raster] = str(error)
        return self._footprints.get(raster)

    def _remembered(self, raster: str, stamp: list[int]) -> Footprint | None:
        known = self._known.get(raster, {})
        try:
            if known["stamp"] == stamp:
                values = known["footprint"]
                return None if values is None else footprints.from_json(values)
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error):
            pass  # damaged: it is read anew
        self._known[raster] = {"stamp": stamp, "footprint": None}
        footprint = self._read(raster)
        if footprint is not None:
            self._known[raster]["footprint"] = footprints.as_json(footprint)
        return footprint

    def _read(self, raster: str) -> Footprint | None:
        with self._opened(raster) as opened:
            footprint = footprints.read_footprint(opened)
            if self._request.mosaic and footprint is not None:
                self._known[raster]["layout"] = [opened.layout(), opened.block()]
            if opened.transform is not None and opened.crs is None:
                self.faults[raster] = (
                    "has a georeference, but names no coordinate system that is known; name it"
                    " with --crs EPSG:N"
                )
        view = self._request.view
        if footprint is None or view.ground_resolution is None:
            return footprint
        with rasters.open_raster(self._path(raster), view, self._request.raw) as opened:
            seen = footprints.grid_of(opened)
        grain = max(footprint.metres_a_pixel, view.ground_resolution)
        return replace(footprint, seen=seen, grain=grain)

    def layout(self, raster: str) -> tuple[dict[str, Any] | None, list[int]]:
        """What tiles must have in common to be joined, and the size of the blocks of their file.

        See WindowedRaster; remembered. raster: one that was looked at and has a footprint.
        """
        known = self._known[raster]
        if "layout" not in known:
            with self._opened(raster) as opened:
                known["layout"] = [opened.layout(), opened.block()]
        layout, block = known["layout"]
        return layout, block

    def save(self) -> None:
        """Remember what was looked at, where any of it has a georeference."""
        if not any(self._footprints.values()):
            return
        used = {raster: self._known[raster] for raster in self._known if raster in self._used}
        content = {"view": self._view, "rasters": used}
        text = json.dumps(content)
        if text != self._before:
            with atomic(self._request.out / on_disk.FOOTPRINTS, "w", encoding="utf-8") as file:
                file.write(text)


def _text(out: Path) -> str:
    try:
        return (out / on_disk.FOOTPRINTS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
