"""How far a run was when its checkpoint was saved, checked before the run goes on with it.

A file that was edited or damaged in a way that still can be read must not lead astray: the kernels
of fused optimisers read and write beyond a state that is smaller than its weights.
"""

import math
from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dl_slicer.cli import InputError, printable
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets.on_disk import is_whole_number
from dl_slicer.training import optimisers
from dl_slicer.training.history import COLUMNS


def check_progress(previous: Checkpoint, args: Namespace, steps: int, file: str) -> None:
    """InputError if a field that training alone uses is not as Run.save writes it.

    steps: of an epoch. file: what the checkpoint is called in the message.
    """
    metrics = previous.metrics
    is_right = {
        "step": is_whole_number(previous.step, least=0, most=steps),
        "weights": _are_weights(previous.weights) if args.average else previous.weights is None,
        "rng": _is_state_of_random_numbers(previous.rng),
        "metrics": _is_history(metrics.get("history"), previous.epoch)
        and _is_best(metrics.get("best"), previous.epoch)
        and _are_sums(metrics.get("sums")),
    }
    wrong = [key for key, right in is_right.items() if not right]
    if wrong:
        raise damaged(file, f"its {', '.join(wrong)} cannot be right")


def check_history(previous: Checkpoint, file: str) -> None:
    """InputError if the history of a probe, which has no other progress, is not as it was written.

    file: what the checkpoint is called in the message.
    """
    metrics = previous.metrics
    is_history = _is_history(metrics.get("history"), previous.epoch)
    if not is_history or not _is_best(metrics.get("best"), previous.epoch):
        raise damaged(file, "its metrics cannot be right")


def load_optimizer(optimizer: Optimizer, saved: dict, args: Namespace, file: str) -> None:
    """Give an optimiser that has just been made the state that a checkpoint holds.

    Its settings stay those of the flags, but for the learning rate, which the schedule has set.
    args: the flags it was made from. InputError if the state is not one of its weights.
    """
    own = optimizer.state_dict()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    try:
        rates = [float(group["lr"]) for group in saved["param_groups"]]
        groups = [
            group | {"lr": rate} for group, rate in zip(own["param_groups"], rates, strict=True)
        ]
        states = [saved["state"][number] for number in range(len(weights))]
        names = _state_names(args)
        is_right = len(saved["state"]) == len(weights) and all(
            state.keys() == names and all(_belongs(value, weight) for value in state.values())
            for state, weight in zip(states, weights, strict=True)
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        is_right = False
    if not is_right or not all(math.isfinite(rate) for rate in rates):
        raise damaged(file, f"its optimizer is not that of --optimizer {args.optimizer}")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def damaged(file: str, reason: str) -> InputError:
    """Give the error of a checkpoint that cannot be gone on with."""
    return InputError(
        f"{printable(file)}: damaged: {reason}; bring back a whole copy, or choose another --out"
    )


def _state_names(args: Namespace) -> set[str]:
    """What the optimiser remembers of each weight: what it does of one."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = optimisers.make_optimizer(args, model)
    model.weight.grad = torch.zeros(1, 1)
    optimizer.step()
    return set(optimizer.state[model.weight])


def _belongs(value: object, weight: Tensor) -> bool:
    """Whether a value is one for the whole weight, or one for each number in it."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return False
    return value.shape in (torch.Size(), weight.shape) and bool(value.isfinite().all())


def _are_weights(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, Tensor) for each in value.values())


def _is_state_of_random_numbers(value: object) -> bool:
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError):
        return False
    return True


def _is_history(value: object, epochs: int) -> bool:
    if not isinstance(value, list) or len(value) != epochs:
        return False
    return all(
        isinstance(row, dict)
        and set(row) == set(COLUMNS)
        and all(_is_number(each) for each in row.values())
        and row["epoch"] == number
        for number, row in enumerate(value, 1)
    )


def _is_best(value: object, epochs: int) -> bool:
    if epochs == 0:
        return value is None
    if not isinstance(value, dict) or set(value) != {"epoch", "val_accuracy"}:
        return False
    return is_whole_number(value["epoch"], most=epochs) and _is_number(value["val_accuracy"])


def _are_sums(value: object) -> bool:
    """Whether a value is the loss, the right answers and the number of the patches so far."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    *sums, patches = value
    return all(_is_number(each) for each in sums) and is_whole_number(patches, least=0)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
