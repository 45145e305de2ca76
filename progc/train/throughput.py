"""How fast a stage trains, what share of the machine's peak that is, and how much memory it takes."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

PEAK_FLOPS = {
    # Dense bf16 matrix products, from the vendors' data sheets; sparse figures are twice as large.
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "V100": 125e12,  # fp16
    "MI300X": 1307e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Of a device; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


class Meter:
    """Counts samples and seconds between two readings."""

    def __init__(self, flops_per_step: int | None, device: torch.device) -> None:
        """
        Args:
            flops_per_step: of one optimizer step on this rank, a multiply-add is two; None if nobody counted.
        """
        self.flops, self.device, self.peak = flops_per_step, device, peak_flops(device)
        self.begin()

    def begin(self) -> None:
        """Counting begins now."""
        self._since = self._last = time.perf_counter()
        self._samples = self._steps = 0
        self._waiting = 0.0

    def arrived(self) -> None:
        """The data of a step are there: what passed since the last step was waiting for them."""
        self._waiting += time.perf_counter() - self._last

    def step(self, samples: int) -> None:
        """A step is done."""
        self._samples += samples
        self._steps += 1
        self._last = time.perf_counter()

    def read(self) -> dict[str, Any]:
        """Since the last reading: `samples_per_second`, `mfu` or None, `data_wait` (share of the time), `memory`."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        mfu = None
        if self.flops and self.peak:
            mfu = self.flops * self._steps / seconds / self.peak
        found = {
            "samples_per_second": self._samples / seconds,
            "data_wait": min(self._waiting / seconds, 1.0),
            "mfu": mfu,
            "memory": memory(self.device),
        }
        self.begin()
        return found


def memory(device: torch.device) -> int | None:
    """Largest number of bytes in use so far: of the accelerator, or of the process; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
