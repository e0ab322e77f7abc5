"""What tests of training share: how a run is read and compared."""

import torch

# Flags that may differ between runs with the same result.
HARMLESS_FLAGS = ("out", "features", "save_every", "epochs")


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other):
    """Two runs: same log, same checkpoints to the bit (but for flags that change nothing)."""
    assert (one / "log.csv").read_text() == (other / "log.csv").read_text()
    for name in ("best.pth", "last.pth"):
        assert bits(comparable(one / name)) == bits(comparable(other / name))


def comparable(path):
    checkpoint = load(path)
    for flag in HARMLESS_FLAGS:
        del checkpoint["args"][flag]
    return checkpoint


def bits(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value
