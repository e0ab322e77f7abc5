"""The reader by hand: what it reads, and files that are damaged or mean harm."""

import os
import pickle
import shutil
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from weight_files import Call, crafted, refusal, saved, tensor, tiny_checkpoint, tiny_state

from dl_slicer.model import checkpoints, pickles


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_reads_what_torch_load_reads(tmp_path, new):
    """A checkpoint with optimizer state comes back as torch.load(weights_only=True) has it.

    Types, strides and sharing, too.
    """
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "parts": [shared[1:], shared.T, shared],
        "half": torch.ones(3).half(),
        "bf16": torch.ones(2).bfloat16(),
        "empty": torch.zeros(0),
        "scalar": torch.tensor(7),
        "plain": {
            "text": "é\n",
            "none": None,
            "yes": True,
            "number": -5,
            "large": 2**70,
            "float": 1e-3,
            "tuple": (1, (2,), ()),
        },
    }
    path = saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=new)

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        return type(a) is type(b) and (
            len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b
        )

    found = pickles.read(path)
    assert same(found, torch.load(path, weights_only=True))
    found["parts"][0].fill_(-1)
    assert found["parts"][2][1, 0] == -1  # still parts of one tensor


WRITERS = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle2": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
    "pickle4": lambda content, path: path.write_bytes(pickle.dumps(content, 4)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_calls_are_refused_by_name_and_not_made(tmp_path, writer):
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    for call, name in [
        (Call(os.system, f"touch {victim}"), "posix.system"),
        (Call(eval, f"open({str(victim)!r}, 'w')"), "builtins.eval"),
        (Call(bytearray, 10**12), "builtins.bytearray"),
        (Call(shutil.rmtree, str(tmp_path)), "shutil.rmtree"),
        (Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (torch.nn.Dropout(), "torch.nn.modules.dropout.Dropout"),
        (Path("a"), "pathlib.PosixPath"),
    ]:
        for content in (call, [call], {"a": {"b": (call,)}}, OrderedDict(state_dict=call)):
            WRITERS[writer](content, path)
            assert (
                f"refused, nothing of it was run: it asks for {name}, which no ResNet needs"
                in refusal(checkpoints.load_checkpoint, path)
            )
    for content in (
        {**tiny_state(), "x": call},
        tiny_checkpoint(classes=Call(os.system, f"touch {victim}")),
        tiny_checkpoint(args=Call(eval, "1")),
    ):
        WRITERS[writer](content, path)
        assert "nothing of it was run: it asks for" in refusal(checkpoints.load_checkpoint, path)
    assert not victim.exists()


def test_tampered_tensors(tmp_path):
    path = tmp_path / "a.pth"
    assert torch.equal(
        pickles.read(crafted(path, tensor(1, (2, 3), (6, 2))))["w"],
        torch.tensor([[1.0, 3, 5], [7, 9, 11]]),
    )
    for bad in [
        (0, (17,), (1,)),
        (1, (16,), (1,)),
        (16, (1,), (1,)),
        (0, (9,), (2,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**12,), (0,)),
        (0, (10**12, 0), (1, 1)),
        (0, (4, 16), (0, 1)),
        (0, (2,), (1, 1)),
        (2**63, (1,), (1,)),
        (0, (2.5,), (1,)),
        (0, ("2",), (1,)),
        (0, None, None),
        (0, (1,) * 50, (1,) * 50),
        (0, (10**9,), (1,), 10**9),
        (0, (8,), (1,), 8),
        (0, (1,), (1,), -1),
        (0, (1,), (1,), 2**80),
        (0, (1,), (1,), 16, "1"),
        (0, (1,), (1,), 16, "../data.pkl"),
    ]:
        assert "damaged" in refusal(pickles.read, crafted(path, tensor(*bad)))


TWINS = (
    b")" + 60 * b"q\x00h\x00\x86"
)  # a tuple of twice a tuple of twice a tuple ...: to print or to hash it takes years


LINEAR = b"ctorch.nn.modules.linear\nLinear\nq\x01"


@pytest.mark.parametrize(
    "pickled, said",
    [
        (TWINS + b"X\x01\x00\x00\x00a\x93.", "a name that is none"),
        (b"}" + TWINS + b"Ns.", "a list or dictionary that is none"),
        (TWINS + b".", "neither a model"),
        (b"}X\x07\x00\x00\x00classes" + TWINS + b"s.", "neither a model"),
        (TWINS + b"Q.", "a storage that is none"),
        (b"(" + 10**5 * b"N" + b"tq\x00" + 10**5 * b"h\x00Q" + b".", "wrong arguments"),
        (LINEAR + b"h\x01)\x81h\x01)\x81b.", "without _modules"),
        # 100,000 entries, which 100,000 modules have as their attributes.
        (
            LINEAR
            + b"}("
            + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(10**5))
            + b"uq\x02"
            + 10**5 * b"h\x01)\x81h\x02b"
            + b".",
            "without _modules",
        ),
        # A module that is 50 times its own child.
        (
            LINEAR
            + b")\x81q\x02}X\x08\x00\x00\x00_modules}("
            + b"".join(b"X\x02\x00\x00\x00%02dh\x02" % n for n in range(50))
            + b"usb.",
            "no tree of modules",
        ),
    ],
)
def test_bombs_fizzle_out(tmp_path, pickled, said):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled)
    started = time.process_time()
    assert said in refusal(checkpoints.load_checkpoint, tmp_path / "a.pth")
    assert time.process_time() - started < 5


def test_files_that_are_no_checkpoint(tmp_path):
    path = saved(tmp_path / "a.pth", tiny_state())
    whole = path.read_bytes()
    legacy = saved(
        tmp_path / "b.pth", tiny_state(), _use_new_zipfile_serialization=False
    ).read_bytes()
    for content in (whole, legacy):
        for length in (1, 3, 5, 100, len(content) // 2, len(content) - 1000, len(content) - 1):
            path.write_bytes(content[:length])
            refusal(checkpoints.load_checkpoint, path)
    for content, said in [
        (b"", "an empty file"),
        (b"hello, world", "no checkpoint: torch.save writes no such file"),
        (b"\x80", "damaged or cut short"),
        (b"\x80\x04.", "damaged"),
        (pickle.dumps({"a": 1}), "no checkpoint: a pickle that torch.save did not write"),
        (b"PK\x03\x04" + bytes(99), "damaged or cut short (File is not a zip file)"),
    ]:
        path.write_bytes(content)
        assert said in refusal(checkpoints.load_checkpoint, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<text/>")
    assert "a zip archive, but no checkpoint" in refusal(checkpoints.load_checkpoint, path)
    crafted(path, {"w": pickles.LIMIT * "a"}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed or too large" in refusal(checkpoints.load_checkpoint, path)
    assert "compressed or too large" in refusal(
        checkpoints.load_checkpoint, crafted(path, {"w": pickles.LIMIT * "a"})
    )
    for content in (
        {},
        [],
        7,
        "text",
        torch.ones(3),
        {"model": 3},
        {"state_dict": {}},
        [tiny_state()],
        {"model": {"conv1.weight": 3}},
    ):
        assert "no checkpoint: neither" in refusal(
            checkpoints.load_checkpoint, saved(path, content)
        )
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    for odd, said in [
        (tmp_path / "empty", "a folder without a checkpoint in it; give the file"),
        (tmp_path / "fifo", "no regular file"),
        (tmp_path / "none", "no such file"),
    ]:
        assert said in refusal(checkpoints.load_checkpoint, odd)


def test_one_wrong_bit_in_the_weights_is_noticed(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": {"w": torch.zeros(1000)}})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content[archive.getinfo("a/data/0").header_offset + 1000] ^= 1
    path.write_bytes(content)
    assert "damaged or cut short (Bad CRC-32 for file 'a/data/0')" in refusal(
        checkpoints.load_checkpoint, path
    )
