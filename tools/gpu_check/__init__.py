"""The check on a machine with an NVIDIA GPU and no network; docs/gpu-check.md says how to use it.

`prepare` runs where there is a network, `run` on the machine with the GPU, where only Python's own
library is sure to be there: `layout`, `environment`, `results`, `child`, `steps` and `recorder`
import nothing else.
"""
