"""What torch.save wrote, read as plain data: tensors, dictionaries, and modules as the attributes they had. Nothing is unpickled.

A pickle is a program: it may import and call anything. torch.load(weights_only=True) runs it with fewer names, but then builds the
classes that are listed, allocates what the file claims to need, and knows no whole models in the format before torch 1.6. Here its
instructions are followed by hand and no name leads to an import: the names below stand for a few functions of this module, every
other one ends the reading. Memory stays within the file's size and what LIMIT bytes of instructions can list.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from typing import NamedTuple

import numpy as np
import torch

from dl_slicer.cli import InputError, printable

LIMIT = 2**22  # bytes of instructions; a ResNet-152 with Adam's state has 0.3 MB
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the format before torch 1.6 begins with
# All that a ResNet on any device needs, alone or in DataParallel. AvgPool2d is what torchvision had before AdaptiveAvgPool2d.
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
    "torch.nn.modules.pooling.AvgPool2d",
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


class Refused(Exception):
    """Why a file is not read."""


class Name(NamedTuple):
    """A class or function that a file names. Only the name."""

    name: str


class Module:
    """A module that a file describes: the name of its class and its attributes."""

    def __init__(self, kind):
        self.kind, self.attributes = kind, {}

    def part(self, key):
        """Its _modules, _parameters or _buffers."""
        part = self.attributes.get(key)
        if (
            not isinstance(part, dict)
            or len(part) > 100
            or not all(type(name) is str and len(name) < 100 for name in part)
        ):
            raise Refused(f"damaged: a {self.kind} without {key}")
        return {name: value for name, value in part.items() if value is not None}

    def named_modules(self):
        """{dotted name: Module} of itself ("") and all below."""
        found, waiting = {}, [("", self)]
        while waiting:
            name, module = waiting.pop()
            # A damaged file's module may contain itself; a ResNet-152 is 520 modules, six deep.
            if (
                not isinstance(module, Module)
                or len(found) + len(waiting) > 2000
                or name.count(".") > 10
            ):
                raise Refused("damaged: its modules are no tree of modules")
            found[name] = module
            waiting += [
                (f"{name}.{child}".lstrip("."), value)
                for child, value in module.part("_modules").items()
            ]
        return found

    def state_dict(self):
        """{dotted name: value} of all parameters and buffers."""
        return {
            f"{name}.{key}".lstrip("."): value
            for name, module in self.named_modules().items()
            for part in ("_parameters", "_buffers")
            for key, value in module.part(part).items()
        }


def read(path):
    """The object that torch.save wrote to this file. InputError, in one line, if it is no such file, damaged, or asks for more than a ResNet needs."""
    with open(path, "rb") as file:
        try:
            head = file.read(4)
            file.seek(0)
            if not head:
                raise Refused("an empty file")
            if head == b"PK\x03\x04":
                return _read_zip(file)
            if head[:1] == b"\x80":
                return _read_stream(file)
            raise Refused("no checkpoint: torch.save writes no such file")
        except Refused as error:
            reason = str(error)
        except (
            Exception
        ) as error:  # whatever a damaged file makes zipfile, pickletools, struct or torch raise
            reason = f"damaged or cut short ({' '.join(str(error).split())[:100] or type(error).__name__})"
    raise InputError(f"{printable(path)}: {reason}")


def _read_zip(file):
    """The format since torch 1.6: a zip archive of the pickle and one uncompressed record a storage."""
    archive = zipfile.ZipFile(file)
    pickles = [
        name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(pickles) != 1:
        raise Refused("a zip archive, but no checkpoint: torch.save did not write it")
    folder = pickles[0].removesuffix("data.pkl")
    storages, budget = {}, os.fstat(file.fileno()).st_size

    def record(name, most):
        info = archive.getinfo(folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
            raise Refused(
                f"no checkpoint: its record {printable(name)[:40]} is compressed or too large"
            )
        return archive.read(info)  # checks the record's checksum

    def storage(dtype, key, count):
        nonlocal budget
        if key not in storages:
            content = record(f"data/{key}", most=budget)
            budget -= len(content)
            storages[key] = torch.empty(len(content) // dtype.itemsize, dtype=dtype)
            storages[key].view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)
        return storages[key]

    if folder + "byteorder" in archive.namelist() and record("byteorder", most=10) != b"little":
        raise Refused("written on a big-endian machine; convert it there")
    return _follow(io.BytesIO(record("data.pkl", most=LIMIT)), storage)


def _read_stream(file):
    """The format before torch 1.6: five pickles, the fourth being the object and the fifth its storages' keys, then the storages."""
    pickles = io.BytesIO(file.read(LIMIT))
    storages, budget = {}, os.fstat(file.fileno()).st_size

    def storage(dtype, key, count):
        nonlocal budget
        if key not in storages:
            budget -= count * dtype.itemsize
            if budget < 0:
                raise Refused("damaged or cut short: it holds less than it claims")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    if _follow(pickles, storage) != MAGIC or _follow(pickles, storage) != PROTOCOL:
        raise Refused("no checkpoint: a pickle that torch.save did not write")
    if _follow(pickles, storage).get("little_endian") is not True:
        raise Refused("written on a big-endian machine; convert it there")
    content, keys = _follow(pickles, storage), _follow(pickles, storage)
    if (
        type(keys) is not list
        or not all(type(key) is str for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise Refused("damaged: it lists other tensors than it has")
    file.seek(pickles.tell())
    for key in keys:
        buffer = storages[key].view(torch.uint8).numpy()
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(storages[key]) or file.readinto(buffer) != len(buffer):
            raise Refused("damaged or cut short: it holds less than it claims")
    return content


def _follow(pickle, storage):
    """The object that a pickle describes, by its instructions. storage(dtype, key, count): the flat tensor behind tensors."""
    stack, below, memo = [], [], {}
    for instruction, value, _ in pickletools.genops(pickle):
        op = instruction.name
        if op in LITERALS:
            stack.append(value)
        elif op in CONSTANTS:
            stack.append(CONSTANTS[op])
        elif op in EMPTY:
            stack.append(EMPTY[op]())
        elif op in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op == "MEMOIZE" else value] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(op[-1]) :] = [tuple(stack[-int(op[-1]) :])]
        elif op == "MARK":
            below.append(stack)
            stack = []
        elif op in ("TUPLE", "APPENDS", "ADDITEMS", "SETITEMS"):
            items, stack = stack, below.pop()
            stack.append(tuple(items)) if op == "TUPLE" else _fill(stack[-1], items)
        elif op in ("APPEND", "SETITEM"):
            count = 1 if op == "APPEND" else 2
            items, stack[-count:] = stack[-count:], []
            _fill(stack[-1], items)
        elif op in ("GLOBAL", "STACK_GLOBAL"):
            name, module = (
                (stack.pop(), stack.pop())
                if op == "STACK_GLOBAL"
                else reversed(value.split(" ", 1))
            )
            stack.append(_allowed(module, name))
        elif op == "BINPERSID":
            stack.append(_persistent(storage, *_few(stack.pop())))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            if not isinstance(called, Name) or called.name not in (
                FUNCTIONS if op == "REDUCE" else CLASSES
            ):
                raise Refused("damaged: it calls what cannot be called")
            stack.append(
                FUNCTIONS[called.name](*_few(arguments)) if op == "REDUCE" else Module(called.name)
            )
        elif op == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Module):
                stack[-1].attributes = state if type(state) is dict else {}
            # Else what a state dict or a parameter has besides its content (_metadata, flags): not needed.
        elif op not in ("PROTO", "FRAME", "STOP"):
            raise Refused(
                f"no checkpoint: its pickle has the instruction {op}, torch.save writes none"
            )
    return stack.pop()


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
EMPTY = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}  # of sets only the items matter here, and nobody asks for them


def _fill(target, items):
    """What APPEND and SETITEM do. Keys other than names and small numbers could be made to take hours of hashing."""
    if type(target) is list:
        target.extend(items)
    elif type(target) is dict and all(
        type(key) is str or type(key) is int and 0 <= key < 2**31 for key in items[::2]
    ):
        target.update(zip(items[::2], items[1::2], strict=True))
    else:
        raise Refused("damaged: a list or dictionary that is none")


def _few(arguments):
    if (
        type(arguments) is not tuple or len(arguments) > 10
    ):  # a long one could be handed on again and again, for hours
        raise Refused("damaged: it calls with wrong arguments")
    return arguments


def _allowed(module, name):
    if type(module) is not str or type(name) is not str:
        raise Refused("damaged: a name that is none")
    name = f"{module}.{name}".replace(
        "__builtin__.", "builtins."
    )  # as Python 2 called them, and as torch.save still does
    if name not in CLASSES and name not in STORAGES and name not in FUNCTIONS:
        raise Refused(
            f"refused, nothing of it was run: it asks for {printable(name)[:80]}, which no ResNet needs"
        )
    return Name(name)


def _persistent(storage, kind, what, *more):
    """What stands outside the pickle: a storage, or, before torch 1.6, a module's class with its source, which is not looked at."""
    if kind == "module" and isinstance(what, Name):
        return what
    if kind != "storage" or not isinstance(what, Name) or what.name not in STORAGES:
        raise Refused("damaged: a storage that is none")
    key, _, count, *view = more  # left out: the device, all goes to the CPU
    dtype = STORAGES[what.name]
    if type(key) is not str or type(count) is not int or count < 0 or view not in ([], [None]):
        raise Refused("damaged: a storage that is none")
    flat = storage(dtype, key, count)
    if flat.dtype != dtype or len(flat) != count:
        raise Refused(f"damaged: storage {printable(key)[:40]} has not the size it claims")
    return flat


def _tensor(flat, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """A tensor as a view of its storage, if it lies within it and is no larger."""
    if (
        not isinstance(flat, torch.Tensor)
        or len(size) != len(stride)
        or len(size) > 8
        or metadata
        or not all(
            type(number) is int and 0 <= number < 2**31 for number in (offset, *size, *stride)
        )
        or math.prod(size) > len(flat)
        or (
            math.prod(size)
            and offset + sum((n - 1) * step for n, step in zip(size, stride)) >= len(flat)
        )
    ):
        raise Refused("damaged: a tensor that does not lie within its storage")
    return flat.as_strided(size, stride, offset)


def _dictionary(pairs=()):
    """An OrderedDict, which Python 2 wrote as a list of pairs. The list is used up, so that calling again and again takes no memory."""
    content = {}
    for key, value in pairs:
        _fill(content, [key, value])
    if pairs:
        pairs.clear()
    return content


FUNCTIONS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *flags: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *flags: data,
    "collections.OrderedDict": _dictionary,
    "torch.device": lambda *name: None,
    "builtins.set": lambda items=(): items,
}
