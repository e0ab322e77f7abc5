"""One epoch of training."""

import time

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dl_slicer.cli import InputError
from dl_slicer.distributed import RANK, WORLD
from dl_slicer.model import devices, networks
from dl_slicer.patch_sets import batching, ordering, transforms
from dl_slicer.training import optimisers


def train_epoch(
    network,
    optimizer,
    average,
    train,
    order,
    epoch,
    step,
    sums,
    args,
    device,
    dtype,
    workers,
    stop,
    save,
):
    """Train on order[step:], or until stop() says True. Returns the steps done, and (loss, correct) summed over this process's
    patches and the number of patches of all processes; sums is where to go on from, as saved."""
    network.train()
    totals = torch.tensor(sums[:2] if RANK == 0 else [0.0, 0.0], dtype=torch.float64, device=device)
    share = slice(RANK, None, WORLD)
    shown_at = 0.0
    with tqdm(
        total=order.size,
        initial=step * order.shape[1],
        desc=f"epoch {epoch + 1}",
        unit=" patches",
        leave=False,
        disable=None if RANK == 0 else True,
    ) as bar:
        for images, labels in batching.batches(train, order[step:, share], device, workers):
            flipped = ordering.draw_flips(order.shape[1], args.seed, epoch, step)[:, share]
            flipped = batching.to_device(flipped, device) if args.flips else None
            images = transforms.normalise(images, networks.MEAN, networks.STD, flipped)
            if args.turns or args.light:
                drawn = {
                    key: batching.to_device(values[share], device)
                    for key, values in transforms.draw_changes(
                        order.shape[1], args.seed, epoch, step
                    ).items()
                }
                images = transforms.augment(
                    images, drawn, networks.MEAN, networks.STD, args.turns, args.light
                )
            with devices.autocast(device, dtype):
                logits = network(images)
                loss = cross_entropy(logits, labels, label_smoothing=args.label_smoothing)
            for group in optimizer.param_groups:
                group["lr"] = optimisers.learning_rate(args, epoch + (step + 0.5) / len(order))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average:
                average.update_parameters(network)
            step += 1
            totals += torch.stack(
                [loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()]
            )
            bar.update(order.shape[1])
            if time.time() - shown_at > 1:  # fetching makes a GPU wait, so only now and then
                shown_at = time.time()
                if not totals.isfinite().all():
                    raise InputError(
                        f"the loss is no longer finite in epoch {epoch + 1}, step {step}: take a smaller --lr than {args.lr}"
                    )
                if RANK == 0:
                    loss_sum, correct = (totals / (step * len(labels))).tolist()
                    bar.set_postfix(loss=f"{loss_sum:.3f}", accuracy=f"{correct:.3f}")
            if stop():
                break
            if args.save_every and step % args.save_every == 0 and step < len(order):
                save(["last.pth"], epoch, step, [*totals.tolist(), step * order.shape[1]])
    return step, [*totals.tolist(), step * order.shape[1]]
