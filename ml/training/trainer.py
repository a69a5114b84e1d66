"""The whole training of a network, from splits to weights, in this process or in several."""

from collections.abc import Callable

import torch

from ml.config.schema import Model, Training
from ml.models import Network, build
from ml.program.device import Device, profile
from ml.training import distributed, loop
from ml.training.data import Split, Splits
from ml.training.precision import float32
from ml.training.validation import Validation


def training_parameters(model: Model, device: Device) -> Training:
    """The training parameters for a device: those of `cpu` if there are none for `gpu`."""
    return model.training.get(profile(device)) or model.training["cpu"]


def train_network(
    model: Model,
    splits: Splits,
    *,
    device: Device,
    validate: Callable[[Network], dict[str, float]] | None = None,
    on_epoch: Callable[[loop.Epoch], None] = lambda epoch: None,
) -> Network:
    """Build a network and train it, in as many processes as its parameters say.

    Call it in `ml.training.environment.deterministic`.

    Args:
        model: architecture, options, training parameters and seed.
        splits: the images; those of `test` are not used.
        device: where to train.
        validate: measures the network after each epoch; None, and always with several processes:
            `ml.training.validation.Validation` on the held-out images.
        on_epoch: is called after each epoch.

    Returns:
        The network, on the device and in eval mode, with the gradients of the last step.

    Raises:
        ConfigurationError: see `ml.models.build` and `ml.training.distributed.fit`.
        DataError: see `ml.training.loop.fit`.
        NightscoreError: see `ml.training.distributed.fit`.
    """
    parameters = training_parameters(model, device)
    torch_device = torch.device(device)
    network = prepare_network(model, splits.classes, splits.train, torch_device)
    pixels, labels = splits.train.tensors()
    if parameters.processes > 1:
        distributed.fit(
            network,
            model,
            splits,
            device=device,
            processes=parameters.processes,
            on_epoch=on_epoch,
        )
    else:
        loop.fit(
            network,
            pixels,
            labels,
            parameters,
            device=torch_device,
            seed=model.seed,
            validate=validate or Validation(model, splits.holdout, torch_device),
            on_epoch=on_epoch,
        )
    with float32(torch_device):
        network.after_fit(pixels, labels)
        network.calibrate(*splits.holdout.tensors())
    return network


def prepare_network(
    model: Model, classes: tuple[str, ...], train: Split, device: torch.device
) -> Network:
    """Return the network with fresh weights of the model's seed, on the device, after `before_fit`.

    Args:
        model: architecture, options and seed.
        classes: the names of the classes.
        train: the training images.
        device: where it will be trained.
    """
    torch.manual_seed(model.seed)
    network = build(model.architecture, model.input_size, classes, model.options).to(device)
    with float32(device):
        network.before_fit(*train.tensors())
    return network
