"""The model: which networks, their weights, checkpoints in and out, and the evaluation loop. No other module knows."""

import math
import platform
import subprocess
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dl_slicer.cli import InputError, atomic, shown
from dl_slicer.distributed import RANK, WORLD, total
from dl_slicer.model import foreign_files as torch_file
from dl_slicer.patch_sets import batching as loader
from dl_slicer.patch_sets import transforms as augmentation

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NO_NETWORK = f"none of {', '.join(ARCHITECTURES)}"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its weights expect
# What every checkpoint says besides its weights and architecture, and what a file of other people's is taken to mean.
DEFAULTS = {
    "classes": None,
    "mean": list(MEAN),
    "std": list(STD),
    "image_size": 224,
    "patch_size": None,
    "stride": None,
    "epoch": None,
}
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
)  # usual keys of weights in a dictionary


def build(arch, classes, weights="none"):
    """A torchvision ResNet whose last layer has `classes` outputs.

    weights: "imagenet" (IMAGENET1K_V1), "imagenet-v2", "none", or a file of this architecture in any form that read_file takes,
    whose last layer is left out if it has another number of classes. InputError if they are not to be had or do not fit.
    """
    model = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    if weights == "none":
        return model
    if weights in ("imagenet", "imagenet-v2"):
        state = imagenet(arch, "IMAGENET1K_V1" if weights == "imagenet" else "IMAGENET1K_V2")
    else:
        state = read_file(weights)["model"]
        if arch_of(state) != arch:
            raise InputError(
                f"--weights {shown(weights)}: weights of {arch_of(state) or NO_NETWORK}, not of --arch {arch}"
            )
    given = state["fc.weight"].shape[0]
    if given != classes:
        if RANK == 0:
            print(
                f"--weights {shown(weights)}: its last layer has {given} classes, a new one with {classes} takes its place"
            )
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        state |= {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    load_state(model, state, f"--weights {shown(weights)}")
    return model


def imagenet(arch, version):
    """torchvision's ImageNet weights as a state dict; downloaded once, then taken from torch's cache."""
    available = torchvision.models.get_model_weights(arch)
    if version not in available.__members__:
        raise InputError(
            f"--weights imagenet-v2: torchvision has none for {arch}; take --weights imagenet"
        )
    weights = available[version]
    try:
        # weights_only: a file that somebody else has put into the cache is not unpickled freely either.
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except Exception as error:  # no connection, no space, a damaged file in the cache: torch and urllib raise a dozen kinds
        reason = shown(" ".join(str(error).split())[:100] or type(error).__name__)
        raise InputError(
            f"ImageNet weights for {arch} cannot be had ({reason}): without a connection, download {weights.url} elsewhere "
            f"and give --weights PATH, or train from scratch with --weights none"
        ) from None


def load_state(model, state, what):
    """Fill a model with a state dict. InputError if it does not fit, or has values that are not finite: every prediction would be NaN."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).splitlines()[1:2] or [str(error)]
        raise InputError(
            f"{what}: does not fit the network ({shown(detail[0].strip()[:200])})"
        ) from None
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(f"{what}: damaged, {key} has values that are not finite")


def arch_of(state):
    """Which of our networks a state dict belongs to, by its blocks and its last layer; None if none."""
    blocks = [
        len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")})
        for i in (1, 2, 3, 4)
    ]
    bottleneck = "layer1.0.conv3.weight" in state
    depth = {
        (2, 2, 2, 2, False): 18,
        (3, 4, 6, 3, False): 34,
        (3, 4, 6, 3, True): 50,
        (3, 4, 23, 3, True): 101,
        (3, 8, 36, 3, True): 152,
    }.get((*blocks, bottleneck))
    last = state.get("fc.weight", torch.empty(0))
    return (
        f"resnet{depth}"
        if depth and last.ndim == 2 and len(last) and last.shape[1] == (2048 if bottleneck else 512)
        else None
    )


def read_file(path):
    """What a file of weights holds: "model" (a state dict), "arch" (None if it is none of ours), the keys of DEFAULTS, and more if it is a checkpoint of ours.

    By its content: a checkpoint of ours, a whole ResNet pickled from any device, alone or in DataParallel, a state dict with or
    without module. before its keys, or a dictionary with one of these in it. Nothing is unpickled, see torch_file. InputError if it
    is none of these, damaged, or asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{shown(path)}: {'no regular file' if path.exists() else 'no such file'}")
    content = torch_file.read(path)
    weights = find_weights(content)
    if weights is None:
        raise InputError(
            f"{shown(path)}: no checkpoint: neither a model, nor a state dict, nor one of these under {', '.join(WRAPPERS)}"
        )
    state = (
        state_of_module(weights, path)
        if isinstance(weights, torch_file.Module)
        else without_prefix(weights)
    )
    if isinstance(content, dict) and {"model", "arch", *DEFAULTS} <= content.keys():
        checkpoint = {**content, "model": state}
    else:
        arch = arch_of(state)
        checkpoint = {
            **DEFAULTS,
            "model": state,
            "arch": arch,
            "classes": find_classes(content) if arch else None,
        }
    check_fields(checkpoint, path)
    return checkpoint


def find_weights(content):
    """The whole model or the state dict in what a file holds; None if there is none."""
    candidates = (
        [content, *(content.get(key) for key in WRAPPERS)]
        if isinstance(content, dict)
        else [content]
    )
    return next(
        (
            candidate
            for candidate in candidates
            if isinstance(candidate, torch_file.Module) or is_state(candidate)
        ),
        None,
    )


def is_state(content):
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(
            type(key) is str and isinstance(value, torch.Tensor) for key, value in content.items()
        )
    )


def find_classes(content):
    """The class names that other people's files may have beside the weights; None if there are none."""
    for key in ("classes", "class_names") if isinstance(content, dict) else ():
        if isinstance(content.get(key), (list, tuple)):
            return list(content[key])
    numbers = (
        content.get("class_to_idx") if isinstance(content, dict) else None
    )  # of torchvision's ImageFolder
    if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
        return None
    return sorted(numbers, key=numbers.get)


def without_prefix(state):
    """A state dict without what wrappers put before all keys: module. (DataParallel), _orig_mod. (torch.compile), or both."""
    prefix = min(
        (key for key in state if key.endswith("conv1.weight")), key=len, default=""
    ).removesuffix("conv1.weight")
    return (
        {key.removeprefix(prefix): value for key, value in state.items()}
        if all(key.startswith(prefix) for key in state)
        else state
    )


def state_of_module(module, path):
    """The state dict of a whole model. InputError if the model would compute anything else than torchvision's with these weights."""
    try:
        state = without_prefix(module.state_dict())
        theirs = {
            name.removeprefix("module").removeprefix("."): layer
            for name, layer in module.named_modules().items()
        }
        arch = arch_of(state) if is_state(state) else None
        if arch is None:
            raise torch_file.Refused(f"a model, but {NO_NETWORK}")
        with torch.device("meta"):  # the layers without their weights
            ours = dict(torchvision.models.get_model(arch, weights=None).named_modules())
        for name in sorted(ours.keys() | theirs.keys()):
            check_layer(name, ours.get(name), theirs.get(name))
    except torch_file.Refused as error:
        raise InputError(f"{shown(path)}: {error}") from None
    return state


def check_layer(name, ours, theirs):
    """Refused if a layer that a file describes differs from torchvision's of that name in more than its weights."""
    kind, wanted = (
        theirs.kind.rpartition(".")[2] if theirs else "missing",
        type(ours).__name__ if ours else "missing",
    )
    size = theirs.attributes.get("kernel_size") if theirs else None
    if name == "avgpool" and kind == "AvgPool2d" and type(size) is int and size == 7:
        return  # before torchvision 0.3, and the same at 224 pixels
    if kind != wanted:
        raise torch_file.Refused(
            f"no ResNet as torchvision has it: {name or 'the model'} is {kind}, in torchvision {wanted}"
        )
    for setting in (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "ceil_mode",
        "output_size",
        "eps",
    ):
        wanted = getattr(ours, setting, None)
        found = theirs.attributes.get(setting, wanted)  # older versions had fewer
        plain = (
            type(found) in (int, float, bool, str)
            or type(found) is tuple
            and all(type(number) is int for number in found)
        )
        if found is not wanted and not (plain and found == wanted):
            raise torch_file.Refused(
                f"no ResNet as torchvision has it: {name} has another {setting} than {wanted}"
            )


def check_fields(checkpoint, path):
    """InputError if a field is not of the kind that train_classification.py writes there: nothing shall trip over it later."""
    arch = arch_of(checkpoint["model"])
    outputs = len(checkpoint["model"]["fc.weight"]) if arch else 0

    def three(values, least):
        return (
            isinstance(values, list)
            and len(values) == 3
            and all(type(value) is float and least <= value < 1000 for value in values)
        )

    def whole(value, least=1, most=2**31):
        return type(value) is int and least <= value <= most

    def names(values):
        return (
            isinstance(values, list)
            and all(type(value) is str for value in values)
            and len(set(values)) == len(values) == outputs
        )

    is_right = {
        "arch": lambda value: type(value) in (str, type(None)) and value == arch,
        "classes": lambda value: value is None or names(value),
        "mean": lambda value: three(value, least=0),
        "std": lambda value: three(value, least=1e-6),
        "image_size": lambda value: whole(value, most=4096),
        "patch_size": lambda value: value is None or whole(value),
        "stride": lambda value: value is None or whole(value),
        "epoch": lambda value: value is None or whole(value, least=0),
    }
    wrong = [key for key, right in is_right.items() if not right(checkpoint[key])]
    wrong += [
        key
        for key in ("optimizer", "metrics", "args")
        if not isinstance(checkpoint.get(key, {}), dict)
    ]
    if wrong:
        raise InputError(
            f"{shown(path)}: damaged: its {', '.join(wrong)} cannot be right for {arch or 'weights of an unknown network'} with {outputs} outputs"
        )


def load_checkpoint(path):
    """(model in eval mode, checkpoint as read_file gives it) of a file of weights. InputError if it is none, or of no network of ours.

    The checkpoint's "classes" are None where the file does not name them: class_names() takes them from a data set.
    """
    checkpoint = read_file(path)
    if checkpoint["arch"] is None:
        raise InputError(f"{shown(path)}: weights of {NO_NETWORK}")
    model = build(checkpoint["arch"], len(checkpoint["model"]["fc.weight"]))
    load_state(model, checkpoint["model"], shown(path))
    return model.eval(), checkpoint


def save_checkpoint(path, checkpoint):
    """Write tensors and plain types, whole or not at all."""
    with atomic(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # in which torch wraps a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def class_names(checkpoint, patch_set, data, path):
    """The names of a checkpoint's classes, which must be those of the data set. InputError if that has others, or another number.

    Where the file has none they are the data set's, in its order: that of the sorted folder names, as torchvision's ImageFolder
    numbered them when the model was trained.
    """
    if checkpoint["classes"] is not None:
        check_classes(patch_set, checkpoint["classes"], data, path)
    elif len(checkpoint["model"]["fc.weight"]) != len(patch_set.classes):
        raise InputError(
            f"{shown(path)} tells {len(checkpoint['model']['fc.weight'])} classes apart, without their names; "
            f"{shown(data)} has {len(patch_set.classes)}"
        )
    elif RANK == 0:
        print(
            f"{shown(path)}: has no class names; taken to be those of {shown(data)} in sorted order"
        )
    return list(patch_set.classes)


def check_classes(patch_set, classes, data, checkpoint):
    """InputError if a patch set has other classes than a checkpoint, naming them."""
    if list(patch_set.classes) != list(classes):
        surplus = sorted(set(patch_set.classes) - set(classes)) or ["none"]
        lacking = sorted(set(classes) - set(patch_set.classes)) or ["none"]
        few = [
            shown(", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""))
            for names in (surplus, lacking)
        ]
        raise InputError(
            f"{shown(data)} has other classes than {shown(checkpoint)}: only in the data: {few[0]}; only in the checkpoint: {few[1]}"
        )


def pick_device(name):
    """auto: CUDA if there is one, else the CPU; or any device torch knows by name. InputError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {shown(name)}: not to be had ({' '.join(str(error).split())[:120]})"
        ) from None
    if device.type == "meta":
        raise InputError("--device meta: computes nothing")
    return device


def pick_dtype(amp, device):
    """The precision to compute in: torch.bfloat16 (by autocast) or torch.float32. auto takes bf16 where the device is fast at it."""
    if amp == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        else:  # without such instructions bf16 is emulated, slower than float32
            capabilities = getattr(torch.cpu, "get_capabilities", dict)()
            fast = device.type == "cpu" and bool(
                capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
            )
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if amp == "bf16" else torch.float32


def autocast(device, dtype):
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def evaluate(
    model,
    patch_set,
    device,
    dtype,
    mean=MEAN,
    std=STD,
    workers=0,
    desc="evaluating",
    stop=lambda: False,
    features=False,
    tta=False,
    score=False,
):
    """Logits of every patch, once, in the set's order: float32 tensor (N, classes) on the CPU. The model is left in eval mode.

    score: keep of each patch its loss and whether it is right (1 or 0) in place of the logits, which are large: (N, 2).
    features: give (logits, features) instead, the latter what the last layer is given, float32 (N, D) on the CPU.
    tta: of the eight symmetries of each patch the mean probabilities (as their logarithms) and the mean features.

    With several processes each computes every WORLD-th batch and all get the whole result; the batches, and so the figures, are
    those of one process. stop: asked after each batch; when it says True the evaluation ends and None is returned.
    """
    model.eval()
    batch_size = 512 if device.type == "cuda" else 64
    order = [
        range(first, min(first + batch_size, len(patch_set)))
        for first in range(0, len(patch_set), batch_size)
    ]
    batches = loader.batches(patch_set, order[RANK::WORLD], device, workers)
    kept = torch.zeros(len(patch_set), 2 if score else len(patch_set.classes), device=device)
    seen = torch.zeros(len(patch_set), model.fc.in_features if features else 0, device=device)

    def keep(layer, inputs):
        seen[batch.start : batch.stop] += inputs[0].float() / len(views)

    with (
        torch.inference_mode(),
        autocast(device, dtype),
        model.fc.register_forward_pre_hook(keep) if features else nullcontext(),
        tqdm(
            total=len(patch_set),
            desc=desc,
            unit=" patches",
            disable=None if RANK == 0 else True,
            leave=False,
        ) as bar,
    ):
        for i in range(0, len(order), WORLD):
            if i + RANK < len(order):  # else the others still have one
                batch = order[i + RANK]
                images, labels = next(batches)
                views = [loader.normalise(images, mean, std)]
                if tta:
                    views = list(augmentation.symmetries(views[0]))
                logits = [model(view).float() for view in views]
                logits = (
                    torch.stack(logits).log_softmax(2).logsumexp(0) - math.log(len(views))
                    if tta
                    else logits[0]
                )
                kept[batch.start : batch.stop] = (
                    logits
                    if not score
                    else torch.stack(
                        [
                            cross_entropy(logits, labels, reduction="none"),
                            (logits.argmax(1) == labels).float(),
                        ],
                        1,
                    )
                )
            bar.update(sum(map(len, order[i : i + WORLD])))
            if stop():
                return None
        return (total(kept).cpu(), total(seen).cpu()) if features else total(kept).cpu()


@lru_cache
def versions():
    """Of everything that can change a result, and the commit of this checkout."""
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        found["commit"] = git.stdout.strip() or None
    except OSError:  # no git on this machine
        found["commit"] = None
    return found
