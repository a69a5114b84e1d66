"""How many images a batch on a GPU has at most."""

import logging
import threading

log = logging.getLogger(__name__)

# More pixels, or images, in a batch make a GPU no faster, and results come later.
_MAX_PIXELS = 2**22
_MAX_IMAGES = 1024
# Of the memory that is left. What a batch takes is measured with few images; the kernels that are
# chosen for many may take more.
_MEMORY_SHARE = 0.5


class BatchLimit:
    """The largest number of images of a batch. It falls when the GPU's memory runs out.

    Args:
        name: What is computed, for the log.
        images: The number to begin with.
    """

    def __init__(self, name: str, images: int) -> None:
        self.images = images
        self._name = name
        self._changing = threading.Lock()

    def halve(self, failed: int) -> bool:
        """Take half of a batch for which there was too little memory as the limit from now on.

        Args:
            failed: The number of images of that batch.

        Returns:
            Whether a smaller batch is worth a try: it is not if `failed` is 1.
        """
        with self._changing:
            # Another thread's batch of this size may have failed before.
            if 1 < failed <= self.images:
                self.images = failed // 2
                log.warning(
                    "The GPU's memory does not do for %s images of %s at once; from now on %s",
                    failed,
                    self._name,
                    self.images,
                )
        return failed > 1


def images_per_batch(input_size: tuple[int, int], bytes_per_image: int, available: int) -> int:
    """Return the number of images of a batch, a power of two.

    Args:
        input_size: Height and width in pixels.
        bytes_per_image: What the GPU needs for an image of the batch, activations included.
        available: Bytes of the GPU's memory for this batch and what is computed beside it.
    """
    height, width = input_size
    by_pixels = _MAX_PIXELS // (height * width)
    by_memory = int(_MEMORY_SHARE * available) // max(1, bytes_per_image)
    images = max(1, min(_MAX_IMAGES, by_pixels, by_memory))
    return 1 << (images.bit_length() - 1)
