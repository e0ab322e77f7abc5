"""Draw what in a patch, or in a whole raster, makes it that city.

    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --data data/patches --split test_b --per-city 10
    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --methods relevance-cam grad-cam grad-cam++ score-cam
    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --raster picture.jpg --target "Almaty (ALA)"

Writes, by default into checkpoints/<run>/saliency/: a figure for each patch, a contact sheet for each city, patches.csv.
"""

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dl_slicer import cities
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import atomic, write_rows
from dl_slicer.model import checkpoints, devices
from dl_slicer.patch_sets import on_disk, reading
from dl_slicer.results import saliency

from . import GradCAM, GradCAMPlusPlus, RelevanceCAM, ScoreCAM
from .resnet import LAYERS, check_layers, check_model

METHODS = {
    "relevance-cam": RelevanceCAM,
    "grad-cam": GradCAM,
    "grad-cam++": GradCAMPlusPlus,
    "score-cam": partial(ScoreCAM, progress=sys.stderr.isatty()),
}


def arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best.pth or last.pth of a run")
    parser.add_argument(
        "--data", default="data/patches", help="patch set, or a folder in the published layout"
    )
    parser.add_argument("--split", default="test_b", choices=on_disk.SPLITS)
    parser.add_argument(
        "--raw", default=None, help="folder of the rasters, if it has moved since preprocessing"
    )
    parser.add_argument(
        "--per-city", type=number(least=1), default=10, help="patches drawn of each city"
    )
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help="depths to explain")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["relevance-cam"],
        choices=METHODS,
        help="score-cam is slow by nature",
    )
    parser.add_argument(
        "--target",
        default=None,
        metavar="CITY",
        help="explain this city (name or code) instead of the predicted one",
    )
    parser.add_argument(
        "--raster", default=None, metavar="FILE", help="explain a whole raster instead of patches"
    )
    parser.add_argument("--seed", type=number(least=0), default=0, help="of the draw of patches")
    parser.add_argument(
        "--quality",
        action="store_true",
        help="also quality.csv: how good the maps are, by method and depth; slow",
    )
    parser.add_argument("--save-maps", action="store_true", help="also maps.npz with the raw maps")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is one, else cpu")
    parser.add_argument(
        "--out",
        default=None,
        help="folder of the figures; default: saliency/ beside the checkpoint",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    device = devices.pick_device(args.device)
    try:
        layers = check_layers(args.layers)
    except ValueError as error:
        raise InputError(f"--layers: {error}") from None
    model, checkpoint = checkpoints.load_checkpoint(args.checkpoint)
    try:
        check_model(model)
    except TypeError as error:
        raise InputError(f"{printable(args.checkpoint)}: {error}") from None
    model = model.to(device, memory_format=torch.channels_last)
    patch_set = None
    if args.raster is None or checkpoint.classes is None:
        patch_set = reading.open_split(args.data, args.split, checkpoint.image_size)
        checkpoint.classes = checkpoints.class_names(
            checkpoint, patch_set, args.data, args.checkpoint
        )
    target = None if args.target is None else cities.find(args.target, checkpoint.classes)
    methods = {name: METHODS[name](model, layers) for name in dict.fromkeys(args.methods)}
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "saliency"
    if args.raster is not None:
        saliency.explain_raster(args, checkpoint, methods, target, device, out)
        return

    started = time.time()
    chosen = saliency.pick_patches(patch_set, args.per_city, args.seed)
    maps, logits = saliency.explain(methods, patch_set, chosen, checkpoint, target, device)
    rows = saliency.draw_figures(out, patch_set, chosen, maps, logits, target, args.raw)
    write_rows(out / "patches.csv", rows[0], (row.values() for row in rows))
    if args.save_maps:
        with atomic(out / "maps.npz") as file:
            arrays = {
                f"{name}/{layer}": values.numpy()
                for name, by_layer in maps.items()
                for layer, values in by_layer.items()
            }
            np.savez_compressed(
                file,
                patch=[row["patch"] for row in rows],
                logits=logits.numpy(),
                classes=patch_set.classes,
                **arrays,
            )
    if args.quality:
        saliency.write_quality(
            out, args.methods, model, patch_set, chosen, checkpoint, target, layers, device
        )
    print(
        f"{len(chosen)} patches of {len(patch_set.classes)} cities, {len(methods)} {'method' if len(methods) == 1 else 'methods'}, "
        f"{', '.join(layers)}: {time.time() - started:.0f} s\nfigures: {out}/<city>/, contact sheets: {out}/<city>.jpg, patches.csv"
        + (", maps.npz" if args.save_maps else "")
        + (", quality.csv" if args.quality else "")
    )


if __name__ == "__main__":
    run(main)
