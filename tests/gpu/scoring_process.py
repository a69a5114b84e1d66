"""A process that scores on the GPU: `python -m tests.gpu.scoring_process JOB.json`.

It loads the programs, prints a line `ready`, waits for a line, scores batches as the engine does
(as many threads, as large batches), and prints a line of JSON: the most GPU memory that torch held,
or the error. Then it waits for the end of standard input, holding what it holds.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ml.errors import NightscoreError
from ml.program.info import ProgramInfo
from ml.program.program import Program
from ml.scoring.engine import thread_count


def main(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        programs = [_load(one, job["device"]) for one in job["programs"]]
        print("ready", flush=True)
        sys.stdin.readline()
        answer = _score(programs, job)
    except NightscoreError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
    sys.stdin.read()


def _load(described: dict, device: str) -> Program:
    info = described["info"] | {
        name: tuple(described["info"][name]) for name in ("classes", "input_size")
    }
    return Program.load(Path(described["path"]), ProgramInfo(**info), device)


def _score(programs: list[Program], job: dict) -> dict:
    threads = thread_count(job["device"])
    random = np.random.default_rng(os.getpid())
    images = 0
    with ThreadPoolExecutor(threads) as pool:
        for program in programs:
            shape = (program.batch_size, 3, *program.info.input_size)
            pixels = random.integers(0, 256, shape, dtype=np.uint8)
            done = pool.map(program.predict, [pixels] * job["batches"])
            images += sum(len(outputs) for outputs in done)
    return {"images": images, "reserved": _reserved(job["device"])}


def _reserved(device: str) -> int | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_reserved()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
