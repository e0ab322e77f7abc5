"""Checkpoints that checkpoints.save_checkpoint wrote, read by torch.load.

torch.load(weights_only=True) runs nothing that a file asks for, but it believes what a file claims:
a flipped bit goes unnoticed, and a file of a few hundred bytes has it allocate gigabytes. So the
archive is checked first, then its instructions are followed without running them, and only what is
a checkpoint of ours is loaded.
"""

import io
import os
import re
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import torch

from dl_slicer.model import pickles
from dl_slicer.model.pickles import Refused


def read(path: str | Path, keys: Collection[str]) -> dict | None:
    """Give the checkpoint in a file, all tensors on the CPU.

    keys: what a checkpoint of ours has.
    None if this is no checkpoint of ours, or a damaged one: pickles.read says what is wrong with
    it, and reads what other people's files may hold besides.
    """
    with open(path, "rb") as file:
        try:
            pickled, sizes = _check_archive(file)
            outline = OwnFollower(sizes).follow(io.BytesIO(pickled))
            if type(outline) is not dict or not outline.keys() >= set(keys):
                return None
            file.seek(0)
            return torch.load(file, weights_only=True, map_location="cpu")
        # Refused, or whatever a damaged file makes zipfile, pickletools, struct or torch raise.
        except Exception:
            return None


# ----------------------------------------------------------------------------------------- archive

# The records that torch.save writes, all in one folder.
RECORD = re.compile(
    r"(?P<folder>[^/]+)/(?P<name>data\.pkl|data/\d+|byteorder|version|\.data/serialization_id"
    r"|\.format_version|\.storage_alignment)",
    re.ASCII,
)
# Attributes as DOS has them, 0 in all that torch.save writes. Of a record that one bit among them
# marks as a folder torch reads nothing, and takes whatever the memory held as its content.
LOW_ATTRIBUTES = 0xFFFF
PIECE = 2**20  # bytes of a record that are read at a time

# How a zip archive ends, after the list of its records: if it is a large one, with where the list
# is and a note where that stands; in any case with where the list is.
LARGE_END = struct.Struct("<4sQ2H2L4Q")
NOTE = struct.Struct("<4sLQL")
END = struct.Struct("<4s4H2LH")
LARGEST_LIST = 2**22  # bytes; a ResNet-152 with Adam's state has 0.2 MB


def _check_archive(file: BinaryIO) -> tuple[bytes, dict[str, int]]:
    """Give the pickle in an archive, and the size of each record in bytes by its name.

    Refused unless its records are those that torch.save writes, uncompressed, within the file, and
    as their checksums say.
    """
    _check_end(file)
    bytes_left = os.fstat(file.fileno()).st_size
    archive = zipfile.ZipFile(file)
    folders = set()
    records = {}
    for info in archive.infolist():
        found = RECORD.fullmatch(info.orig_filename)
        if found is None or found["name"] in records:
            raise Refused("it has a record that torch.save does not write, or one twice")
        is_stored = info.compress_type == zipfile.ZIP_STORED
        bytes_left -= info.file_size
        if not is_stored or info.compress_size != info.file_size or bytes_left < 0:
            raise Refused("a record is compressed or too large")
        if info.external_attr & LOW_ATTRIBUTES:
            raise Refused("a record is marked as something else than a file")
        folders.add(found["folder"])
        records[found["name"]] = info
    if len(folders) != 1 or records["data.pkl"].file_size > pickles.LIMIT:
        raise Refused("it has several folders, or too many instructions")
    for info in records.values():
        _check_sum(archive, info)
    if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
        raise Refused("written on a big-endian machine")
    pickled = archive.read(records["data.pkl"])
    return pickled, {name: info.file_size for name, info in records.items()}


def _check_sum(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    with archive.open(info) as record:
        while record.read(PIECE):  # zipfile compares the checksum when it has read all
            pass


def _check_end(file: BinaryIO) -> None:
    """Refused unless the list of records stands right before the end, where the end says it does.

    zipfile also finds a list that was moved, torch goes by what the end says: a file could show
    each of them another list.
    """
    end_at = file.seek(-END.size, os.SEEK_END)
    signature, *_, length, start, comment_length = END.unpack(file.read(END.size))
    if signature != b"PK\x05\x06" or comment_length != 0:
        raise Refused("it does not end like an archive of torch.save")
    large_end_at = end_at - NOTE.size - LARGE_END.size
    if large_end_at >= 0:
        file.seek(large_end_at)
        large_signature, *_, large_length, large_start = LARGE_END.unpack(file.read(LARGE_END.size))
        note_signature, _, noted_at, _ = NOTE.unpack(file.read(NOTE.size))
        if note_signature == b"PK\x06\x07":
            if large_signature != b"PK\x06\x06" or noted_at != large_end_at:
                raise Refused("it does not end like an archive of torch.save")
            length = large_length
            start = large_start
            end_at = large_end_at
    if start + length != end_at or length > LARGEST_LIST:
        raise Refused("its list of records is elsewhere or too long")


# ------------------------------------------------------------------------------------ instructions

# All that torch.save writes for a checkpoint of ours. torch's own list of what weights_only may
# call has bytearray and torch.Tensor, too, with any size as the argument.
STORAGES = {"torch.FloatStorage", "torch.LongStorage", "torch.ByteStorage"}
INSTRUCTIONS = (
    {"PROTO", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
    | {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
    | {"BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    | {"EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
    | {"GLOBAL", "BINPERSID", "REDUCE", "BUILD"}
)


def _check_tensor(
    flat: object,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: dict,
) -> torch.Tensor:
    """Refused if a tensor is not as a state dict has it.

    torch enlarges a storage that is too small for its tensor, and keeps hooks to call them.
    """
    if requires_grad is not False or type(hooks) is not dict or hooks:
        raise Refused("a tensor that is not as a state dict has it")
    return pickles.tensor(flat, offset, size, stride)


class OwnFollower(pickles.Follower):
    """Follows the instructions of a checkpoint of ours, on storages that take no memory.

    sizes: of the archive's records, in bytes by their names.
    """

    names = STORAGES
    functions = {
        "torch._utils._rebuild_tensor_v2": _check_tensor,
        "collections.OrderedDict": lambda: {},
    }

    def __init__(self, sizes: dict[str, int]):
        super().__init__(self._measured)
        self.sizes = sizes
        self.flat_tensors = {}

    def _measured(self, dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        # torch reads beyond a record that is smaller than its storage.
        if self.sizes[f"data/{key}"] != count * dtype.itemsize:
            raise Refused("a storage that has not the size of its record")
        if key not in self.flat_tensors:
            self.flat_tensors[key] = torch.empty(count, dtype=dtype, device="meta")
        return self.flat_tensors[key]

    def take(self, instruction: str, value: object) -> None:
        """Do what one instruction says, if torch.save writes it for a checkpoint of ours."""
        is_other_protocol = instruction == "PROTO" and value != 2  # of which torch would warn
        if instruction not in INSTRUCTIONS or is_other_protocol:
            raise Refused("an instruction that torch.save does not write")
        super().take(instruction, value)

    def get(self, instruction: str, number: int) -> None:
        """Take what was remembered: in our files only text and names stand in several places.

        A tuple or a dictionary in several places could grow without end, or change once checked.
        """
        super().get(instruction, number)
        if type(self.stack[-1]) not in (str, pickles.Name):
            raise Refused("one object in several places")

    def build(self, instruction: str, value: None) -> None:
        """Give a state dict its _metadata; torch would take anything, for tensors, too."""
        *_, target, state = self.stack
        if type(target) is not dict or type(state) is not dict or state.keys() != {"_metadata"}:
            raise Refused("attributes that no state dict has")
        super().build(instruction, value)
