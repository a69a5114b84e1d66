"""CIFAR-10, fetched from its authors (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np

from ml.errors import ServiceError
from ml.timeouts import client_limits, retrying

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_BATCHES = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}
_WITHOUT_INTERNET = (
    "Where the internet is not reachable, bring the files and run "
    "`nightscore dataset import FOLDER_OR_TAR --name cifar10`."
)


def download(target: Path) -> Path:
    """Fetch CIFAR-10 and write it as SPLIT/CLASS/NNNNN.png below `target / "cifar10"`.

    This reads the archive's binary version, which holds bare bytes. The version for Python holds
    pickles, and to open a pickle may run code.

    Args:
        target: A folder with room for the archive (170 MB) and 60,000 files.

    Returns:
        The folder with the images.

    Raises:
        ServiceError: Its server cannot be reached, or gives something else than CIFAR-10.
    """
    from PIL import Image

    archive = target / "cifar-10-binary.tar.gz"
    _fetch(URL, SHA256, archive)
    with tarfile.open(archive) as tar:
        files = {Path(one.name).stem: _content(tar, one) for one in tar if one.isfile()}
    classes = files["batches.meta"].decode().split()
    for split, batches in _BATCHES.items():
        records = np.frombuffer(b"".join(files[batch] for batch in batches), np.uint8)
        # The label, then 32 x 32 px in the order channel, row, column.
        records = records.reshape(-1, 1 + 3 * 32 * 32)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for index, (label, image) in enumerate(zip(records[:, 0], images, strict=True)):
            folder = target / "cifar10" / split / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{index:05}.png")
    return target / "cifar10"


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # as it is a regular file
    return file.read()


def _fetch(url: str, sha256: str, path: Path) -> None:
    """Write what is at `url` to a file, or raise ServiceError."""
    import httpx

    limits = client_limits()
    timeout = httpx.Timeout(limits.read_timeout_s, connect=limits.connect_timeout_s)

    def fetch() -> str:
        digest = hashlib.sha256()
        # As it is stored: without a compression for the way.
        request = httpx.stream(
            "GET",
            url,
            headers={"Accept-Encoding": "identity"},
            timeout=timeout,
            follow_redirects=True,
        )
        with request as response, path.open("wb") as file:
            response.raise_for_status()
            for block in response.iter_raw():
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    try:
        found = retrying(lambda error: isinstance(error, httpx.TransportError), max_attempts=3)(
            fetch
        )
    except (httpx.HTTPError, OSError) as error:
        raise ServiceError(f"{url} cannot be downloaded: {error}", _WITHOUT_INTERNET) from error
    if found != sha256:
        raise ServiceError(
            f"{url} is not what it was: its SHA-256 is {found}, not {sha256}.", _WITHOUT_INTERNET
        )
