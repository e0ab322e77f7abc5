r"""Draw what in a patch, or in a whole raster, makes it that city.

    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth --data data/patches \
        --split test_b --per-city 10
    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth \
        --methods relevance-cam grad-cam grad-cam++ score-cam
    python -m relevance_cam --checkpoint checkpoints/resnet50/best.pth \
        --raster picture.jpg --target "Almaty (ALA)"

Writes, by default into checkpoints/<run>/saliency/: a figure for each patch, a contact sheet for
each city, patches.csv; and contents.json, which lists them: the next call replaces these alone.
With --raster: a figure, a page to look around in and, if it says where it lies, a GeoTIFF.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dl_slicer import cities, machine
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import write_rows
from dl_slicer.model import flags
from dl_slicer.patch_sets import reading

from .names import LAYERS, METHODS


def read_flags(argv: Sequence[str] | None = None) -> Namespace:
    """Read the command line. InputError if it is wrong."""
    parser = Parser(__doc__)
    model = parser.add_argument_group("model")
    flags.add_checkpoint(model)

    data = parser.add_argument_group("data")
    flags.add_data(data)
    flags.add_split(data)
    data.add_argument("--raw", help="folder of the rasters, if it has moved since preprocessing")
    data.add_argument(
        "--per-city", type=number(least=1), default=10, help="patches drawn of each city"
    )
    data.add_argument("--seed", type=number(least=0), default=0, help="of the draw of patches")
    data.add_argument("--raster", metavar="FILE", help="explain a whole raster instead of patches")

    saliency = parser.add_argument_group("saliency")
    saliency.add_argument(
        "--layers", nargs="+", default=LAYERS, choices=LAYERS, help="depths to explain"
    )
    saliency.add_argument(
        "--methods",
        nargs="+",
        default=["relevance-cam"],
        choices=METHODS,
        help="score-cam is slow by nature",
    )
    saliency.add_argument(
        "--target",
        metavar="CITY",
        help="explain this city (name or code) instead of the predicted one",
    )

    machine = parser.add_argument_group("machine")
    flags.add_device(machine)

    output = parser.add_argument_group("output")
    output.add_argument(
        "--quality",
        action="store_true",
        help="also quality.csv: how good the maps are, by method and depth; slow",
    )
    output.add_argument(
        "--plain-resize",
        action="store_true",
        help="draw maps as the published figures do, up to 15.5 of 224 pixels too low and too far"
        " to the right; default: where they belong",
    )
    output.add_argument("--save-maps", action="store_true", help="also maps.npz with the raw maps")
    output.add_argument(
        "--out", help="folder of the figures; default: saliency/ beside the checkpoint"
    )
    args = parser.parse_args(argv)
    if args.raster is not None and args.quality:
        parser.error("--quality: is measured on patches, not on a --raster")
    return args


def count_methods(count: int) -> str:
    """Give a number of methods in words."""
    return "1 method" if count == 1 else f"{count} methods"


def write_explorers(new: Path) -> None:
    """Write the page of each raster whose layers lie in a folder of new results."""
    from dl_slicer.report import explorer

    for folder in sorted(new.glob("*.explorer")):
        explorer.write_explorer(folder)


def describe_outputs(args: Namespace, out: Path) -> str:
    """Say which files have been written."""
    words = [f"figures: {out}/<city>/", f"contact sheets: {out}/<city>.jpg", "patches.csv"]
    if args.save_maps:
        words.append("maps.npz")
    if args.quality:
        words.append("quality.csv")
    return ", ".join(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Explain patches or a raster, and write the figures and tables."""
    args = read_flags(argv)
    # Not above: torch takes seconds to import, and a wrong flag is to be told at once.
    import torch

    from dl_slicer.model import checkpoints, devices
    from dl_slicer.results import raster_saliency, result_folder, saliency

    from .resnet import check_layers, check_model

    device = devices.pick_device(args.device)
    layers = check_layers(args.layers)
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
        checkpoints.check_sizes(patch_set, checkpoint, args.data, args.checkpoint)
    target = None if args.target is None else cities.find(args.target, checkpoint.classes)
    method_classes = saliency.load_methods(args.methods)
    methods = {name: method(model, layers) for name, method in method_classes.items()}
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "saliency"
    finish = write_explorers if args.raster else None
    call = result_folder.Call(out, "relevance_cam", vars(args), "patches.csv", finish=finish)
    if args.raster is not None:
        machine.return_memory()
        wanted = raster_saliency.Wanted(target, args.save_maps, args.plain_resize)
        raster_saliency.explain_raster(Path(args.raster), methods, checkpoint, device, call, wanted)
        return

    started = time.time()
    chosen = saliency.pick_patches(patch_set, args.per_city, args.seed)
    with result_folder.new_results(call) as new:
        explanations = saliency.explain(methods, patch_set, chosen, checkpoint, target, device)
        rows = saliency.write_figures(new, explanations, args.raw, args.plain_resize)
        write_rows(new / "patches.csv", rows[0], (row.values() for row in rows))
        if args.save_maps:
            saliency.write_maps(new / "maps.npz", explanations)
        if args.quality:
            saliency.write_quality(
                new / "quality.csv", model, method_classes, explanations, checkpoint, layers, device
            )
    seconds = time.time() - started
    print(
        f"{len(chosen)} patches of {len(patch_set.classes)} cities, {count_methods(len(methods))},"
        f" {', '.join(layers)}: {seconds:.0f} s"
    )
    print(describe_outputs(args, out))


if __name__ == "__main__":
    run(main, interrupted="nothing is kept, the same command starts anew")
