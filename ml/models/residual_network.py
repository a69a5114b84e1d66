"""A small residual network for classifying small images, trained in few epochs.

A stem at full resolution, then convolutions at half, quarter and eighth of it, with residual blocks
(He et al., "Deep residual learning for image recognition", 2016) where pixels are few and features
many. What makes it learn from few epochs is known from the CIFAR-10 speed records (Jordan, "94 % on
CIFAR-10 in 3.29 seconds on a single GPU", 2024, arXiv:2404.00498):

- the stem's filters are not learned, they whiten the training images' patches (Page, "How to train
  your ResNet", 2018);
- images are halved by the largest of four answers, before these are normalised;
- convolutions begin as the identity, as far as they have channels for it;
- Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) for the
  convolutions, AdamW for the rest;
- random flips and shifted crops, label smoothing (Szegedy et al., 2016), and the mean over an image
  and its mirror image when it is scored.

Label smoothing leaves probabilities too modest; one temperature, fitted to the held-out images,
makes up for it (Guo et al., "On calibration of modern neural networks", 2017).

What each brings is measured in docs/decisions/0006-architectures.md.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network
from ml.models.components.muon import Muon

OPTIONS = {
    # Channels at half of the resolution.
    "width": {"type": "int", "default": 48, "minimum": 1},
    # Label smoothing.
    "smoothing": {"type": "float", "default": 0.2, "minimum": 0, "maximum": 1},
    # Whether a mirrored image means the same.
    "flips": {"type": "bool", "default": True},
}

# Mean and deviation of natural photographs, close enough for any.
_MEAN, _DEVIATION = 0.46, 0.25
_SHARE_OF_SHIFT = 1 / 16
# Small logits at the start of training, which a high learning rate needs to stay stable.
_LOGIT_SCALE = 1 / 4
_PATCH = 2
_STEM = 24  # every direction of a patch of three colours, and its opposite
_FITTED_FROM = 5000  # images at most, for what is computed in closed form
_LEAST_VARIANCE = 0.01  # of a patch's direction, below which it is noise and not enlarged
_TEMPERATURES = torch.logspace(-0.5, 0.5, 101)
# Of the learning rate of Muon.
_ADAM_SHARE = 1 / 12


class _Conv(nn.Module):
    """A 3 x 3 convolution whose weights are one matrix, as Muon takes them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        filters = torch.empty(outputs, inputs, 3, 3)
        nn.init.kaiming_uniform_(filters, a=5**0.5)
        nn.init.dirac_(filters[: min(inputs, outputs)])
        self.weight = nn.Parameter(filters.flatten(1))
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.unflatten(1, (self.inputs, 3, 3)), padding=1)


class _Norm(nn.BatchNorm2d):
    """Without a scale. The learning rate ends at zero, so that its running statistics can take the
    mean of many steps (what Wu and Johnson call precise, arXiv:2105.07576)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.05)
        self.weight.requires_grad = False


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_Conv(inputs, outputs), _Norm(outputs), nn.ReLU())


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    # Pooled before they are normalised, which then costs a quarter.
    return nn.Sequential(_Conv(inputs, outputs), nn.MaxPool2d(2), _Norm(outputs), nn.ReLU())


class _Residual(nn.Module):
    """Layers, added to their input."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_layer(channels, channels) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualNetwork(Network):
    """See the module; `width` is the number of channels at half of the resolution, best a multiple
    of 16 for a processor; at a quarter there are twice as many, at an eighth four times."""

    warm_up = 0.05
    temperature: Tensor

    def __init__(self, classes: int, width: int, smoothing: float, flips: bool) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.flips = flips
        self.stem = nn.Conv2d(3, _STEM, _PATCH, bias=False)
        # Not learned, so nothing is propagated back through where pixels are most.
        self.stem.weight.requires_grad = False
        middle, last = 2 * width, 4 * width
        self.stages = nn.Sequential(
            _halving(_STEM, width),
            *(_halving(width, middle), _Residual(middle, 2)),
            *(_halving(middle, last), _Residual(last, 2), _Residual(last, 1)),
        )
        self.head = nn.Linear(last, classes, bias=False)
        self.register_buffer("temperature", torch.ones(()))

    @torch.no_grad()
    def start(self, pixels: Tensor, labels: Tensor) -> None:
        filters = _whitening(_some(pixels))
        self.stem.weight.copy_(torch.cat([filters, -filters]))

    @torch.no_grad()
    def calibrate(self, pixels: Tensor, labels: Tensor) -> None:
        labels = _some(labels)
        logits = torch.cat([self._views(batch) for batch in _some(pixels).split(500)])
        losses = torch.stack([F.cross_entropy(logits / t, labels) for t in _TEMPERATURES])
        self.temperature.copy_(_TEMPERATURES[losses.argmin()])

    def optimizers(self, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
        matrices = [layer.weight for layer in self.modules() if isinstance(layer, _Conv)]
        known = {id(matrix) for matrix in matrices}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return [
            Muon(matrices, learning_rate, weight_decay=weight_decay, momentum=0.8, iterations=3),
            torch.optim.AdamW(
                others, _ADAM_SHARE * learning_rate, betas=(0.9, 0.95), weight_decay=0
            ),
        ]

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            self._logits(shifted(pixels, self.flips)), labels, label_smoothing=self.smoothing
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return (self._views(pixels).float() / self.temperature).softmax(1)

    def _views(self, pixels: Tensor) -> Tensor:
        logits = self._logits(pixels)
        # What a mirror image shows is the same; the mean of both views errs less.
        return (logits + self._logits(pixels.flip(-1))) / 2 if self.flips else logits

    def _logits(self, pixels: Tensor) -> Tensor:
        x = _normalised(pixels).contiguous(memory_format=torch.channels_last)
        x = self.stages(F.relu(self.stem(x)))
        # The strongest answer of each feature, wherever it is in the image.
        logits: Tensor = self.head(x.amax((2, 3))) * _LOGIT_SCALE
        return logits


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - _MEAN) / _DEVIATION


def _some(values: Tensor) -> Tensor:
    """Evenly spread images (or their labels), few enough to compute with all at once."""
    step = max(1, len(values) // _FITTED_FROM)
    return values[::step][:_FITTED_FROM]


def _whitening(pixels: Tensor) -> Tensor:
    """Filters (12, 3, 2, 2) whose answers to the images' patches have variance 1 and do not
    correlate: the principal components, scaled."""
    # Patches that do not overlap are enough for a covariance.
    patches = F.unfold(_normalised(pixels), _PATCH, stride=_PATCH).transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    scaled = directions / (variances.clamp(min=0) + _LEAST_VARIANCE).sqrt()
    return scaled.T.unflatten(1, (3, _PATCH, _PATCH))


def shifted(pixels: Tensor, flips: bool) -> Tensor:
    """Each image moved by up to a sixteenth of its size, mirrored at the borders, and half of the
    images flipped; uint8 (B, 3, H, W) in and out."""
    count, _, height, width = pixels.shape
    rows = _places(count, height, pixels.device)
    columns = _places(count, width, pixels.device)
    if flips:
        flipped = torch.rand(count, 1, device=pixels.device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    images = torch.arange(count, device=pixels.device)[:, None, None]
    # Indexing around the channels gives (B, H, W, 3), which is channels_last already.
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _places(count: int, size: int, device: torch.device) -> Tensor:
    """For each image the rows (or columns) it is read from, int64 (B, size)."""
    most = max(1, round(size * _SHARE_OF_SHIFT))
    shift = torch.randint(-most, most + 1, (count, 1), device=device)
    places = torch.arange(size, device=device) + shift
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def build(
    size: tuple[int, int], classes: tuple[str, ...], *, width: int, smoothing: float, flips: bool
) -> Network:
    """Return the network with fresh weights; `OPTIONS` describes its options."""
    return ResidualNetwork(len(classes), width, smoothing, flips)
