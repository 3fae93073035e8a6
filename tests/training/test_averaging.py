"""The mean of the trained weights over steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from embedtune.training.averaging import WeightAverage
from embedtune.training.weights import trainable_tensors


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_it_is_the_mean_that_torch_takes() -> None:
    network = model()
    ours, theirs = WeightAverage(network), AveragedModel(network)
    for _ in range(7):
        moved(network)
        ours.add()
        theirs.update_parameters(network)
    expected = trainable_tensors(theirs.module)
    assert ours.weights().keys() == expected.keys() == {"1.weight", "1.bias"}, "what is frozen has no part in it"
    for name, mean in ours.weights().items():
        torch.testing.assert_close(mean, expected[name], rtol=1e-6, atol=1e-6)


def test_the_model_has_the_mean_for_a_while_and_then_its_own_weights_again() -> None:
    network = model()
    average = WeightAverage(network)
    first = {name: weight.clone() for name, weight in trainable_tensors(network).items()}
    with average.applied():
        assert all(torch.equal(now, first[name]) for name, now in trainable_tensors(network).items()), "of no steps yet"
    average.add()
    moved(network)
    average.add()
    second = {name: weight.clone() for name, weight in trainable_tensors(network).items()}
    version = network.get_parameter("1.weight")._version
    with average.applied():
        for name, now in trainable_tensors(network).items():
            torch.testing.assert_close(now, (first[name] + second[name]) / 2)
        assert network.get_parameter("1.weight")._version > version, (
            "what was derived from the weights can tell that they are others"
        )
    assert all(torch.equal(now, second[name]) for name, now in trainable_tensors(network).items())


def test_the_weights_come_back_where_the_evaluation_fails() -> None:
    network = model()
    average = WeightAverage(network)
    average.add()
    moved(network)
    own = network.get_parameter("1.weight").detach().clone()
    try:
        with average.applied():
            raise RuntimeError("of the evaluation")
    except RuntimeError:
        pass
    assert torch.equal(network.get_parameter("1.weight"), own)
