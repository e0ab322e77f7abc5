"""One epoch: of training, and of validation."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dl_slicer.distributed import RANK, WORLD, total
from dl_slicer.model import devices, evaluation
from dl_slicer.model.evaluation import Setup
from dl_slicer.patch_sets import batching, ordering, transforms
from dl_slicer.patch_sets.grouping import GroupedOrder
from dl_slicer.patch_sets.reading import PatchSet
from dl_slicer.training.runs import Run, Totals
from dl_slicer.training.schedules import learning_rate
from dl_slicer.training.tracking import Point

OWN_SHARE = slice(RANK, None, WORLD)  # of a batch: the patches that this process takes
SECONDS_BETWEEN_CHECKS = 1


def train_epoch(
    run: Run,
    network: nn.Module,
    patches: PatchSet,
    order: np.ndarray | GroupedOrder,
    setup: Setup,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train on order[run.step:], or until stop() says True. Bring run.step and run.totals on.

    run.patches_a_second is then the rate of this call; None if it took no step.

    network: run.model as preparing.trainable gives it.
    order: the patches of the epoch, whole numbers (steps, batch size), as orders gives them.
    stop: asked after each step. With --save-every the run is also saved in between.
    InputError if the loss is no longer finite, or the device's memory is too small.
    """
    steps, batch_size = order.shape
    first_step = run.step
    started = time.time()
    network.train()
    totals = _on_device(run.totals, setup.device)
    checked_at = 0.0
    batches = batching.batches(
        patches, order[run.step :, OWN_SHARE], setup.device, workers=setup.workers
    )
    with (
        devices.explain_out_of_memory(run.args.batch_size, _smaller_batch_flag(run)),
        _progress_bar(run, order) as bar,
    ):
        for images, labels in batches:
            images = _as_seen_in_training(images, run, batch_size, setup)
            _set_learning_rate(run, steps)
            totals += _train_step(run, network, images, labels, setup)
            run.step += 1
            bar.update(batch_size)
            # Fetching makes a GPU wait, so it is done only now and then.
            if time.time() - checked_at > SECONDS_BETWEEN_CHECKS:
                checked_at = time.time()
                _check_and_show(run, totals, run.step * len(labels), bar)
            if stop():
                break
            is_due = run.args.save_every and run.step % run.args.save_every == 0
            if is_due and run.step < steps:
                run.totals = _fetched(totals, run.step * batch_size)
                run.save("last.pth")
    run.totals = _fetched(totals, run.step * batch_size)
    patches_done = (run.step - first_step) * batch_size
    run.patches_a_second = patches_done / (time.time() - started) if patches_done else None
    # Only where the epoch ends, and once: a run that was stopped must come to the same bits.
    if first_step < run.step == steps:
        run.average_batch_norms()


def validate(
    run: Run, patches: PatchSet, setup: Setup, stop: Callable[[], bool] = lambda: False
) -> Tensor | None:
    """Score patches by the network that is saved, as evaluation.score gives it.

    Who watches the run is shown the confusion of the last epoch, of which no other pass is made.
    """
    number = run.epoch + 1
    confusion = None
    if run.args.track and number == run.args.epochs:
        size = len(patches.classes)
        confusion = torch.zeros(size, size, dtype=torch.int64, device=setup.device)
    scores = evaluation.score(run.result, patches, setup, "validation", stop, confusion)
    if confusion is not None and scores is not None:
        counts = devices.to_cpu(total(confusion)).numpy()
        run.tracker.show_confusion(counts, patches.classes, number)
    return scores


def _on_device(totals: Totals, device: torch.device) -> Tensor:
    sums = [totals.loss, totals.correct]
    return torch.tensor(sums, dtype=devices.sum_dtype(device), device=device)


def _fetched(totals: Tensor, patches: int) -> Totals:
    loss, correct = devices.to_cpu(totals).tolist()
    return Totals(loss, correct, patches)


def _smaller_batch_flag(run: Run) -> str:
    """What to type before half the batch size, where the device's memory is too small for it."""
    is_saved = run.epoch > 0 or run.step > 0
    if not is_saved:
        return "--batch-size"
    # A saved run cannot go on with another batch size.
    return "--resume once the device has room again, or another --out and --batch-size"


def _progress_bar(run: Run, order: np.ndarray | GroupedOrder) -> tqdm:
    return tqdm(
        total=order.size,
        initial=run.step * order.shape[1],
        desc=f"epoch {run.epoch + 1}",
        unit=" patches",
        leave=False,
        disable=None if RANK == 0 else True,
    )


def _as_seen_in_training(images: Tensor, run: Run, batch_size: int, setup: Setup) -> Tensor:
    """Give the patches of this process normalised, flipped, turned and in another light.

    What is drawn is drawn for the whole batch, so that it does not depend on the processes.
    """
    args = run.args
    moment = (batch_size, args.seed, run.epoch, run.step)
    flipped = None
    if args.flips:
        drawn_flips = ordering.draw_flips(*moment)[:, OWN_SHARE]
        flipped = batching.to_device(drawn_flips, setup.device)
    images = transforms.normalise(images, setup.mean, setup.std, flipped)
    if not args.turns and not args.light:
        return images
    changes = {
        name: batching.to_device(values[OWN_SHARE], setup.device)
        for name, values in transforms.draw_changes(*moment).items()
    }
    return transforms.augment(images, changes, setup.mean, setup.std, args.turns, args.light)


def _set_learning_rate(run: Run, steps: int) -> None:
    rate = learning_rate(run.args, run.epoch + (run.step + 0.5) / steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate


def _train_step(
    run: Run, network: nn.Module, images: Tensor, labels: Tensor, setup: Setup
) -> Tensor:
    """Bring the weights on by one batch. Give its loss and its right answers, summed: (2,)."""
    with devices.autocast(setup.device, setup.dtype):
        logits = network(images)
        loss = cross_entropy(logits, labels, label_smoothing=run.args.label_smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    if run.average:
        run.average.update_parameters(run.model)
    correct = (logits.argmax(1) == labels).sum()
    dtype = devices.sum_dtype(setup.device)
    return torch.stack([loss.detach().to(dtype) * len(labels), correct.to(dtype)])


def _check_and_show(run: Run, totals: Tensor, patches: int, bar: tqdm) -> None:
    """End a run whose loss is no longer finite. Show the mean loss and accuracy so far.

    patches: of this process, to which the totals belong.
    """
    # One process for all: where the loss of another one is infinite, so are the gradients of all.
    if RANK != 0:
        return
    if not totals.isfinite().all():
        run.refuse_overflow()
    loss, correct = devices.to_cpu(totals).tolist()
    bar.set_postfix(loss=f"{loss / patches:.3f}", accuracy=f"{correct / patches:.3f}")
    point = Point(run.epoch, time.time(), loss, correct, patches)
    run.tracker.note_progress(point, run.step, run.optimizer.param_groups[0]["lr"])
