"""Structural analysis side by side with Torch-Pruning (Fang et al., CVPR 2023), on the same models in one run.

    pip install -e '.[bench]'
    python bench/anchor.py [MODEL ...]   # models without a row so far; --again measures them again
    python bench/anchor.py --list
    python bench/anchor.py --report      # docs/anchor.md from the results, nothing is run

Both tools find which dims of which parameters belong together: Torch-Pruning to remove units, progc to add them. Each
model is measured in a separate process with one thread and a time limit. For each tool the script records whether the
structure is found, the share of the parameters that it reaches, CPU seconds, and whether a change by a factor of two
then works.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: bench/ is on the path, the root (for tests.zoo) is not
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import child, known, write_json

TOOLS = ("progc", "torch_pruning")
_TIMM = {
    64: (
        "resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "res2net50_26w_4s", "densenet121", "dla34",
        "hrnet_w18_small", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0", "regnetx_002", "regnety_002",
        "convnext_atto", "convnextv2_atto", "ghostnet_100", "repvgg_a0", "cspresnet50", "xception41", "poolformer_s12",
        "edgenext_xx_small", "mobilevit_xxs",
    ),
    224: (
        "mixer_s32_224", "gmlp_ti16_224", "levit_128s", "pit_ti_224", "cait_xxs24_224", "xcit_nano_12_p16_224",
        "volo_d1_224", "twins_svt_small",
    ),
}  # fmt: skip
_TORCHVISION = ("alexnet", "vgg11", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "mnasnet0_5", "swin_t")
_ZOO = (
    "timm:vit_tiny_patch16_224@64", "timm:deit_tiny_patch16_224@64", "timm:swin@56", "torchvision:vit", "diffusers:dit",
    "diffusers:unet", "transformers:bert", "transformers:gpt2", "transformers:llama",
)  # fmt: skip
_VITS = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")


def names() -> list[str]:
    """Every model: library, name, and input size where it is not the model's own."""
    found = [f"timm:{name}" + (f"@{size}" if size != 224 else "") for size, group in _TIMM.items() for name in group]
    return [*found, *(f"torchvision:{name}" for name in _TORCHVISION), *_ZOO]


def build(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A fresh model in eval mode with its example inputs, batch 2."""
    import timm
    import torch
    import torchvision

    from tests import zoo

    torch.manual_seed(0)
    library, _, text = name.partition(":")
    model, _, size = text.partition("@")
    if name in _ZOO and model in _VITS:  # those of the zoo are smaller
        return zoo.perturb(timm.create_model(model, img_size=64)).eval(), (zoo.image(64),), {}
    if name in _ZOO:
        return zoo.build(name)
    if library == "timm":
        return timm.create_model(model).eval(), (zoo.image(int(size or 224)),), {}
    options = {"aux_logits": False, "init_weights": True} if model == "googlenet" else {}
    return torchvision.models.get_model(model, weights=None, **options).eval(), (zoo.image(224),), {}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of `run()` and what it returned."""
    start = time.process_time()
    result = run()
    return round(time.process_time() - start, 4), result


def progc_row(name: str) -> dict[str, Any]:
    """Capture and analysis, then growth to twice the width, checked in float64."""
    import torch

    import progc
    from progc.analysis.axes.table import analyse
    from progc.errors import ProgcError
    from progc.growth.grow import grow_with_report
    from progc.models.sizes import parse_sizes

    model, args, kwargs = build(name)
    progc.capture(torch.nn.Linear(2, 2), (torch.randn(2, 2),))  # both tools start warm
    capture, program = timed(lambda: progc.capture(model, args, kwargs))
    seconds, table = timed(lambda: analyse(program))
    row = {"ok": True, "capture": capture, "analysis": seconds, "coverage": table.coverage(), "units": len(table.axes)}
    try:
        growth = grow_with_report(program, parse_sizes("width*2"))
        row["holds"], row["why"] = growth.report["lossless"], f"{growth.report['max_rel_diff']:.0e}"
    except ProgcError as error:
        row["holds"], row["why"] = False, str(error)
    return row


def torch_pruning_row(name: str) -> dict[str, Any]:
    """The dependency graph and a group per layer with channels; then half of the channels pruned, and a forward."""
    import torch
    import torch_pruning as tp
    from torch.utils import _pytree as pytree

    model, args, kwargs = build(name)

    def forward(network: Any, _: Any = None) -> list[Any]:
        leaves = pytree.tree_leaves(network(*args, **kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    forward(model)
    graph = tp.DependencyGraph()
    example = args if args else kwargs
    seconds, _ = timed(lambda: graph.build_dependency(model, example_inputs=example, forward_fn=forward, verbose=False))
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    reached: set[int] = set()
    grouped, failure = 0, ""
    start = time.process_time()
    for layer in layers:
        try:
            pruner = graph.get_pruner_of_module(layer)
            channels = list(range(pruner.get_out_channels(layer)))
            group = graph.get_pruning_group(layer, pruner.prune_out_channels, channels)
        except Exception as error:  # whatever it raises, there is no group
            failure = failure or f"{type(error).__name__}: {error}"
            continue
        grouped += 1
        for dependency, _ in group:
            target = dependency.target.module
            owned = [target] if isinstance(target, torch.nn.Parameter) else target.parameters()
            reached.update(map(id, owned))
    groups = round(time.process_time() - start, 4)
    total = sum(parameter.numel() for parameter in model.parameters())
    covered = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in reached)
    row = {
        "ok": grouped == len(layers),
        "analysis": seconds,
        "groups": groups,
        "coverage": covered / total,
        "units": grouped,
        "layers": len(layers),
        "failure": failure[:200],
    }
    try:
        last = [layer for layer in layers if layer in graph.module2node and _is_last(graph.module2node[layer], kinds)]
        importance = tp.importance.MagnitudeImportance()
        shape = [leaf.shape for leaf in forward(model)]
        pruner = tp.pruner.MagnitudePruner(
            model, example, importance, pruning_ratio=0.5, ignored_layers=last, forward_fn=forward
        )
        pruner.step()
        after = [leaf.shape for leaf in forward(model)]
        row["holds"], row["why"] = after == shape, "" if after == shape else f"outputs {shape} became {after}"
    except Exception as error:
        row["holds"], row["why"] = False, f"{type(error).__name__}: {str(error)[:200]}"
    return row


def _is_last(node: Any, kinds: tuple[type, ...]) -> bool:
    """Whether no other layer reads what this one computes: it makes an output of the network."""
    seen, queue = {node}, list(node.outputs)
    while queue:
        here = queue.pop()
        if here in seen:
            continue
        seen.add(here)
        if isinstance(here.module, kinds):
            return False
        queue += here.outputs
    return True


class Late(BaseException):
    """No `Exception`: so that neither a tool that catches those nor the loop over its layers continues."""


def both(name: str, limit: float) -> dict[str, Any]:
    """The row of a model, measured in this process; a tool that raises anything, or takes longer, has failed on it."""

    def stop(*_: Any) -> None:
        raise Late(f"not done after {limit:.0f} CPU seconds")

    signal.signal(signal.SIGPROF, stop)
    row: dict[str, Any] = {"model": name}
    for tool, measure in zip(TOOLS, (progc_row, torch_pruning_row), strict=True):
        signal.setitimer(signal.ITIMER_PROF, limit)  # CPU seconds: a busy machine fails nobody
        try:
            row[tool] = measure(name)
        except (Exception, Late) as error:
            row[tool] = {"ok": False, "failure": " ".join(f"{type(error).__name__.strip('_')}: {error}".split())[:300]}
    signal.setitimer(signal.ITIMER_PROF, 0)
    return row


def run(name: str, limit: float) -> dict[str, Any]:
    """`both(name)` in a separate process."""
    row, failed = child(__file__, ["--one", "--limit", str(limit), name], 40 * limit)
    return row or {"model": name, **{tool: {"ok": False, "failure": failed} for tool in TOOLS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from --list; all of them if left out")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--report", action="store_true", help="only write docs/anchor.md")
    parser.add_argument("--again", action="store_true", help="measure models again that have a row")
    parser.add_argument("--limit", type=float, default=60, help="CPU seconds that a tool may take for a model")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(names()))
        return
    unknown = [name for name in options.models if name not in names()]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; --list prints the known ones")
    if options.one:
        import torch

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        print("\n" + json.dumps(both(options.models[0], options.limit)))
        return
    if not options.report:
        for name in options.models or names():
            if name not in known("anchor") or options.again:
                row = run(name, options.limit)
                rows = {**known("anchor"), name: row}
                write_json("anchor", [rows[key] for key in names() if key in rows])
                print(name, {tool: row[tool].get("coverage", row[tool].get("failure")) for tool in TOOLS}, flush=True)
    from bench.anchor_report import write_report

    write_report(list(known("anchor").values()))


if __name__ == "__main__":
    main()
