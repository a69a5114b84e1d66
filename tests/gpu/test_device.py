"""The name under which a shard's device is stored: the same GPU has the same name everywhere."""

import os
import re
import subprocess
import sys

from ml.program.device import device_name
from tests.gpu.conftest import IS_REHEARSAL

_NAME = (
    "from ml.program.device import device_name, select_device; print(device_name(select_device()))"
)


def test_a_gpu_is_named_alike_by_every_process_that_uses_it(device):
    name = device_name(device)
    assert re.fullmatch("cpu" if IS_REHEARSAL else r".+ \(GPU-[0-9a-f-]{36}\)", name)
    requested = "cpu" if IS_REHEARSAL else "cuda:0"
    done = subprocess.run(
        [sys.executable, "-c", _NAME],
        env=os.environ | {"NIGHTSCORE_DEVICE": requested},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == name
