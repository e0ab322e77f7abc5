"""The rasters of a raw folder."""

import os
import stat
from collections import defaultdict
from pathlib import Path

from dl_slicer.cli import InputError, printable
from dl_slicer.patch_sets import image_files, on_disk


def find_rasters(raw, out):
    """A job for each raster, sorted by city, site and path. InputError if the layout is not as expected, all faults at once.

    A job says what is to be cut from which raster; its stamp tells whether the file has changed since.
    """
    if not raw.is_dir():
        raise InputError(
            f"{printable(raw)}: no such folder; --raw must hold <City (CODE)>/<site>/<raster>.jpg"
        )
    real_raw, real_out = os.path.realpath(raw), os.path.realpath(out)
    if os.path.commonpath([real_raw, real_out]) == real_raw:
        raise InputError(
            f"{printable(out)}: lies inside the raw folder {printable(raw)}; choose another --out"
        )
    rasters, faults = defaultdict(list), []
    for folder, folders, names in os.walk(
        raw, onerror=lambda error: faults.append(f"{printable(error.filename)}: {error.strerror}")
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = sorted(
            name
            for name in names
            if Path(name).suffix.lower() in image_files.SUFFIXES and not name.startswith(".")
        )
        for path in (Path(folder, name) for name in folders + images):
            inside, status = path.relative_to(raw), path.lstat()
            if stat.S_ISLNK(status.st_mode):
                faults.append(
                    f"{printable(path)}: a symbolic link, these are not followed; put what it points to in its place (cp -rL does)"
                )
            elif path.name in folders:
                continue
            elif not stat.S_ISREG(status.st_mode):
                faults.append(f"{printable(path)}: no regular file; delete it")
            elif len(inside.parts) < 3:
                faults.append(
                    f"{printable(path)}: a raster must lie in a site's folder, {printable(raw)}/<City (CODE)>/<site>/{printable(path.name)}"
                )
            elif str(inside) != os.fsencode(inside).decode(errors="replace"):
                faults.append(f"{printable(path)}: its name is not in UTF-8; rename it")
            else:
                rasters[inside.parts[0]].append(
                    (inside.parts[1], str(inside), [status.st_size, status.st_mtime_ns])
                )
    if not rasters and not faults:
        raise InputError(
            f"{printable(raw)}: no rasters in it; expected <City (CODE)>/<site>/<raster>.jpg (or png, tif)"
        )

    jobs = []
    for city, files in sorted(rasters.items()):
        sites, seen = sorted({site for site, _, _ in files}), {}
        if len(sites) == 1:
            faults.append(
                f"{printable(raw / city)}: only one site ({printable(sites[0])}) has rasters; at least two are needed, one of them is held out"
            )
        for site, raster, stamp in sorted(files):
            name = on_disk.flat_name(city, raster).casefold()
            if name in seen:
                faults.append(
                    f"{printable(raw / raster)}: would get the same name as {printable(raw / seen[name])}; rename one of them"
                )
            seen.setdefault(name, raster)
            splits = ["test", "val"] if site == sites[-1] else ["train"]
            jobs.append(
                {"raster": raster, "city": city, "site": site, "splits": splits, "stamp": stamp}
            )
    if faults:
        raise InputError("\n".join(faults))
    return jobs
