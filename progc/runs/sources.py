"""Opens what a command takes as a network: a model, as everywhere, or the folder of a run or of one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.models.opening import open_source
from progc.models.source import Source
from progc.runs import networks
from progc.runs.folder import is_run
from progc.runs.networks import Note, Phase
from progc.runs.trained import TrainedNetwork

if TYPE_CHECKING:
    from progc.ir.program import Program

Network = Source | TrainedNetwork


def open_network(
    text: str, *, weights: Path | None = None, average: float | None = None, note: Note = lambda text: None
) -> Network:
    """Reads the text of a source. Nothing is built; the weights of a run are found and verified.

    Args:
        text: a source, or the folder of a run or of a checkpoint.
        weights: file with the weights of a source; a run has its own.
        average: decay of the averaged copy of a run to take for its weights.
        note: called with sentences about the run.

    Raises:
        InputError: the text is neither, or an option does not go with it.
    """
    if not is_run(text):
        if average is not None:
            raise InputError(
                f"--average {average!r} needs a run, but {text} is not one; give averaged weights as a file"
            )
        return open_source(text)
    if weights is not None:
        raise InputError(f"{text} is a run and has its own weights; leave out --weights {weights}")
    return TrainedNetwork.open(text, average=average, note=note)


def program_of(network: Network, *, weights: Path | None = None, seed: int = 0, phase: Phase, note: Note) -> Program:
    """Builds and captures a network, with its weights.

    Args:
        network: what `open_network` returned.
        weights: file with the weights of a source; None: as the source makes them.
        seed: seed of a source's constructor; a run has its own.

    Raises:
        InputError: the network cannot be built, or weights do not fit.
        CaptureError: it cannot be captured.
    """
    if isinstance(network, TrainedNetwork):
        return network.program(phase=phase, note=note)
    return networks.captured(network, weights=weights, seed=seed, phase=phase, note=note)


def origin_of(network: Network, weights: Path | None) -> str | None:
    """Returns where the weights come from, for a report; None if they are new."""
    if isinstance(network, TrainedNetwork):
        return network.origin
    return str(weights) if weights is not None else network.trained
