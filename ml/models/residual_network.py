"""A small residual network to classify small images, which is trained in few epochs.

A stem at full resolution is followed by convolutions at a half, a quarter and an eighth of it, with
residual blocks (He et al., "Deep residual learning for image recognition", 2016) where there are
few pixels and many features. How it learns in few epochs is known from the CIFAR-10 speed records
(Jordan, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", 2024, arXiv:2404.00498):

- the filters of the stem are not learned: they whiten the patches of the training images (Page,
  "How to train your ResNet", 2018);
- max pooling comes before batch normalization;
- convolutions are initialized as the identity, as far as they have channels for it;
- Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) optimizes
  the convolutions, AdamW the rest;
- training uses random flips and shifted crops, and label smoothing (Szegedy et al., 2016); scoring
  uses the mean over an image and its mirror image.

Label smoothing makes the probabilities too modest. One temperature, fitted to the held-out images,
corrects that (Guo et al., "On calibration of modern neural networks", 2017).

docs/decisions/0006-architectures.md has measurements of what each of these brings.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network
from ml.models.components.adamw import adamw
from ml.models.components.muon import Muon

OPTIONS = {
    # Channels at half of the resolution.
    "width": {"type": "int", "default": 48, "minimum": 1},
    # Label smoothing.
    "smoothing": {"type": "float", "default": 0.2, "minimum": 0, "maximum": 1},
    # Whether a mirrored image means the same.
    "flips": {"type": "bool", "default": True},
}

# Mean and standard deviation of natural photographs, close enough for any images.
_MEAN, _DEVIATION = 0.46, 0.25
_MAX_SHIFT = 1 / 16  # of the image's size
# Makes logits small at the start of training, which a high learning rate needs to stay stable.
_LOGIT_SCALE = 1 / 4
_PATCH_SIZE = 2
_STEM_CHANNELS = 24  # each direction of a patch of 2 x 2 pixels and 3 colours, and its opposite
_MAX_FIT_IMAGES = 5000  # for what is fitted in closed form
# Added to the variance of a patch's direction: below it is noise, which must not be amplified.
_WHITENING_EPSILON = 0.01
_TEMPERATURES = torch.logspace(-0.5, 0.5, 101)
_ADAMW_LEARNING_RATE_RATIO = 1 / 12  # to the learning rate of Muon


class _Conv(nn.Module):
    """A 3 x 3 convolution whose weights are one matrix, as Muon needs them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        filters = torch.empty(outputs, inputs, 3, 3)
        nn.init.kaiming_uniform_(filters, a=5**0.5)
        nn.init.dirac_(filters[: min(inputs, outputs)])
        self.weight = nn.Parameter(filters.flatten(1))
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.view(-1, self.inputs, 3, 3), padding=1)


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalization without a scale, whose running statistics are means of many steps.

    They can be, as the learning rate ends at zero; Wu and Johnson call it precise batch
    normalization (arXiv:2105.07576).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.05)
        self.weight.requires_grad = False


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_Conv(inputs, outputs), _BatchNorm(outputs), nn.ReLU())


def _downsample_block(inputs: int, outputs: int) -> nn.Sequential:
    # Normalization after pooling takes a quarter of the time.
    return nn.Sequential(_Conv(inputs, outputs), nn.MaxPool2d(2), _BatchNorm(outputs), nn.ReLU())


class _ResidualBlock(nn.Module):
    """Convolutions whose output is added to their input."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_conv_block(channels, channels) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.layers(x)
        return x + residual


class ResidualNetwork(Network):
    """A residual network for classification.

    Args:
        classes: the number of classes.
        width: the number of channels at half resolution; at a quarter there are twice as many, at
            an eighth four times. A multiple of 16 is fastest on a CPU.
        smoothing: label smoothing, in [0, 1).
        flips: whether a mirrored image means the same.
    """

    warmup_ratio = 0.05
    temperature: Tensor

    def __init__(self, classes: int, width: int, smoothing: float, flips: bool) -> None:
        super().__init__()
        self.label_smoothing = smoothing
        self.flips = flips
        self.stem = nn.Conv2d(3, _STEM_CHANNELS, _PATCH_SIZE, bias=False)
        # Not learned, which also saves the backward pass at full resolution.
        self.stem.weight.requires_grad = False
        middle, last = 2 * width, 4 * width
        self.stages = nn.Sequential(
            _downsample_block(_STEM_CHANNELS, width),
            *(_downsample_block(width, middle), _ResidualBlock(middle, 2)),
            *(_downsample_block(middle, last), _ResidualBlock(last, 2), _ResidualBlock(last, 1)),
        )
        self.head = nn.Linear(last, classes, bias=False)
        self.register_buffer("temperature", torch.ones(()))

    @torch.no_grad()
    def before_fit(self, pixels: Tensor, labels: Tensor) -> None:
        """Set the filters of the stem, from at most 5,000 images."""
        filters = _whitening_filters(_subsample(pixels).to(self.device))
        self.stem.weight.copy_(torch.cat([filters, -filters]))

    @torch.no_grad()
    def calibrate(self, pixels: Tensor, labels: Tensor) -> None:
        """Set the temperature that gives the smallest cross-entropy, from at most 5,000 images."""
        batches = torch.split(_subsample(pixels), 500)
        logits = torch.cat([self._tta_logits(batch.to(self.device)) for batch in batches])
        targets = _one_hot(_subsample(labels).to(self.device), logits)
        temperatures = _TEMPERATURES.to(self.device)
        losses = torch.stack([F.cross_entropy(logits / t, targets) for t in temperatures])
        self.temperature.copy_(temperatures[losses.argmin()])

    def optimizers(self, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
        """Muon for the convolutions, AdamW for the other weights."""
        matrices = [layer.weight for layer in self.modules() if isinstance(layer, _Conv)]
        matrix_ids = {id(matrix) for matrix in matrices}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in matrix_ids]
        adamw_rate = _ADAMW_LEARNING_RATE_RATIO * learning_rate
        return [
            Muon(matrices, learning_rate, weight_decay=weight_decay, momentum=0.8, iterations=3),
            adamw(others, adamw_rate, betas=(0.9, 0.95), weight_decay=0),
        ]

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy with label smoothing, of randomly shifted and flipped images."""
        logits = self._logits(random_shift_flip(pixels, self.flips))
        targets = _one_hot(labels, logits)
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def forward(self, pixels: Tensor) -> Tensor:
        """The probabilities of the classes."""
        return (self._tta_logits(pixels).float() / self.temperature).softmax(1)

    def _tta_logits(self, pixels: Tensor) -> Tensor:
        """Logits with test-time augmentation: the mean over image and mirror image errs less."""
        logits = self._logits(pixels)
        return (logits + self._logits(pixels.flip(-1))) / 2 if self.flips else logits

    def _logits(self, pixels: Tensor) -> Tensor:
        x = _normalize(pixels).contiguous(memory_format=torch.channels_last)
        x = self.stages(F.relu(self.stem(x)))
        # Global max pooling: the strongest response of each feature, wherever it is in the image.
        logits: Tensor = self.head(x.amax((2, 3))) * _LOGIT_SCALE
        return logits


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """The labels int64 (B,) as probabilities, in the shape and dtype of the logits (B, classes).

    With labels as numbers the cross-entropy is `nll_loss`, which torch does not promise to be
    deterministic on a GPU; with probabilities it is a product and a sum.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (labels[:, None] == classes).to(logits.dtype)


def _normalize(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - _MEAN) / _DEVIATION


def _subsample(values: Tensor) -> Tensor:
    """Evenly spaced images (or labels), few enough to compute with all of them at once."""
    step = max(1, len(values) // _MAX_FIT_IMAGES)
    return values[::step][:_MAX_FIT_IMAGES]


def _whitening_filters(pixels: Tensor) -> Tensor:
    """Filters (12, 3, 2, 2) whose responses to the images' patches are white.

    The responses have variance 1 and are uncorrelated: the filters are the scaled principal
    components of the patches.
    """
    # Patches that do not overlap are enough for a covariance.
    patches = F.unfold(_normalize(pixels), _PATCH_SIZE, stride=_PATCH_SIZE)
    patches = patches.transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    scaled: Tensor = directions / (variances.clamp(min=0) + _WHITENING_EPSILON).sqrt()
    return scaled.T.reshape(-1, 3, _PATCH_SIZE, _PATCH_SIZE)


def random_shift_flip(pixels: Tensor, flips: bool) -> Tensor:
    """Shift each image by up to a sixteenth of its size, reflected at the borders; flip half.

    Args:
        pixels: uint8 (B, 3, H, W).
        flips: whether to flip.

    Returns:
        uint8 (B, 3, H, W).
    """
    count, _, height, width = pixels.shape
    rows = _shifted_indices(count, height, pixels.device)
    columns = _shifted_indices(count, width, pixels.device)
    if flips:
        flipped = torch.rand(count, 1, device=pixels.device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    images = torch.arange(count, device=pixels.device)[:, None, None]
    # Indexing around the channels gives (B, H, W, 3), which is channels_last already.
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted_indices(count: int, size: int, device: torch.device) -> Tensor:
    """From which row (or column) of its image each row is taken, int64 (B, size)."""
    max_shift = max(1, round(size * _MAX_SHIFT))
    shift = torch.randint(-max_shift, max_shift + 1, (count, 1), device=device)
    indices = (torch.arange(size, device=device) + shift).abs()
    return torch.where(indices >= size, 2 * (size - 1) - indices, indices)


def build(
    size: tuple[int, int], classes: tuple[str, ...], *, width: int, smoothing: float, flips: bool
) -> Network:
    """Return the network with fresh weights; `OPTIONS` describes its options."""
    return ResidualNetwork(len(classes), width, smoothing, flips)
