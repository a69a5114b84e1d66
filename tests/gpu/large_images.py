"""A process that scores large images on the GPU: `python -m tests.gpu.large_images JOB.json`.

It loads a program and scores a few batches of the size that the program asks for. If `tight`, it first
takes so much of the memory that its limit leaves, that half of what a batch needs is left. It prints a
line of JSON: batch sizes before and after, the most memory that torch held, and the scores.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ml.program.info import ProgramInfo
from ml.program.program import Program


def main(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    info = job["info"] | {name: tuple(job["info"][name]) for name in ("classes", "input_size")}
    program = Program.load(Path(job["program"]), ProgramInfo(**info), job["device"])
    before = program.batch_size
    pixels = np.random.default_rng(0).integers(
        0, 256, (job["images"], 3, *program.info.input_size), dtype=np.uint8
    )
    held = _take(program, pixels[:before]) if job["tight"] else None
    scores: list[float] = []
    for start in range(0, len(pixels), before):
        outputs = program.predict(pixels[start : start + before], maps="none")
        scores += outputs.scores.tolist()
    answer = {"before": before, "after": program.batch_size, "scores": scores}
    if job["device"] == "cuda":
        import torch

        answer["reserved"] = torch.cuda.max_memory_reserved()
    print(json.dumps(answer), flush=True)
    del held  # until here it took its part


def _take(program: Program, batch: np.ndarray) -> object:
    """Take memory until half of what a batch needs is left of the limit."""
    import torch

    from ml.program import gpu_memory

    torch.cuda.reset_peak_memory_stats()
    program.predict(batch, maps="none")
    needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    limit = gpu_memory.limit(torch.cuda.get_device_properties(0).total_memory)
    assert limit is not None
    size = limit - torch.cuda.memory_reserved() - needed // 2
    return torch.empty(size, dtype=torch.uint8, device="cuda")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
