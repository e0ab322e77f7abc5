"""Checkpoints of ours, read by torch.load; and files like them that would make it take memory."""

import json
import random
import struct
import sys
import time
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import pytest
import torch
from weight_files import (
    Call,
    Pickler,
    Storage,
    equal,
    in_limited_process,
    limit_memory,
    refusal,
    saved,
    tiny_checkpoint,
    tiny_state,
)

from benchmarks.growth import memory
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints, own_files, pickles


def read(path):
    return own_files.read(path, checkpoints.OWN)


def trained_checkpoint():
    """With what an optimiser keeps, and strides in another order than usual."""
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return tiny_checkpoint(weights=model.state_dict(), optimizer=optimizer.state_dict())


def same(a, b):
    """Equal in type, content, and the strides of tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# ---------------------------------------------------------------------------- what is read


def test_own_checkpoint_is_read_by_torch_load(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoints.save_checkpoint(path, checkpoints.Checkpoint(**trained_checkpoint()))
    calls = []
    load = torch.load

    def noted(file, **options):
        calls.append(options)
        return load(file, **options)

    monkeypatch.setattr(torch, "load", noted)
    monkeypatch.setattr(pickles, "read", None)  # not asked
    found = checkpoints.read_file(path)
    assert calls == [{"weights_only": True, "map_location": "cpu"}]
    assert same(vars(found), trained_checkpoint_as_read(path))
    assert type(found.weights) is dict and type(found.model) is dict


def trained_checkpoint_as_read(path):
    content = torch.load(path, weights_only=True)
    return {key: content[key] for key in checkpoints.FIELDS}


def test_both_readers_agree(tmp_path):
    path = saved(tmp_path / "last.pth", trained_checkpoint())
    assert same(read(path), pickles.read(path))


def test_checkpoint_of_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = saved(tmp_path / "last.pth", tiny_checkpoint())
    monkeypatch.undo()
    assert b"cuda:0" in path.read_bytes()
    assert equal(read(path)["model"], tiny_state())


def test_other_peoples_files_go_to_the_reader_by_hand(tmp_path):
    without_stride = tiny_checkpoint()
    del without_stride["stride"]
    for content in (tiny_state(), {"state_dict": tiny_state()}, without_stride, [1, 2]):
        assert read(saved(tmp_path / "a.pth", content)) is None
    old = saved(tmp_path / "b.pth", tiny_checkpoint(), _use_new_zipfile_serialization=False)
    assert read(old) is None
    assert equal(checkpoints.read_file(old).model, tiny_state())


# ------------------------------------------------------------------------------- damaged files


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path):
    """Some bits of an archive say nothing: dates, and what fills up to the next record."""
    path = saved(tmp_path / "a.pth", tiny_checkpoint())
    whole = path.read_bytes()
    expected = read(path)
    with zipfile.ZipFile(path) as archive:
        contents = [info.header_offset + 30 + len(info.filename) for info in archive.infolist()]
    rng = random.Random(0)
    places = contents + [rng.randrange(len(whole)) for _ in range(150)]
    refused = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            found = vars(checkpoints.read_file(path))
        except InputError:
            refused += 1
        else:
            assert all(same(found[key], value) for key, value in expected.items()), place
    assert refused > 60


def test_a_flipped_bit_in_the_list_of_records_changes_nothing_unseen(tmp_path):
    """One that marks a record as a folder had torch take whatever the memory held for weights."""
    path = saved(tmp_path / "a.pth", {**small_checkpoint(), "model": {"a": torch.arange(1.0, 20)}})
    whole = path.read_bytes()
    expected = read(path)
    entry = whole.rindex(b"a/data/0") - 46
    next_entry = whole.index(b"PK\x01\x02", entry + 4)
    end = whole.index(b"PK\x06\x06")
    loaded = 0
    for place in (*range(entry, next_entry), *range(end, len(whole))):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found = read(path)
            if found is not None:
                assert same(found, expected), (place, bit)
                loaded += 1
    assert 0 < loaded < 8 * (next_entry - entry + len(whole) - end) / 2


def test_every_bit_of_every_record_counts(tmp_path):
    path = saved(tmp_path / "a.pth", tiny_checkpoint())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            content = archive.read(info)
            if not content:
                continue
            flipped = bytearray(whole)
            start = whole.index(content, info.header_offset + 30 + len(info.filename))
            flipped[start + len(content) // 2] ^= 16
            path.write_bytes(flipped)
            assert read(path) is None, info.filename
            if "/data" in info.filename:
                assert "damaged" in refusal(checkpoints.read_file, path)


# -------------------------------------------------------------------- files that mean harm


def archive_of(content, records=None, protocol=2):
    """A checkpoint whose pickle says what it likes, its records as torch.save writes them."""
    pickled = content
    if not isinstance(content, bytes):
        buffer = BytesIO()
        Pickler(buffer, protocol).dump(content)
        pickled = buffer.getvalue()
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        records = {"version": b"3\n", "byteorder": b"little", "data/0": bytes(64)} | (records or {})
        for name, record in records.items():
            archive.writestr(f"archive/{name}", record)
    return buffer.getvalue()


def with_call(function, *arguments):
    """Our keys, and one value that asks for a call."""
    return archive_of({**small_checkpoint(), "metrics": Call(function, *arguments)})


def small_checkpoint():
    return {**tiny_checkpoint(), "model": {}, "optimizer": {}, "rng": None}


def arguments(offset, size, stride, count=16, key="0", requires_grad=False, **hooks):
    """Of torch's function for a tensor; each tuple stands once, as torch.save has it."""
    storage = Storage(count, key)
    return storage, offset, tuple([*size]), tuple([*stride]), requires_grad, OrderedDict(hooks)


def rebuilt(*where, **more):
    return with_call(torch._utils._rebuild_tensor_v2, *arguments(*where, **more))


class State:
    """Pickled, it is an object that is given a state."""

    def __init__(self, function, arguments, state):
        self.reduced = function, arguments, state

    def __reduce__(self):
        return self.reduced


def with_state(function, arguments, state):
    return archive_of({**small_checkpoint(), "metrics": State(function, arguments, state)})


def moved_list():
    """zipfile sees a harmless archive, torch goes by the noted place and sees another."""
    harmful = with_call(bytearray, 2**34)
    harmless = archive_of(small_checkpoint())
    end = len(harmless) - 22
    length, start = struct.unpack("<2L", harmless[end + 12 : end + 20])
    fields = list(struct.unpack("<4s4H2LH", harmful[-22:]))
    harmful_list = harmful[fields[6] : fields[6] + fields[5]]
    # The list that torch reads stands first, padded to the length of the one that zipfile finds.
    filled = harmful[: fields[6]] + harmful_list
    fields[5] = length
    records = harmless[:start]
    moved = filled + records + harmless[start:end]
    return moved + struct.pack("<4s4H2LH", *fields)


HARMFUL = {
    "bytearray": lambda: with_call(bytearray, 2**34),
    "tensor": lambda: with_call(torch.Tensor, 2**34),
    "storage": lambda: with_call(torch.FloatStorage, 2**34),
    "set": lambda: with_call(set, [1]),
    "beyond-storage": lambda: rebuilt(0, (2**31 - 1,), (1,)),
    "offset": lambda: rebuilt(2**31 - 2, (1,), (1,)),
    "strides": lambda: rebuilt(0, (2, 2), (2**30, 1)),
    "large-storage": lambda: rebuilt(0, (2**30,), (1,), count=2**30),
    "other-record": lambda: rebuilt(0, (1,), (1,), key="../data.pkl"),
    "hooks": lambda: rebuilt(0, (1,), (1,), a=1),
    "requires-grad": lambda: rebuilt(0, (1,), (1,), requires_grad=True),
    "state-of-tensor": lambda: with_state(
        torch._utils._rebuild_tensor_v2,
        arguments(0, (1,), (1,)),
        arguments(0, (2**31 - 1,), (1,))[:4],
    ),
    "state-of-dictionary": lambda: with_state(OrderedDict, (), {"items": 3}),
    "pairs": lambda: with_call(OrderedDict, [("a", 1)]),
    "shared-tuple": lambda: archive_of(b"\x80\x02)" + 60 * b"q\x00h\x00\x86" + b"."),
    "protocol-4": lambda: archive_of(small_checkpoint(), protocol=4),
    "other-record-name": lambda: archive_of(small_checkpoint(), {"constants.pkl": b""}),
    "two-names": lambda: archive_of(small_checkpoint(), {"DATA/0": b""}),
    "big-endian": lambda: archive_of(small_checkpoint(), {"byteorder": b"big"}),
    "long-pickle": lambda: archive_of({**small_checkpoint(), "args": pickles.LIMIT * "a"}),
    "before-the-archive": lambda: b"PK\x03\x04" + bytes(60) + archive_of(small_checkpoint()),
    "after-the-archive": lambda: archive_of(small_checkpoint()) + bytes(60),
    "moved-list": moved_list,
}
# What torch.load(weights_only=True) itself would take gigabytes for. Its newer versions refuse to
# enlarge a storage, as "beyond-storage" and some others ask.
TAKES_MEMORY = {"bytearray", "tensor", "moved-list"}


def test_harmless_twin_of_the_harmful_files_is_read(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(archive_of(small_checkpoint()))
    assert read(path).keys() == small_checkpoint().keys()
    path.write_bytes(rebuilt(4, (2, 3), (6, 2)))
    assert read(path)["metrics"].shape == (2, 3)


def test_harmful_files_are_not_loaded(tmp_path):
    """In a process that may take 2 GB at most, which torch.load alone would not do with."""
    for name, file in HARMFUL.items():
        (tmp_path / name).write_bytes(file())
        assert name == "long-pickle" or len(file()) < 20_000
    result = in_limited_process(__file__, tmp_path)
    assert result["loaded"] == []
    assert set(result["too_large_for_torch"]) >= TAKES_MEMORY
    assert result["peak"] < 1000 and result["slowest"] < 10
    for name in ("bytearray", "tensor"):
        asked_for = {"bytearray": "builtins.bytearray", "tensor": "torch.Tensor"}[name]
        assert f"it asks for {asked_for}" in result["messages"][name]


@pytest.mark.parametrize("name", ["beyond-storage", "large-storage", "other-record"])
def test_reader_by_hand_refuses_them_too(tmp_path, name):
    path = tmp_path / "a.pth"
    path.write_bytes(HARMFUL[name]())
    assert "damaged" in refusal(pickles.read, path)


def main(folder):
    """Print which files torch.load would be given, and which it would take too much memory for."""
    limit_memory()
    result = {"loaded": [], "messages": {}, "too_large_for_torch": [], "slowest": 0.0}
    for file in sorted(folder.iterdir()):
        started = time.time()
        if read(file) is not None:
            result["loaded"].append(file.name)
        try:
            checkpoints.read_file(file)
        except InputError as error:
            result["messages"][file.name] = str(error)
        result["slowest"] = max(result["slowest"], time.time() - started)
    result["peak"] = memory("VmHWM")
    for file in sorted(folder.iterdir()):
        try:
            torch.load(file, weights_only=True)
        except MemoryError:
            result["too_large_for_torch"].append(file.name)
        except Exception as error:
            if "allocate memory" in str(error):
                result["too_large_for_torch"].append(file.name)
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
