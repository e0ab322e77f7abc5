"""What torch.save wrote, read as plain data by hand: other people's files, and damaged ones.

Plain data are tensors, dictionaries, and modules as the attributes they had. Nothing is unpickled:
a pickle is a program that may import and call anything. torch.load(weights_only=True) runs it with
fewer names, but then builds the classes that are listed, allocates what the file claims to need,
and knows no whole models in the format before torch 1.6. Here its instructions are followed by
hand and no name leads to an import: the names below stand for a few functions of this module, every
other one ends the reading. Memory stays within the file's size and what LIMIT bytes of instructions
can list.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from dl_slicer.cli import InputError, printable

LIMIT = 2**22  # bytes of instructions; a ResNet-152 with Adam's state has 0.3 MB
# What the format before torch 1.6 begins with.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

# All that a ResNet on any device needs, alone or in DataParallel.
CLASSES = {
    "torch.nn.parallel.data_parallel.DataParallel",
    "torchvision.models.resnet.ResNet",
    "torchvision.models.resnet.BasicBlock",
    "torchvision.models.resnet.Bottleneck",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.pooling.AdaptiveAvgPool2d",
    "torch.nn.modules.pooling.AvgPool2d",  # torchvision's before AdaptiveAvgPool2d
    "torch.nn.modules.linear.Linear",
}
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ByteStorage": torch.uint8,
}

# storage(dtype, key, count): the flat tensor behind tensors.
StorageReader = Callable[[torch.dtype, str, int], torch.Tensor]


class Refused(Exception):
    """Why a file is not read."""


class Name(NamedTuple):
    """A class or function that a file names. Only the name."""

    name: str


class Module:
    """A module that a file describes: the name of its class and its attributes."""

    def __init__(self, kind: str):
        self.kind = kind
        self.attributes = {}

    def part(self, key: str) -> dict:
        """Give what stands in its _modules, _parameters or _buffers, by name."""
        part = self.attributes.get(key)
        if not isinstance(part, dict) or len(part) > 100 or not all(map(_is_part_name, part)):
            raise Refused(f"damaged: a {self.kind} without {key}")
        return {name: value for name, value in part.items() if value is not None}

    def named_modules(self) -> dict[str, "Module"]:
        """Give itself (as "") and all modules in it by their dotted names."""
        found = {}
        waiting = [("", self)]
        while waiting:
            name, module = waiting.pop()
            # A damaged file's module may contain itself; a ResNet-152 is 520 modules, six deep.
            is_too_large = len(found) + len(waiting) > 2000 or name.count(".") > 10
            if not isinstance(module, Module) or is_too_large:
                raise Refused("damaged: its modules are no tree of modules")
            found[name] = module
            for child, value in module.part("_modules").items():
                waiting.append((_dotted(name, child), value))
        return found

    def state_dict(self) -> dict:
        """Give all parameters and buffers by their dotted names."""
        return {
            _dotted(name, key): value
            for name, module in self.named_modules().items()
            for part in ("_parameters", "_buffers")
            for key, value in module.part(part).items()
        }


def _is_part_name(name: object) -> bool:
    return type(name) is str and len(name) < 100


def _dotted(module: str, name: str) -> str:
    return f"{module}.{name}".lstrip(".")


# ------------------------------------------------------------------------------------------- files


def read(path: str | Path) -> object:
    """Give the object that torch.save wrote to this file.

    InputError, in one line, if it is no such file, damaged, or asks for more than a ResNet needs.
    """
    with open(path, "rb") as file:
        try:
            return _read(file)
        except Refused as error:
            reason = str(error)
        # Whatever a damaged file makes zipfile, pickletools, struct or torch raise.
        except Exception as error:
            detail = " ".join(str(error).split())[:100] or type(error).__name__
            reason = f"damaged or cut short ({detail})"
    raise InputError(f"{printable(path)}: {reason}")


def _read(file: BinaryIO) -> object:
    head = file.read(4)
    file.seek(0)
    if not head:
        raise Refused("an empty file")
    if head == b"PK\x03\x04":
        return _read_zip(file)
    if head[:1] == b"\x80":
        return _read_stream(file)
    raise Refused("no checkpoint: torch.save writes no such file")


def _read_zip(file: BinaryIO) -> object:
    """Read the format since torch 1.6.

    It is a zip archive of the pickle and of one uncompressed record for each storage.
    """
    archive = zipfile.ZipFile(file)
    entries = archive.namelist()
    pickle_entries = [
        name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(pickle_entries) != 1:
        raise Refused("a zip archive, but no checkpoint: torch.save did not write it")
    folder = pickle_entries[0].removesuffix("data.pkl")
    storages = {}
    bytes_left = os.fstat(file.fileno()).st_size

    def record(name: str, most: int) -> bytes:
        info = archive.getinfo(folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise Refused(
                f"no checkpoint: its record {printable(name)[:40]} is compressed or too large"
            )
        return archive.read(info)  # checks the record's checksum

    def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        nonlocal bytes_left
        if key not in storages:
            content = record(f"data/{key}", most=bytes_left)
            bytes_left -= len(content)
            storages[key] = torch.empty(len(content) // dtype.itemsize, dtype=dtype)
            storages[key].view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)
        return storages[key]

    if folder + "byteorder" in entries and record("byteorder", most=10) != b"little":
        raise Refused("written on a big-endian machine; convert it there")
    return Follower(storage).follow(io.BytesIO(record("data.pkl", most=LIMIT)))


def _read_stream(file: BinaryIO) -> object:
    """Read the format before torch 1.6.

    It is five pickles and the storages after them. The fourth pickle is the object, the fifth its
    storages' keys.
    """
    pickles = io.BytesIO(file.read(LIMIT))
    storages = {}
    bytes_left = os.fstat(file.fileno()).st_size

    def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        nonlocal bytes_left
        if key not in storages:
            bytes_left -= count * dtype.itemsize
            if bytes_left < 0:
                raise Refused("damaged or cut short: it holds less than it claims")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    def next_pickle() -> object:
        return Follower(storage).follow(pickles)

    if next_pickle() != MAGIC or next_pickle() != PROTOCOL:
        raise Refused("no checkpoint: a pickle that torch.save did not write")
    if next_pickle().get("little_endian") is not True:
        raise Refused("written on a big-endian machine; convert it there")
    content = next_pickle()
    keys = next_pickle()
    if not _is_list_of_text(keys) or sorted(keys) != sorted(storages):
        raise Refused("damaged: it lists other tensors than it has")
    file.seek(pickles.tell())
    for key in keys:
        _fill_from_stream(storages[key], file)
    return content


def _is_list_of_text(value: object) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


def _fill_from_stream(storage: torch.Tensor, file: BinaryIO) -> None:
    buffer = storage.view(torch.uint8).numpy()
    (count,) = struct.unpack("<q", file.read(8))
    if count != len(storage) or file.readinto(buffer) != len(buffer):
        raise Refused("damaged or cut short: it holds less than it claims")


# ----------------------------------------------------------------------------- what files may call


def tensor(
    flat: object,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool = False,
    hooks: object = None,
    metadata: object = None,
) -> torch.Tensor:
    """Give a tensor as a view of its storage, a flat tensor.

    Refused if it does not lie within it, or is larger. What else a file says of it is not needed.
    """
    is_sound = isinstance(flat, torch.Tensor) and not metadata
    if not is_sound or not _is_within(len(flat), offset, size, stride):
        raise Refused("damaged: a tensor that does not lie within its storage")
    return flat.as_strided(size, stride, offset)


def _is_within(length: int, offset: int, size: Sequence[int], stride: Sequence[int]) -> bool:
    if len(size) != len(stride) or len(size) > 8:
        return False
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        return False
    count = math.prod(size)
    if count == 0:
        return True
    steps_to_last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return count <= length and offset + steps_to_last < length


def _parameter(data: object, *flags: object) -> object:
    return data


def _dictionary(pairs: Sequence = ()) -> dict:
    """Give an OrderedDict, which Python 2 wrote as a list of pairs.

    The list is used up, so that calling again and again takes no memory.
    """
    content = {}
    for key, value in pairs:
        _fill(content, [key, value])
    if pairs:
        pairs.clear()
    return content


def _fill(target: object, items: list) -> None:
    """Put items into a list, or key, value, key, value, ... into a dictionary.

    Keys other than names and small numbers could be made to take hours of hashing.
    """
    if type(target) is list:
        target.extend(items)
    elif type(target) is dict and all(map(_is_plain_key, items[::2])):
        target.update(zip(items[::2], items[1::2], strict=True))
    else:
        raise Refused("damaged: a list or dictionary that is none")


def _is_plain_key(key: object) -> bool:
    return type(key) is str or (type(key) is int and 0 <= key < 2**31)


# What is done here where a file calls one of these names.
FUNCTIONS = {
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _dictionary,
    "torch.device": lambda *name: None,
    "builtins.set": lambda items=(): items,
}

# ------------------------------------------------------------------------------------ instructions

LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "SHORT_BINSTRING",
    "BINSTRING",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# Of sets only the items matter here, and nobody asks for them.
EMPTY_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
WITHOUT_EFFECT = {"PROTO", "FRAME", "STOP"}
# All other instructions that torch.save writes, and the method of Follower that does each.
STEPS = {
    "BINPUT": "put",
    "LONG_BINPUT": "put",
    "MEMOIZE": "put_next",
    "BINGET": "get",
    "LONG_BINGET": "get",
    "MARK": "mark",
    "TUPLE1": "tuple_of_last",
    "TUPLE2": "tuple_of_last",
    "TUPLE3": "tuple_of_last",
    "TUPLE": "tuple_since_mark",
    "APPEND": "add_one",
    "SETITEM": "add_one",
    "APPENDS": "add_since_mark",
    "ADDITEMS": "add_since_mark",
    "SETITEMS": "add_since_mark",
    "GLOBAL": "name",
    "STACK_GLOBAL": "name",
    "BINPERSID": "outside",
    "REDUCE": "call",
    "NEWOBJ": "make_module",
    "BUILD": "build",
}
# How many objects an instruction takes off the stack.
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}


class Follower:
    """Follows the instructions of a pickle, as pickletools lists them, without running any.

    A stricter reader is a subclass with fewer names, see own_files.
    """

    names = CLASSES | STORAGES.keys()  # what a file may name
    functions = FUNCTIONS  # what it may name and call

    def __init__(self, storage: StorageReader):
        self.storage = storage
        self.stack = []
        self.outer_stacks = []  # one for each MARK that is still open
        self.memo = {}

    def follow(self, pickle: BinaryIO) -> object:
        """Give the object that a pickle describes.

        Refused if it describes what no ResNet needs. Whatever a damaged one makes Python raise
        besides (IndexError, KeyError, ...) comes through.
        """
        for instruction, value, _ in pickletools.genops(pickle):
            self.take(instruction.name, value)
        return self.stack.pop()

    def take(self, instruction: str, value: object) -> None:
        """Do what one instruction says. value: what stands beside it in the pickle."""
        if instruction in LITERALS:
            self.stack.append(value)
        elif instruction in CONSTANTS:
            self.stack.append(CONSTANTS[instruction])
        elif instruction in EMPTY_CONTAINERS:
            self.stack.append(EMPTY_CONTAINERS[instruction]())
        elif instruction in STEPS:
            step = getattr(self, STEPS[instruction])
            step(instruction, value)
        elif instruction not in WITHOUT_EFFECT:
            raise Refused(
                f"no checkpoint: its pickle has the instruction {instruction},"
                " torch.save writes none"
            )

    def put(self, instruction: str, number: int) -> None:
        """Remember the topmost object under a number."""
        self.memo[number] = self.stack[-1]

    def put_next(self, instruction: str, value: None) -> None:
        """Remember the topmost object under the next number."""
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, instruction: str, number: int) -> None:
        """Take what was remembered."""
        self.stack.append(self.memo[number])

    def mark(self, instruction: str, value: None) -> None:
        """Begin a group of objects."""
        self.outer_stacks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list:
        items = self.stack
        self.stack = self.outer_stacks.pop()
        return items

    def _last(self, count: int) -> list:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def tuple_of_last(self, instruction: str, value: None) -> None:
        """Make the last one, two or three objects a tuple."""
        items = self._last(TAKES[instruction])
        self.stack.append(tuple(items))

    def tuple_since_mark(self, instruction: str, value: None) -> None:
        """Make a tuple of a group."""
        items = self._since_mark()
        self.stack.append(tuple(items))

    def add_one(self, instruction: str, value: None) -> None:
        """Put one item into a list or a dictionary."""
        items = self._last(TAKES[instruction])
        _fill(self.stack[-1], items)

    def add_since_mark(self, instruction: str, value: None) -> None:
        """Put the items of a group into a list or a dictionary."""
        items = self._since_mark()
        _fill(self.stack[-1], items)

    def name(self, instruction: str, value: str | None) -> None:
        """Name a class or a function."""
        if instruction == "GLOBAL":
            module, name = value.split(" ", 1)
        else:
            name = self.stack.pop()
            module = self.stack.pop()
        if type(module) is not str or type(name) is not str:
            raise Refused("damaged: a name that is none")
        # As Python 2 called them, and as torch.save still does.
        full_name = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full_name not in self.names and full_name not in self.functions:
            raise Refused(
                f"refused, nothing of it was run: it asks for {printable(full_name)[:80]},"
                " which no ResNet needs"
            )
        self.stack.append(Name(full_name))

    def outside(self, instruction: str, value: None) -> None:
        """Take what stands outside the pickle.

        It is a storage or, before torch 1.6, a module's class with its source, which is ignored.
        """
        kind, what, *more = _as_arguments(self.stack.pop())
        if kind == "module" and isinstance(what, Name):
            self.stack.append(what)
            return
        if kind != "storage" or not isinstance(what, Name) or what.name not in STORAGES:
            raise Refused("damaged: a storage that is none")
        key, _, count, *view = more  # left out: the device, all goes to the CPU
        if type(key) is not str or type(count) is not int or count < 0 or view not in ([], [None]):
            raise Refused("damaged: a storage that is none")
        dtype = STORAGES[what.name]
        flat = self.storage(dtype, key, count)
        if flat.dtype != dtype or len(flat) != count:
            raise Refused(f"damaged: storage {printable(key)[:40]} has not the size it claims")
        self.stack.append(flat)

    def call(self, instruction: str, value: None) -> None:
        """Call one of the functions."""
        arguments = self.stack.pop()
        called = self.stack.pop()
        if not isinstance(called, Name) or called.name not in self.functions:
            raise Refused("damaged: it calls what cannot be called")
        self.stack.append(self.functions[called.name](*_as_arguments(arguments)))

    def make_module(self, instruction: str, value: None) -> None:
        """Make an object of a class, still without its attributes."""
        self.stack.pop()  # a module's class is called without arguments
        called = self.stack.pop()
        if not isinstance(called, Name) or called.name not in CLASSES:
            raise Refused("damaged: it calls what cannot be called")
        self.stack.append(Module(called.name))

    def build(self, instruction: str, value: None) -> None:
        """Give a module its attributes.

        What a state dict or a parameter has besides its content (_metadata, flags) is not needed.
        """
        state = self.stack.pop()
        if isinstance(self.stack[-1], Module):
            self.stack[-1].attributes = state if type(state) is dict else {}


def _as_arguments(arguments: object) -> tuple:
    # A long tuple could be handed on again and again, for hours.
    if type(arguments) is not tuple or len(arguments) > 10:
        raise Refused("damaged: it calls with wrong arguments")
    return arguments
