"""Which city is this like?

Pictures or rasters of any place, cut into patches as the training data were: the cities that they
resemble. Used by test_classification.py --images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.files import write_rows
from dl_slicer.model import devices, evaluation
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets import image_files, transforms
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.results import panels, raster_figures
from dl_slicer.results.raster_windows import Windows
from dl_slicer.results.result_folder import Call, new_results, taken_names
from relevance_cam import rasters

NAMED = 5  # cities named for a file
ALL = "all files"
HEADLINE = (
    f"{'file':<40}{'patches':>8}   most similar cities: mean probability of its patches"
    " (share of patches that it is the likeliest for)"
)


class ImageFile(NamedTuple):
    """An image and its size in pixels."""

    path: Path
    width: int
    height: int


def find_files(paths: Sequence[str | Path], patch_size: int) -> list[ImageFile]:
    """Files and the images below folders, each once.

    InputError, a line a fault, if one cannot be used: from the header alone, so that it comes
    before hours of work.
    """
    files = []
    faults = []
    for path in map(Path, paths):
        try:
            listed = _list_images(path)
        except InputError as error:
            faults.append(str(error))
            continue
        for file in listed:
            try:
                files.append(_check_image(file, patch_size))
            except InputError as error:
                faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return list(dict.fromkeys(files))


def _list_images(path: Path) -> list[Path]:
    """Give the file, or the images below the folder but for hidden ones, in sorted order."""
    if not path.exists():
        raise InputError(f"--images {printable(path)}: no such file")
    if not path.is_dir():
        return [path]
    found = [file for file in path.rglob("*") if _is_visible_image(file, path)]
    if not found:
        suffixes = ", ".join(sorted(image_files.SUFFIXES))
        raise InputError(f"--images {printable(path)}: no images in this folder ({suffixes})")
    return sorted(found)


def _is_visible_image(file: Path, folder: Path) -> bool:
    if file.suffix.lower() not in image_files.SUFFIXES or not file.is_file():
        return False
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _check_image(file: Path, patch_size: int) -> ImageFile:
    try:
        with image_files.open_image(file) as image:
            width, height = image.size
    except UnreadableImage as error:
        raise InputError(f"--images {printable(file)}: {error}") from None
    if min(width, height) < patch_size:
        raise InputError(
            f"--images {printable(file)}: {width} x {height} pixels, smaller than a patch of"
            f" {patch_size} x {patch_size} pixels;"
            " take a larger picture of the same ground resolution"
        )
    return ImageFile(file, width, height)


@dataclass
class Resemblance:
    """The cities that some patches resemble."""

    patches: int
    probabilities: np.ndarray  # (K,), summed over the patches
    votes: np.ndarray  # (K,), of how many patches the city is the likeliest

    @classmethod
    def of(cls, probabilities: np.ndarray) -> "Resemblance":
        """Give that of patches with these probabilities (n, K)."""
        count, classes = probabilities.shape
        votes = np.bincount(probabilities.argmax(1), minlength=classes)
        return cls(count, probabilities.sum(0), votes)

    def __add__(self, other: "Resemblance") -> "Resemblance":
        return Resemblance(
            self.patches + other.patches,
            self.probabilities + other.probabilities,
            self.votes + other.votes,
        )

    def most_similar(self) -> list[tuple[int, float, float]]:
        """(class, mean probability, share of patches) of the NAMED most probable cities."""
        probability = self.probabilities / self.patches
        share = self.votes / self.patches
        order = np.argsort(-probability, kind="stable")[:NAMED]
        return [(city, float(probability[city]), float(share[city])) for city in order.tolist()]


def as_rows(
    name: str | Path, resemblance: Resemblance, classes: Sequence[str], figure: str
) -> list[dict]:
    """Give the rows of places.csv of one file, a row for each of the most similar cities."""
    codes = cities.labels(classes)
    return [
        {
            "file": name,
            "patches": resemblance.patches,
            "rank": rank,
            "city": classes[city],
            "code": codes[city],
            "mean_probability": f"{probability:.6f}",
            "share_of_patches": f"{share:.6f}",
            "figure": figure,
        }
        for rank, (city, probability, share) in enumerate(resemblance.most_similar(), 1)
    ]


def as_line(name: str | Path, resemblance: Resemblance, classes: Sequence[str]) -> str:
    """Give the line of one file that is printed below HEADLINE."""
    codes = cities.labels(classes)
    similar = "  ".join(
        f"{printable(codes[city])} {100 * probability:.1f} % ({100 * share:.0f} %)"
        for city, probability, share in resemblance.most_similar()
    )
    name = printable(name)
    if len(name) >= 40:
        # The end: rasters of different sites often have the same name, their folders tell them
        # apart.
        name = f"...{name[-36:]}"
    return f"{name:<40}{resemblance.patches:>8}   {similar}"


def closing_words(patch_size: int, cities: int) -> str:
    """Say what the numbers mean, and what they do not."""
    return (
        f"each patch of {patch_size} x {patch_size} pixels counts alike,"
        " so a large raster counts more; a share is no proof:"
        f" the network knows only these {cities} cities"
    )


def compare(
    paths: Sequence[str | Path],
    model: nn.Module,
    checkpoint: Checkpoint,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    call: Call,
) -> None:
    """Print, and write to <out>/places.csv, which cities the files resemble.

    Each raster of several patches gets a figure: <out>/<its name>.jpg.
    InputError at the end, when all else is written, if the pixels of a file could not be read.
    """
    files = find_files(paths, Windows.of(checkpoint).patch_size)
    network = Network(model, checkpoint, device, dtype)
    with new_results(call) as new:
        inputs = {file.path.name for file in files if file.path.parent.samefile(call.out)}
        found = _compare_files(files, network, classes, new, taken_names(call) | inputs)
        if found.total is None:
            raise InputError("\n".join(found.faults))
        rows = found.rows + as_rows(ALL, found.total, classes, figure="")
        write_rows(new / "places.csv", rows[0], (row.values() for row in rows))
    if len(files) > 1:
        print(as_line(ALL, found.total, classes))
    print(closing_words(Windows.of(checkpoint).patch_size, len(classes)))
    figures = any(row["figure"] for row in rows)
    pictures = ", a picture for each raster" if figures else ""
    print(f"results: {call.out}/places.csv{pictures}")
    if found.faults:
        raise InputError("\n".join(found.faults))


@dataclass(frozen=True)
class Network:
    """A network, and how it is fed."""

    model: nn.Module
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype


@dataclass
class Found:
    """What was found in several files."""

    rows: list[dict]  # of places.csv
    faults: list[str]  # a line for each file that could not be read
    total: Resemblance | None = None  # of all patches


def _compare_files(
    files: Sequence[ImageFile],
    network: Network,
    classes: Sequence[str],
    out: Path,
    taken: set[str],
) -> Found:
    """Print what each file resembles, and write the figures of those of several patches."""
    windows = Windows.of(network.checkpoint)
    used = set(taken)
    found = Found([], [])
    print(HEADLINE)
    megapixels = sum(file.width * file.height for file in files) / 1e6
    with tqdm(
        total=megapixels, desc="comparing", unit=" megapixels", disable=None, leave=False
    ) as bar:
        for file in files:
            try:
                raster = image_files.read_image(file.path)
            except UnreadableImage as error:
                found.faults.append(f"--images {printable(file.path)}: {error}")
                continue
            pixels = windows.resize(raster)
            corners, probabilities = classify(
                network.model, pixels, windows, network.checkpoint, network.device, network.dtype
            )
            figure = ""
            if len(corners) > 1:
                figure = _unused_name(file.path.stem, used)
                used.add(figure)
                by_place = rasters.mean_by_place(
                    corners, probabilities, pixels.shape, windows.size, windows.step
                )
                write_figure(out / figure, file.path, raster, by_place, classes)
            resemblance = Resemblance.of(probabilities)
            bar.write(as_line(file.path, resemblance, classes))
            found.rows += as_rows(file.path, resemblance, classes, figure)
            found.total = resemblance if found.total is None else found.total + resemblance
            bar.update(file.width * file.height / 1e6)
    return found


def _unused_name(stem: str, used: set[str]) -> str:
    """Give <stem>.jpg, or <stem>_2.jpg and so on where that name is taken."""
    name = f"{stem}.jpg"
    number = 2
    while name in used:
        name = f"{stem}_{number}.jpg"
        number += 1
    return name


def write_figure(
    path: Path, file: Path, raster: Image.Image, by_place: np.ndarray, classes: Sequence[str]
) -> None:
    """Write the figure of a raster. file: where it was read, by_place: (rows, cols, K)."""
    codes = cities.labels(classes)
    title = printable(Path(*file.parts[-3:]))
    panels.save_jpeg(path, raster_figures.raster_figure(raster, by_place, codes, title))


def classify(
    model: nn.Module,
    pixels: np.ndarray,
    windows: Windows,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Upper left corners (y, x) of the n windows that cover a raster, and probabilities (n, K).

    pixels: uint8 (H, W, 3) at the network's scale; probabilities: float64.
    """
    batch_size = 512 if device.type == "cuda" else 64
    corners = rasters.window_corners(*pixels.shape[:2], windows.size, windows.step)
    probabilities = []
    with torch.inference_mode(), devices.autocast(device, dtype):
        for i in range(0, len(corners), batch_size):
            batch = rasters.cut_windows(pixels, corners[i : i + batch_size], windows.size)
            images = transforms.normalise(batch.to(device), checkpoint.mean, checkpoint.std)
            logits = model(images).float()
            evaluation.check_finite(logits, dtype)
            probabilities.append(devices.to_cpu(logits.softmax(1)).double())
    return corners, torch.cat(probabilities).numpy()
