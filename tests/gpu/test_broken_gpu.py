"""After an error in a kernel, a process can no longer use its GPU; other processes can."""

import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]
_BREAK = """
import torch
from ml.program.device import is_gpu_broken
assert not is_gpu_broken()
numbers = torch.zeros(4, device="cuda")
assert not is_gpu_broken()
try:
    numbers[torch.tensor([9], device="cuda")].cpu()
except RuntimeError as error:
    print(error)
assert is_gpu_broken()
"""


def test_a_process_notices_that_its_gpu_is_of_no_more_use(real_gpu):
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _BREAK], cwd=_REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
