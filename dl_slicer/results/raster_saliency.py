"""Saliency of whole rasters: maps, figures, files for a GIS.

Used by python -m relevance_cam --raster.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.model import evaluation
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets import transforms
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.results import explorers, map_rows, panels, raster_figures, raster_windows
from dl_slicer.results.familiar_places import Places
from dl_slicer.results.raster_windows import SeenRaster
from dl_slicer.results.result_folder import Call, new_results
from relevance_cam import rasters

BATCH_SIZE = 8  # windows explained at a time
CELL = 4  # pixels of the network that a cell of a GeoTIFF is wide: one of layer1's
KINDS = (("_", ".jpg"), ("_", ".npz"), (".", ".tif"))  # of a method's files, and what comes before

# No bar where stderr is no terminal.
show_progress = partial(tqdm, disable=None, leave=False)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a whole raster."""

    target: int | None  # the class explained; None: the most probable one
    save_maps: bool  # also as .npz
    plain: bool  # maps are drawn as the published figures are


def explain_raster(
    file: Path,
    methods: dict[str, Callable],
    checkpoint: Checkpoint,
    device: torch.device,
    call: Call,
    wanted: Wanted,
) -> None:
    """Write <raster>_<method>.jpg for a whole raster, and its maps (.npz) if asked for.

    And the layers of its explorer; <raster>.<method>.tif if it is known where it lies. Results of
    the same raster are replaced, those of others stay.
    methods: {name: RelevanceCAM(model, layers), ...}. InputError if the file cannot be read or is
    smaller than a patch.
    """
    call = replace(call, command=f"{call.command} --raster {file.resolve()}")
    endings = [f"{mark}{name}{kind}" for name in methods for mark, kind in KINDS]
    try:
        with raster_windows.open_raster(file, checkpoint) as seen:
            _refuse_unplaced(seen, checkpoint)
            for remark in seen.raster.remarks:
                print(f"{printable(file.name)}: {printable(remark)}")
            name = explorers.pick_name(file, endings, call, set())
            main_file = f"{name}_{next(iter(methods))}.jpg"
            with new_results(replace(call, main_file=main_file)) as new:
                task = RasterTask(new, name, file, seen.denser(), checkpoint, device, wanted)
                said = _explain_by_all(task, methods)
    except UnreadableImage as error:
        raise InputError(f"{printable(file)}: {error}") from None
    for line, figure in said:
        print(f"{printable(file.name)}: {line}; {call.out / figure}")


def _refuse_unplaced(seen: SeenRaster, checkpoint: Checkpoint) -> None:
    if checkpoint.ground_resolution is not None and seen.raster.transform is None:
        raise UnreadableImage(
            f"has no georeference, and the checkpoint was trained at {checkpoint.ground_resolution}"
            " m a pixel; give the raster one, or ask test_classification.py --images"
        )


@dataclass(frozen=True)
class RasterTask:
    """A whole raster to be explained."""

    new: Path  # folder of the results
    name: str  # that their names begin with
    file: Path
    seen: SeenRaster
    checkpoint: Checkpoint
    device: torch.device
    wanted: Wanted

    def prepare(self, windows: np.ndarray) -> torch.Tensor:
        """Give windows (n, h, w, 3) as the network's input."""
        images = torch.from_numpy(windows).to(self.device)
        return transforms.normalise(images, self.checkpoint.mean, self.checkpoint.std)


@contextmanager
def _batches(seen: SeenRaster, label: str) -> Iterator[Iterator[rasters.Batch]]:
    """Give the windows, with a bar that says how much of the raster has been read."""
    with show_progress(total=seen.megapixels, desc=label, unit=" megapixels") as bar:
        yield seen.batches(BATCH_SIZE, bar)


def _explain_by_all(task: RasterTask, methods: dict[str, Callable]) -> list[tuple[str, str]]:
    """Write the results of each method. Returns what was found, and the figure, of each."""
    target = task.wanted.target
    if target is None:
        # For a mean over the raster the windows that places are told from will do.
        with _batches(replace(task.seen, density=1), "which city") as batches:
            model = next(iter(methods.values())).model
            target = rasters.most_probable_class(
                lambda images: model(images) / task.checkpoint.divisor, batches, task.prepare
            )
    classes = task.checkpoint.classes
    city = classes[target]
    said = []
    saliency = {}
    for name, method in methods.items():
        figure = f"{task.name}_{name}.jpg"
        maps, by_place = _explain_by(task, name, method, target)
        saliency[name] = explorers.Saliency(city, maps)
        title = f"{printable(task.file.name)}: {name} for {city}"
        codes = cities.labels(classes)
        page = raster_figures.raster_figure(task.seen.picture, by_place, codes, title, maps)
        panels.save_jpeg(task.new / figure, page)
        mean = np.nanmean(by_place[..., target])
        said.append((f"explained as {printable(city)}, mean probability {mean:.3f}", figure))
    folder = task.new / f"{task.name}{explorers.FOLDER}"
    explorers.write(folder, task.file, task.seen, Places(by_place), classes, saliency)
    return said


def _explain_by(
    task: RasterTask, name: str, method: Callable, target: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Write what one method gives but for figures.

    Returns its maps, as large as explorers have them, and mean probabilities (rows, cols, K).
    """
    grid = task.seen.grid
    block = -(-max(grid.height, grid.width) // explorers.LONGEST_MAP)
    sinks = [map_rows.ReducedMaps(method.layers, block, grid.width)]
    probabilities = []
    with ExitStack() as opened:
        if task.seen.is_placed:
            sinks.append(opened.enter_context(_map_cells(task, name, method.layers)))
        if task.wanted.save_maps:
            sinks.append(opened.enter_context(map_rows.map_files(task.new, method.layers, grid)))
        batches = opened.enter_context(_batches(task.seen, "explaining"))
        plain = task.wanted.plain
        tempered = _tempered(method, task.checkpoint.divisor)
        for part in rasters.blend(tempered, batches, grid, task.prepare, target, plain):
            probabilities.append(part.probabilities)
            for sink in sinks:
                sink.add(part.rows)
        probability = np.concatenate(probabilities)
        evaluation.check_finite(torch.from_numpy(probability).float(), torch.float32)
        by_place = task.seen.by_place(probability)
        if task.wanted.save_maps:
            facts = {"probability": by_place.astype(np.float32), "classes": task.checkpoint.classes}
            sinks[-1].save(task.new / f"{task.name}_{name}.npz", facts | {"target": target})
    return sinks[0].maps(), by_place


def _tempered(method: Callable, divisor: float) -> Callable:
    """Give what explains as a method does, and has its logits divided by the temperature."""

    def explain(images: torch.Tensor, target: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        maps, logits = method(images, target)
        return maps, logits / divisor

    return explain


@contextmanager
def _map_cells(task: RasterTask, name: str, layers: Sequence[str]) -> Iterator[map_rows.MapCells]:
    """Give what writes <name>.<method>.tif."""
    # GDAL takes a third of a second, which plain pictures do without.
    from dl_slicer.results import geotiffs

    seen = task.seen
    grid = seen.grid
    cells = geotiffs.Cells(
        grid.height // CELL,
        grid.width // CELL,
        seen.transform(CELL * seen.windows.scale),
        seen.raster.crs,
    )
    path = task.new / f"{task.name}.{name}.tif"
    with geotiffs.create(path, cells, layers, "float32", float("nan")) as dataset:
        yield map_rows.MapCells(dataset, layers, CELL, grid.width)
