"""What holds for every test of a task."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from workers.config import TrainingConfig
from workers.spiking.networks import SpikingMLP
from workers.tasks import spiking


@pytest.fixture(autouse=True)
def jobs_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job without a gang makes its folder where temporary files are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(autouse=True)
def few_neurons_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first weights of QS-5 are made for hundreds of inputs: in the small networks of tests no neuron would fire."""
    build = spiking.build

    def larger(config: TrainingConfig, num_features: int, num_classes: int) -> SpikingMLP:
        model = build(config, num_features, num_classes)
        with torch.no_grad():
            for linear in model.modules():
                if isinstance(linear, nn.Linear):
                    linear.weight.mul_(10.0)
        return model

    monkeypatch.setattr(spiking, "build", larger)
