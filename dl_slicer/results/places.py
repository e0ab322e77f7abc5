"""Which city is this like? Pictures or rasters of any place, cut into patches as the training data were: the cities that they resemble.

Used by test_classification.py --images.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dl_slicer.cities import city_code
from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import devices
from dl_slicer.patch_sets import image_files, transforms
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.results import raster_figures
from relevance_cam import rasters

MOST = 5  # cities named for a file
COLUMNS = (
    "file",
    "patches",
    "rank",
    "city",
    "code",
    "mean_probability",
    "share_of_patches",
    "figure",
)
ALL = "all files"


def find_files(paths, patch_size):
    """[(file, width, height)] of files and of the images below folders. InputError, a line a fault, if one cannot be used: from
    the header alone, so that it comes before hours of work."""
    files, faults = [], []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in image_files.SUFFIXES
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not found:
                faults.append(
                    f"--images {printable(path)}: no images in this folder ({', '.join(sorted(image_files.SUFFIXES))})"
                )
        elif not path.exists():
            faults.append(f"--images {printable(path)}: no such file")
            found = []
        for file in found:
            try:
                with image_files.open_image(file) as image:
                    width, height = image.size
            except UnreadableImage as error:
                faults.append(f"--images {printable(file)}: {error}")
                continue
            if min(width, height) < patch_size:
                faults.append(
                    f"--images {printable(file)}: {width} x {height} pixels, smaller than a patch of {patch_size} x {patch_size} pixels; "
                    "take a larger picture of the same ground resolution"
                )
            files.append((file, width, height))
    if faults:
        raise InputError("\n".join(faults))
    return list(dict.fromkeys(files))


def compare(paths, model, checkpoint, classes, device, dtype, out):
    """Print, and write to <out>/places.csv and a picture for each raster of several patches, which cities the files resemble.

    InputError at the end, when all else is written, if the pixels of a file could not be read.
    """
    # What a file of other people's does not say is as published.
    image_size, patch_size, stride = (
        checkpoint.image_size,
        checkpoint.patch_size or 480,
        checkpoint.stride or 240,
    )
    step = max(1, round(stride * image_size / patch_size))
    files = find_files(paths, patch_size)
    out.mkdir(parents=True, exist_ok=True)
    codes, rows, faults, names = [city_code(city) for city in classes], [], [], set()
    sums, votes, count = np.zeros(len(classes)), np.zeros(len(classes), int), 0
    print(
        f"{'file':<40}{'patches':>8}   most similar cities: mean probability of its patches (share of patches that it is the likeliest for)"
    )
    with tqdm(
        total=sum(width * height for _, width, height in files) / 1e6,
        desc="comparing",
        unit=" megapixels",
        disable=None,
        leave=False,
    ) as bar:
        for file, width, height in files:
            try:
                raster = image_files.read_image(file)
            except UnreadableImage as error:
                faults.append(f"--images {printable(file)}: {error}")
                continue
            # Resized as a whole and then cut, as preprocessing.py does.
            pixels = np.asarray(
                image_files.resize(
                    raster,
                    [max(image_size, round(n * image_size / patch_size)) for n in raster.size],
                )
            )
            corners, probabilities = classify(model, pixels, checkpoint, step, device, dtype)
            best = probabilities.argmax(1)
            figure = ""
            if len(corners) > 1:
                figure = next(
                    name
                    for name in (
                        f"{file.stem}{number}.jpg"
                        for number in ("", *(f"_{k}" for k in range(2, len(files) + 2)))
                    )
                    if name not in names
                )
                names.add(figure)
                with atomic(out / figure, sync=False) as opened:
                    raster_figures.draw_places(
                        raster,
                        by_place(corners, probabilities, pixels.shape, image_size, step),
                        codes,
                        printable(Path(*file.parts[-3:])),
                    ).save(opened, "JPEG", quality=88)
            found = ranked(
                probabilities.mean(0), np.bincount(best, minlength=len(classes)) / len(best)
            )
            print_line(str(file), len(best), found, codes, bar)
            rows += as_rows(file, len(best), found, classes, codes, figure)
            sums, votes, count = (
                sums + probabilities.sum(0),
                votes + np.bincount(best, minlength=len(classes)),
                count + len(best),
            )
            bar.update(width * height / 1e6)
    if count:
        found = ranked(sums / count, votes / count)
        if len(files) > 1:
            print_line(ALL, count, found, codes)
        rows += as_rows(ALL, count, found, classes, codes, "")
        write_rows(out / "places.csv", COLUMNS, rows)
        print(
            f"each patch of {patch_size} x {patch_size} pixels counts alike, so a large raster counts more; a share is no proof: "
            f"the network knows only these {len(classes)} cities\nresults: {out}/places.csv"
            + (", a picture for each raster" if names else "")
        )
    if faults:
        raise InputError("\n".join(faults))


def classify(model, pixels, checkpoint, step, device, dtype):
    """Upper left corners (n, 2) as (y, x) of the windows that cover pixels (uint8 (H, W, 3) at the network's scale), and probabilities (n, K)."""
    size, batch_size = checkpoint.image_size, 512 if device.type == "cuda" else 64
    corners = np.array(
        [
            (y, x)
            for y in rasters.window_starts(pixels.shape[0], size, step)
            for x in rasters.window_starts(pixels.shape[1], size, step)
        ]
    )
    found = []
    with torch.inference_mode(), devices.autocast(device, dtype):
        for i in range(0, len(corners), batch_size):
            batch = torch.from_numpy(
                np.stack(
                    [pixels[y : y + size, x : x + size] for y, x in corners[i : i + batch_size]]
                )
            )
            logits = model(transforms.normalise(batch.to(device), checkpoint.mean, checkpoint.std))
            found.append(logits.float().softmax(1).double().cpu())
    return corners, torch.cat(found).numpy()


def by_place(corners, probabilities, shape, size, step):
    """Mean probabilities (rows, cols, K) of the patches over each place, on a grid a step wide."""
    sums = np.zeros((-(-shape[0] // step), -(-shape[1] // step), probabilities.shape[1]))
    counts = np.zeros(sums.shape[:2])
    for (y, x), probability in zip(corners, probabilities):
        cell = (slice(y // step, -(-(y + size) // step)), slice(x // step, -(-(x + size) // step)))
        sums[cell] += probability
        counts[cell] += 1
    return sums / counts[..., None]


def ranked(probability, share):
    """[(class, mean probability, share of patches)] of the most similar cities, by falling mean probability."""
    return [
        (city, float(probability[city]), float(share[city]))
        for city in np.argsort(-probability, kind="stable")[:MOST].tolist()
    ]


def print_line(name, count, found, codes, bar=None):
    text = "  ".join(
        f"{printable(codes[city])} {100 * probability:.1f} % ({100 * share:.0f} %)"
        for city, probability, share in found
    )
    name = printable(name)
    name = (
        name if len(name) < 40 else f"...{name[-36:]}"
    )  # rasters of different sites often have the same name: their folder tells them apart
    (bar.write if bar is not None else print)(f"{name:<40}{count:>8}   {text}")


def as_rows(file, count, found, classes, codes, figure):
    return [
        (
            file,
            count,
            rank,
            classes[city],
            codes[city],
            f"{probability:.6f}",
            f"{share:.6f}",
            figure,
        )
        for rank, (city, probability, share) in enumerate(found, 1)
    ]
