"""Fetch the paper's data or models from Hugging Face, and say how they compare with the paper.

    python data/fetch.py --what raw --out data/raw
    python data/fetch.py --what processed --out data/processed
    python data/fetch.py --what models --out checkpoints/published

raw are the rasters, for preprocessing.py; processed are the authors' patches, which need none;
models are the authors' networks. Archives are unpacked, and the folders of cities are moved into
--out, whatever lies above them. Names stay as published: the authors' class numbers are their
sorted folder names. A download that broke off goes on where it stopped, what is done is not done
again, and files of others in --out are never touched. For a repository that asks for it, give a
token, better by HF_TOKEN in the environment than by --token, which others on the machine can see.
"""

import argparse
import os
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# The script is started by its path, so that Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dl_slicer.cli import InputError, Parser, printable, run
from dl_slicer.files import hold
from dl_slicer.hub import archives, fetching, layout
from dl_slicer.hub.downloads import Repository, size_text
from dl_slicer.hub.fetching import NoLevel, Places, Request, names_of
from dl_slicer.model.weight_files import Model, describe
from dl_slicer.patch_sets import image_files
from dl_slicer.patch_sets.image_files import UnreadableImage

DATA = "issai/DL-SLICER-dataset"
MODELS = "issai/DL-SLICER-models"
ENDPOINT = "https://huggingface.co"

# What the paper and its repository say.
RASTERS = 1585
RASTER_SIZE = (4800, 4800)
PATCH_SIZE = (480, 480)
SITES = 3
PATCHES = {"train": 453_000, "val": 56_000, "test": 56_000, "test_b": 22_500}
TEST_B = 500  # of a city
ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101")
FILES = ("best.pth", "last.pth")

LOOKED_AT = 20  # of a folder's patches, for their size


def read_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; InputError if they are wrong."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--what", required=True, choices=("raw", "processed", "models"), help="what to fetch"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to place it in")
    parser.add_argument(
        "--token", help="of an account at the hub, for repositories that ask for one; or HF_TOKEN"
    )
    parser.add_argument(
        "--endpoint",
        default=os.environ.get("HF_ENDPOINT") or ENDPOINT,
        help="the hub or a mirror of it, which is sent the token",
    )
    args = parser.parse_args(argv)
    args.endpoint = args.endpoint.rstrip("/")
    if not args.endpoint.startswith(("https://", "http://")):
        raise InputError(f"--endpoint {printable(args.endpoint)}: must begin with https://")
    args.token = clean_token(args.token, "--token") or clean_token(
        os.environ.get("HF_TOKEN"), "HF_TOKEN"
    )
    return args


def clean_token(token: str | None, where: str) -> str | None:
    """Give a token without spaces around it; InputError, which does not show it, if it is none."""
    token = (token or "").strip()
    if not token.isascii() or any(
        not character.isprintable() or character == " " for character in token
    ):
        raise InputError(f"{where}: no token: it has spaces or signs that no token has")
    return token or None


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch what the flags ask for, and print a table of it."""
    args = read_flags(argv)
    cities = layout.read_cities(Path(__file__).with_name("cities.csv"))
    request = read_request(args, cities)
    with hold(args.out):
        try:
            record = fetching.fetch(request)
        except NoLevel as error:
            by_hand = [f"    {command}" for command in commands_by_hand(request)]
            reasons = no_models(args.out) if args.what == "models" else []
            lines = ["what there is:", *error.tree, *reasons]
            lines.append("look for the level, and go on by hand:")
            print("\n".join([*lines, *by_hand]), flush=True)
            raise InputError(f"{error}; see above") from None
    print(f"{record['repository']}, revision {record['revision']}, in {printable(args.out)}\n")
    compare = {"raw": compare_raw, "processed": compare_processed, "models": compare_models}
    differences = list(compare[args.what](args.out, list(record["places"]), cities))
    differences += changes(args.out, record)
    print("\n" + ("What differs from the paper:" if differences else "All as in the paper."))
    for difference in differences:
        print(f"- {printable(difference)}")


def read_request(args: argparse.Namespace, cities: layout.Cities) -> Request:
    """Give what the flags ask for."""
    is_model = args.what == "models"

    def is_data(path: PurePosixPath) -> bool:
        return image_files.is_image_name(path.name) or archives.stem(path.name) is not None

    def choose(paths: list[PurePosixPath]) -> list[PurePosixPath]:
        if is_model:
            return [path for path in paths if not layout.is_junk(path)]
        return layout.choose(paths, args.what, cities, is_data)

    def wanted(path: PurePosixPath) -> bool:
        return is_model or layout.kind_of(path, cities) in (args.what, None)

    def find(stages: list[Path]) -> Places:
        if is_model:
            return find_models(stages)
        return layout.places(stages, args.what, cities, image_files.is_image_name)

    name, kind = (MODELS, "model") if is_model else (DATA, "dataset")
    repository = Repository(name, kind, args.endpoint, args.token)
    return Request(args.what, repository, args.out, choose, wanted, find)


def commands_by_hand(request: Request) -> list[str]:
    """Give the two commands with which a user goes on where no level fits."""
    out = shlex.quote(str(request.out))
    work = shlex.quote(str(request.work))
    move = f"mv {work}/FOLDER-WITH-THE-CITIES/* {out}/"
    if not request.work.exists():
        repository = request.repository
        get = f"hf download {repository.name} --repo-type {repository.kind} --local-dir"
        return [f"{get} data/download", f"mv data/download/FOLDER/* {out}/"]
    if request.what == "raw":
        return [move, f"python preprocessing.py --raw {out} --out data/patches"]
    if request.what == "processed":
        return [
            f"mv {work}/FOLDER-WITH-train-val-test/* {out}/",
            f"python train_classification.py --data {out}",
        ]
    return [
        f"mv {work}/FOLDER-WITH-THE-MODELS/* {out}/",
        f"python test_classification.py --checkpoint {out}/best.pth --data data/patches",
    ]


def changes(out: Path, record: Mapping) -> Iterator[str]:
    """Say what lies elsewhere than it was placed, has no place, or was placed by others."""
    for name, (files, size) in record["places"].items():
        now = fetching.measure(out / name)
        if now != [files, size]:
            yield (
                f"changed since it was fetched: {name}, {now[0]} files and {size_text(now[1])} of"
                f" {files} and {size_text(size)}"
            )
    left = fetching.left_over(out)
    if left:
        yield f"came, but have no place ({len(left)}): {names_of(left)}"
    tops = {PurePosixPath(name).parts[0] for name in record["places"]}
    others = sorted(
        path.name
        for path in out.iterdir()
        if path.name not in tops and not path.name.startswith(".")
    )
    if others:
        yield f"not from this download, but in the same folder: {names_of(others)}"


# --------------------------------------------------------------------------------------- rasters


class Raster(NamedTuple):
    """A raster as it was found."""

    folder: str  # the city's
    site: str  # "" where it lies in no site
    path: str  # under --out
    size: tuple[int, int] | None  # width, height; None if it cannot be read


def compare_raw(out: Path, folders: list[str], cities: layout.Cities) -> Iterator[str]:
    """Print what was found beside what the paper says; give what differs, a line each."""
    rasters = [raster for folder in folders for raster in find_rasters(out, folder)]
    by_city = defaultdict(list)
    for raster in rasters:
        by_city[raster.folder].append(raster)
    sites = {folder: sorted({r.site for r in found}) for folder, found in by_city.items()}
    held_out = sum(r.site == sites[r.folder][-1] for r in rasters)
    known = {folder: cities.similar(folder) for folder in folders}
    of_size = sum(raster.size == RASTER_SIZE for raster in rasters)
    with_sites = sum(len(found) == SITES for found in sites.values())
    size = sum((out / raster.path).stat().st_size for raster in rasters)

    print(f"{'city':<32}{'sites':>7}{'rasters':>9}")
    for folder in sorted(folders):
        print(f"{printable(folder):<32}{len(sites[folder]):>7}{len(by_city[folder]):>9}")
    print_beside(
        [
            ("cities", len(folders), len(cities.known)),
            ("of them in the paper", len(set(known.values()) - {None}), len(cities.known)),
            ("rasters", len(rasters), RASTERS),
            (f"of {RASTER_SIZE[0]} x {RASTER_SIZE[1]} pixels", of_size, RASTERS),
            ("of sites held out, the last ones", held_out, "about 329"),
            ("size", size_text(size), "16 GB"),
            (f"cities with {SITES} sites", with_sites, "most"),
        ]
    )
    yield from differing_cities(known, cities)
    if len(rasters) != RASTERS:
        yield f"{len(rasters)} rasters, {RASTERS} in the paper"
    for folder in sorted(folders):
        if len(sites[folder]) != SITES:
            yield f"sites: {folder} has {len(sites[folder])}: {names_of(sites[folder])}"
    yield from differing_sizes({r.path: r.size for r in rasters}, RASTER_SIZE)
    yield from repeated_names(rasters)


def find_rasters(out: Path, folder: str) -> Iterator[Raster]:
    """The rasters of a city."""
    for path in fetching.walk(out / folder):
        if image_files.is_image_name(path.name):
            inside = path.relative_to(out / folder).parts
            site = inside[0] if len(inside) > 1 else ""
            yield Raster(folder, site, path.relative_to(out).as_posix(), image_size(path))


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height by the file's header; None if that cannot be read."""
    try:
        with image_files.open_image(path) as image:
            return image.size
    except UnreadableImage:
        return None


def print_beside(rows: Iterable[tuple[str, object, object]]) -> None:
    """Print a table of what was found and what the paper says."""
    print(f"\n{'':<36}{'found':>12}{'paper':>12}")
    for what, found, paper in rows:
        print(f"{what:<36}{found!s:>12}{paper!s:>12}")


def differing_cities(
    known: Mapping[str, layout.City | None], cities: layout.Cities
) -> Iterator[str]:
    """Say which cities are missing, unknown, or spelt in another way.

    known: which city each folder was taken for.
    """
    missing = [str(city) for city in cities.known if city not in known.values()]
    if missing:
        yield f"missing are {len(missing)} cities: {names_of(missing, len(missing))}"
    for city in cities.known:
        folders = sorted(folder for folder, own in known.items() if own == city)
        if folders not in ([], [str(city)]):
            kept = "the name is kept" if len(folders) == 1 else "they stay several cities"
            yield f"taken for {city}: {names_of(folders)}; {kept}"
    unknown = sorted(folder for folder, own in known.items() if own is None)
    if unknown:
        yield f"not among the paper's cities: {names_of(unknown, len(unknown))}"


def differing_sizes(
    sizes: Mapping[str, tuple[int, int] | None], usual: tuple[int, int]
) -> Iterator[str]:
    """Say which pictures have another size than usual, or cannot be read."""
    by_size = defaultdict(list)
    for path, size in sorted(sizes.items()):
        by_size[size].append(path)
    for size, paths in sorted(by_size.items(), key=lambda item: item[0] or (0, 0)):
        if size is None:
            yield f"cannot be read ({len(paths)}): {names_of(paths, len(paths))}"
        elif size != usual:
            yield f"of {size[0]} x {size[1]} pixels ({len(paths)}): {names_of(paths)}"


def repeated_names(rasters: Iterable[Raster]) -> Iterator[str]:
    """Say which cities have several rasters of one name, which is most likely a year."""
    paths = defaultdict(list)
    for raster in rasters:
        paths[raster.folder, PurePosixPath(raster.path).stem].append(raster.path)
    repeated = {key: found for key, found in paths.items() if len(found) > 1}
    if repeated:
        cities = Counter(folder for folder, _ in repeated)
        (folder, name), found = min(repeated.items())
        yield (
            f"names that repeat within a city: {len(repeated)} in {len(cities)} cities, such as"
            f" {name} in {folder}: {names_of(found)}; preprocessing.py keeps them apart, the"
            " published script gave their patches one name"
        )


# --------------------------------------------------------------------------------------- patches


def compare_processed(out: Path, folders: list[str], cities: layout.Cities) -> Iterator[str]:
    """Print what was found beside what the paper says; give what differs, a line each."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)  # {split: {city: patches}}
    sizes = {}
    for folder in sorted(folders):
        split, city = PurePosixPath(folder).parts
        images = [
            path.relative_to(out).as_posix()
            for path in fetching.walk(out / folder)
            if image_files.is_image_name(path.name)
        ]
        counts[split][city] = len(images)
        some = images[:: max(1, len(images) // LOOKED_AT)]
        sizes |= {path: image_size(out / path) for path in some}
    names = sorted({city for found in counts.values() for city in found})
    known = {name: cities.similar(name) for name in names}
    totals = {split: sum(found.values()) for split, found in counts.items()}

    rows = [("cities", len(names), len(cities.known))]
    rows += [
        (f"{split} patches", totals.get(split, 0), f"about {PATCHES[split]}") for split in PATCHES
    ]
    print_beside(rows)
    print(f"(of each folder about {LOOKED_AT} patches were opened for their size)")
    yield from differing_cities(known, cities)
    for split in [*PATCHES, *sorted(counts.keys() - PATCHES.keys())]:
        found = counts.get(split, {})
        lacking = [name for name in names if not found.get(name)]
        if lacking:
            yield f"no {split} patches: {names_of(lacking, len(lacking))}"
        if split not in PATCHES:
            yield f"{split}: is not called as in the paper"
    others = [f"{city} {n}" for city, n in counts.get("test_b", {}).items() if n != TEST_B]
    if others:
        yield f"test_b: other than {TEST_B} patches: {names_of(others, len(others))}"
    yield from differing_sizes(sizes, PATCH_SIZE)


# ---------------------------------------------------------------------------------------- models


def find_models(stages: Iterable[Path]) -> Places:
    """Find the networks among what came, by their content, and give each the place of its name."""
    models = {
        PurePosixPath(path.relative_to(stage).as_posix()): path
        for stage in stages
        for path in fetching.walk(stage)
        if isinstance(describe(path), Model)
    }
    if not models:
        return {}
    above = os.path.commonpath([path.parent.as_posix() for path in models]) or "."
    return {without_doubles(path.relative_to(above)): [models[path]] for path in models}


def without_doubles(path: PurePosixPath) -> PurePosixPath:
    """Give a path without folders in folders of the same name, as archives are unpacked into."""
    parts = path.parts
    return PurePosixPath(
        *(part for part, above in zip(parts, ("", *parts), strict=False) if part != above)
    )


def compare_models(out: Path, names: list[str], cities: layout.Cities) -> Iterator[str]:
    """Print what was found beside what the paper says; give what differs, a line each."""
    models = {name: describe(out / name) if (out / name).is_file() else None for name in names}
    found = defaultdict(set)  # {arch: names of files}
    print(f"{'file':<40}{'network':<12}{'parameters':>12}{'classes':>9}{'size':>10}")
    for name, model in sorted(models.items()):
        if not isinstance(model, Model):
            yield f"no model any more: {name}: {model or 'gone, or no file of weights'}"
            continue
        found[model.arch].add(PurePosixPath(name).name.lower())
        size = size_text((out / name).stat().st_size)
        line = f"{model.arch:<12}{model.parameters:>12,}{model.classes:>9}{size:>10}"
        print(f"{printable(name):<40}{line}")
        if model.classes != len(cities.known):
            yield f"{name}: {model.classes} classes, {len(cities.known)} in the paper"
        if not model.has_names:
            yield f"{name}: does not name its classes; they are taken from the data, sorted"
    for arch in ARCHS:
        missing = [name for name in FILES if name not in found[arch]]
        if missing:
            yield f"missing of {arch}: {names_of(missing)}"
    others = sorted(arch for arch in found if arch not in ARCHS and found[arch])
    if others:
        yield f"not among the paper's networks: {names_of(others)}"
    yield from no_models(out)


def no_models(out: Path) -> Iterator[str]:
    """Say why files of weights that came are no networks of ours."""
    for path in fetching.left_over(out):
        reason = describe(out / path)
        if isinstance(reason, str):
            yield f"no network: {path}: {reason}"


if __name__ == "__main__":
    run(main)
