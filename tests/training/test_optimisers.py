"""The optimisers that --optimizer offers."""

import pytest
import torch

import train_classification
from dl_slicer.training import optimisers, recipes


def test_the_choices_of_the_flag_are_the_optimisers_that_there_are():
    assert set(recipes.OPTIMISERS) == set(optimisers.OPTIMISERS)


@pytest.mark.parametrize("name", recipes.OPTIMISERS)
def test_each_takes_its_rate_and_decay_from_the_flags(name):
    argv = ["--optimizer", name, "--lr", "0.1", "--weight-decay", "0.01"]
    model = torch.nn.Linear(2, 1)
    optimizer = optimisers.make_optimizer(train_classification.read_flags(argv), model)
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.1
    assert group["weight_decay"] == 0.01
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert (model.weight < before).all()
