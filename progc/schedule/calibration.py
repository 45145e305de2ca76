"""Measures the rates of this machine with a few operations, in about a second."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from progc.analysis.costs.machine import Machine, Rate, default_machine
from progc.analysis.costs.operations import KINDS, PLAIN, Operation, Recorder
from progc.ir.random_state import kept_random_states
from progc.schedule.timing import synchronise

_Run = Callable[[], object]


def calibrate(
    device: str | torch.device | None = None,
    *,
    seconds: float = 1.0,
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> Machine:
    """Measures a small and a large operation of each kind, and AdamW, and fits the rates to both.

    Args:
        device: the device to measure; None takes the CPU.
        seconds: seconds to spend in total.
        dtype: dtype of the values.
        clock: returns seconds. Use `time.process_time` on a CPU that is busy with other work.

    Returns:
        The machine, for predicted seconds of a step.
    """
    place = torch.device(device or "cpu")
    known = default_machine(place.type)
    with kept_random_states():
        pairs = _pairs(place, dtype)
        budget = seconds / (2 * len(pairs) + 2)
        rates = {}
        for kind in KINDS:
            small, large = pairs[kind]
            short = _seconds(small, budget, place, clock)
            long = _seconds(large, budget, place, clock)
            rates[kind] = _fitted(_work(large, kind), short, long, _work(small, kind))
        optimizer = _optimizer(place, dtype, budget, clock)
    return Machine(f"{place.type}, measured", rates, optimizer, known.overlap)


def _fitted(work: Operation, short: float, long: float, less: Operation) -> Rate:
    """The rate at which the large operation exceeds the small one, and the call that remains of the small one."""
    extra = max(long - short, 1e-9)
    flops = (work.flops - less.flops) / extra if work.flops else math.inf
    through = (work.bytes - less.bytes) / extra if work.bytes else math.inf
    if work.flops:  # such large ones are bound by arithmetic; traffic is bounded by the pointwise rate's cache
        through = math.inf
    rate = Rate(flops, through, 0.0)
    return Rate(flops, through, max(short - rate.seconds(less), 1e-7))


def _pairs(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[_Run, _Run]]:
    """A small and a large operation of each kind."""

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    scale = 1 if device.type == "cpu" else 8

    def matmul(n: int) -> _Run:
        bias, a, b = make(n), make(n, n), make(n, n)
        return lambda: torch.addmm(bias, a, b)

    def convolution(n: int, channels: int, groups: int) -> _Run:
        image, weight = make(2, channels, n, n), make(channels, channels // groups, 3, 3)
        return lambda: F.conv2d(image, weight, padding=1, groups=groups)

    def attention(tokens: int, batch: int) -> _Run:
        q = make(batch, 3, tokens, 64)
        return lambda: F.scaled_dot_product_attention(q, q, q)

    def pointwise(n: int, run: Callable[[torch.Tensor], torch.Tensor]) -> _Run:
        x = make(n)
        return lambda: run(x)

    def norm(rows: int) -> _Run:
        x, gain = make(rows, 256), make(256)
        return lambda: F.layer_norm(x, (256,), gain, gain)

    large = 2**18 * scale
    view = make(4, 4)
    return {
        "matmul": (matmul(8), matmul(256 * scale)),
        "convolution": (convolution(2, 8, 1), convolution(14 * scale, 128, 1)),
        "grouped": (convolution(2, 8, 8), convolution(28 * scale, 64, 64)),
        "attention": (attention(4, 1), attention(128 * scale, 4)),
        "transcendental": (pointwise(16, F.gelu), pointwise(large, F.gelu)),
        "norm": (norm(1), norm(large // 256)),
        PLAIN: (pointwise(16, lambda x: x + x), pointwise(large, lambda x: x + x)),
        "view": (lambda: view.t(), lambda: view.t()),
    }


def _work(run: _Run, kind: str) -> Operation:
    with torch.no_grad(), Recorder() as recorder:
        run()
    operations = [operation for operation in recorder.found if operation.kind == kind]
    return Operation(kind, sum(o.flops for o in operations), sum(o.bytes for o in operations))


def _seconds(run: _Run, budget: float, device: torch.device, clock: Callable[[], float]) -> float:
    """Median seconds of a run, over bursts that are long against the clock's steps."""
    with torch.no_grad():
        run()
        synchronise(device)
        start = clock()
        run()
        synchronise(device)
        once = max(clock() - start, 1e-6)
        repeats = min(max(int(budget / 5 / once), 1), 1000)
        bursts = []
        for _ in range(5 if repeats > 1 else 3):
            start = clock()
            for _ in range(repeats):
                run()
            synchronise(device)
            bursts.append((clock() - start) / repeats)
    return statistics.median(bursts)


def _optimizer(device: torch.device, dtype: torch.dtype, budget: float, clock: Callable[[], float]) -> Rate:
    """Adam over many small tensors, and over one large one."""

    def adam(count: int, size: int) -> _Run:
        held = [torch.zeros(size, device=device, dtype=dtype, requires_grad=True) for _ in range(count)]
        for tensor in held:
            tensor.grad = torch.ones_like(tensor)
        optimizer = torch.optim.AdamW(held)
        return optimizer.step

    size, item = 2**19, torch.empty((), dtype=dtype).element_size()
    small, large = (_seconds(adam(*shape), budget, device, clock) for shape in ((20, 8), (1, size)))
    call = small / 20
    return Rate(math.inf, size * item / max(large - call, 1e-9), call)
