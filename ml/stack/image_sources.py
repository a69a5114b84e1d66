"""Where the main job takes its labelled images from: a user's folder, S3, or built-in samples."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ml.config.schema import Configuration
from ml.data import dataset, samples
from ml.errors import DataError
from ml.stack.progress import OnMessage


@dataclass(frozen=True)
class ImageSource:
    """The data sets of the main job.

    Attributes:
        datasets: data set → a folder or tar file to import it from.
        broken: data set → a folder of files for the night that cannot be decoded.
        imported: data sets that are in S3 already and are used as they are.
        synthetic: whether the images are built-in samples.
    """

    datasets: dict[str, Path]
    broken: dict[str, Path] = field(default_factory=dict)
    imported: frozenset[str] = frozenset()
    synthetic: bool = False


def find_datasets(folder: Path, config: Configuration) -> ImageSource:
    """Find the data sets of the models in a folder.

    Args:
        folder: has NAME.tar or NAME.tar.gz files or NAME/ folders, laid out SPLIT/CLASS/FILE.
        config: its models name the data sets.

    Raises:
        DataError: the folder has none of the data sets.
    """
    names = sorted({model.dataset for model in config.models.values()})
    datasets = {}
    for name in names:
        paths = (folder / name, folder / f"{name}.tar", folder / f"{name}.tar.gz")
        if (path := next((path for path in paths if path.exists()), None)) is not None:
            datasets[name] = path
    if not datasets:
        raise DataError(
            f"{folder} holds none of the data sets that nightscore.yaml names: {', '.join(names)}.",
            "Put NAME.tar files or NAME/ folders there, laid out SPLIT/CLASS/FILE.",
        )
    return ImageSource(datasets)


def draw_samples(config: Configuration, resources: ExitStack, on_message: OnMessage) -> ImageSource:
    """Draw the built-in samples of the data sets of which S3 has no real images.

    Args:
        config: says where the data sets are in S3.
        resources: the samples are deleted when it is closed.
        on_message: called with each line for a person.
    """
    imported = frozenset(
        name for name in samples.DATASETS if dataset.holds_real_images(config.storage, name)
    )
    for name in sorted(imported):
        on_message(f"data set {name}: the images that were imported before are used")
    names = [name for name in samples.DATASETS if name not in imported]
    if not names:
        return ImageSource({}, imported=imported, synthetic=True)
    on_message(f"no DATA given: drawing SYNTHETIC sample images for {', '.join(names)}")
    folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="nightscore-")))
    written = samples.write(folder)
    return ImageSource(
        {name: written.datasets[name] for name in names},
        {name: written.broken[name] for name in names if name in written.broken},
        imported,
        synthetic=True,
    )
