"""Run by torchrun in `test_distributed`: every process trains the same networks and saves its own.

python -m torch.distributed.run --nproc-per-node 2 -m tests.support.group_script FOLDER
"""

import sys
from pathlib import Path

import torch

from ml.config.schema import Training
from ml.models import build
from ml.training.group import ProcessGroup
from ml.training.loop import fit
from tests.support.synthetic_images import labelled_pixels

SIZE = (16, 24)
TASKS = {
    "residual_network": ("dark", "bright"),
    "anomaly_segmenter": ("normal", "anomalous"),
    "attention_autoencoder": ("normal", "anomalous"),
}
PARAMETERS = Training(epochs=3, batch_size=17, learning_rate=0.02)


def network(name: str, seed: int):
    torch.manual_seed(seed)
    return build(name, SIZE, TASKS[name], {"width": 4})


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    group = ProcessGroup(device)
    pixels, labels = map(torch.from_numpy, labelled_pixels(200, SIZE))
    for name in TASKS:
        # Different weights: the group has to begin with those of one process.
        replica = network(name, seed=group.rank)
        replica.before_fit(pixels, labels)
        losses = []
        fit(
            replica,
            pixels,
            labels,
            PARAMETERS,
            device=device,
            seed=0,
            group=group,
            on_epoch=lambda epoch, losses=losses: losses.append(epoch.train_loss),
        )
        saved = {"weights": replica.state_dict(), "losses": losses, "random": torch.rand(1)}
        torch.save(saved, folder / f"{name}-{group.rank}.pt")
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
