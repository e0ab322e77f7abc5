"""1,000 damaged checkpoints, read in a process that may take 2 GB of memory."""

import json
import random
import signal
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from weight_files import (
    in_limited_process,
    limit_memory,
    network,
    published,
    saved,
    tiny_checkpoint,
    tiny_model,
)

from benchmarks.growth import memory
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints


def test_mutated_checkpoints(tmp_path):
    """1,000 damaged files are read or refused in one line, 24 whole ResNet-18 among them.

    All in a process that may take 2 GB at most.
    """
    for name, content in [("own", tiny_checkpoint()), ("model", published(tiny_model()))]:
        saved(tmp_path / f"{name}.zip", content)
        saved(tmp_path / f"{name}.legacy", content, _use_new_zipfile_serialization=False)
    saved(tmp_path / "large.zip", tiny_checkpoint(model=network(classes=3).state_dict()))
    result = in_limited_process(__file__, tmp_path)
    assert result["tried"] == 1000 and result["refused"] > 500 and result["read"] > 20
    assert result["slowest"] < 10 and result["peak"] < 1900


def mutate(content, rng):
    """Some bytes changed, taken out, put in, doubled, or all from somewhere on."""
    content = bytearray(content)
    at, length = rng.randrange(len(content)), rng.randrange(1, 30)
    kind = rng.randrange(6)
    if kind < 2:
        for _ in range(rng.choice((1, 1, 2, 9))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = rng.randbytes(length)
    elif kind == 4:
        other = rng.randrange(len(content))
        content[at : at + length] = content[other : other + length]
    else:
        del content[at:]
    return bytes(content)


def with_pickle(path, pickled):
    """The archive with another pickle, under a right checksum, which would refuse all mutations."""
    buffer = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(
                info.filename, pickled if info.filename.endswith("data.pkl") else old.read(info)
            )
    return buffer.getvalue()


def main(folder):
    """Read 1,000 mutations, and print how that went."""
    torch.set_num_threads(1)
    limit_memory()
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    result = {"tried": 0, "read": 0, "refused": 0, "slowest": 0.0}
    for seed in range(1000):
        rng = random.Random(seed)
        name = "large.zip" if seed % 42 == 0 else rng.choice(sorted(files.keys() - {"large.zip"}))
        if name.endswith("legacy"):  # the pickles before the storages, or any place
            end = rng.choice((files[name].rindex(b"q\x01X"), len(files[name])))
            content = mutate(files[name][:end], rng) + files[name][end:]
        elif rng.random() < 0.7 or name == "large.zip":
            with zipfile.ZipFile(folder / name) as archive:
                pickled = archive.read(
                    next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
                )
            content = with_pickle(folder / name, mutate(pickled, rng))
        else:
            content = mutate(files[name], rng)
        path = folder / "mutated.pth"
        path.write_bytes(content)
        signal.alarm(30)
        started = time.time()
        try:
            (checkpoints.load_checkpoint if name == "large.zip" else checkpoints.read_file)(path)
            result["read"] += 1
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 500, (seed, str(error))
            result["refused"] += 1
        except BaseException:
            print(f"mutation {seed} of {name}", file=sys.stderr)
            raise
        result["slowest"] = max(result["slowest"], time.time() - started)
        result["tried"] += 1
    signal.alarm(0)
    print(json.dumps({**result, "peak": memory("VmHWM")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
