"""Saves state that is sharded over ranks: every rank writes its own rows, and reading joins them.

The file of a rank is a safetensors file in the layout of the Hugging Face storage of torch.distributed.checkpoint
(with the offsets of its pieces in the header), so the reader of torch can load the weights too. `shards.json` holds the
places of all pieces as plain data; no pickle is written or read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from progc.checkpoints.manifest import FileEntry
from progc.errors import InputError
from progc.files.reading import is_count
from progc.ranks.agreeing import gathered, told

SHARDS = "shards.json"
_MODEL = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Spread:
    """A tensor that is split over ranks by rows (dim 0).

    Attributes:
        shape: shape of the whole tensor.
        rows: rank, first row and end row (exclusive) of every piece; a tensor with one piece is whole.
    """

    shape: tuple[int, ...]
    rows: tuple[tuple[int, int, int], ...]

    @classmethod
    def from_json(cls, data: Any) -> Spread:
        """Reads what `dataclasses.asdict` returned.

        Raises:
            ValueError: the data are invalid.
        """
        if not isinstance(data, dict) or data.keys() != {"shape", "rows"}:
            raise ValueError("expected shape and rows")
        shape, rows = data["shape"], data["rows"]
        if not isinstance(shape, list) or not all(map(is_count, shape)) or not isinstance(rows, list) or not rows:
            raise ValueError("invalid shape or rows")
        if not all(isinstance(row, list) and len(row) == 3 and all(map(is_count, row)) for row in rows):
            raise ValueError("invalid rows")
        ends = [0, *(row[2] for row in rows)]
        if any(begin != row[1] or row[2] < begin for begin, row in zip(ends, rows, strict=False)):
            raise ValueError("rows overlap or leave a gap")
        if ends[-1] != (shape[0] if shape else 1):
            raise ValueError("rows do not add up to the shape")
        return cls(tuple(shape), tuple((row[0], row[1], row[2]) for row in rows))


def is_spread(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is a DTensor."""
    return hasattr(tensor, "full_tensor")


def shard_file(number: int, world: int) -> str:
    """Returns the name of the file with the pieces of a rank."""
    return f"shard-{number:05d}-of-{world:05d}.safetensors"


def key_of(file: str, name: str) -> str:
    """Returns the key of a tensor in the file of a rank; weights keep their names."""
    return name if file == _MODEL else f"{file.removesuffix('.safetensors')}/{name}"


def cut(
    files: Mapping[str, Mapping[str, torch.Tensor]], rank: int, world: int
) -> tuple[dict[str, torch.Tensor], dict[str, str], str]:
    """Returns what a rank writes in place of these files.

    Args:
        files: tensors by file and name.
        rank, world: rank of this process and number of ranks.

    Returns:
        The pieces of the rank by key, further entries of the header, and the text of `shards.json`, which is the same
        on all ranks.

    Raises:
        InputError: a tensor is not sharded by rows over all ranks.
    """
    pieces: dict[str, torch.Tensor] = {}
    offsets: dict[str, Any] = {}
    index: dict[str, dict[str, Any]] = {}
    local: dict[int, torch.Tensor] = {}
    for file, tensors in files.items():
        index[file] = {}
        for name, tensor in tensors.items():
            spread = _spread(tensor, name, world)
            index[file][name] = dataclasses.asdict(spread)
            own = next((row for row in spread.rows if row[0] == rank), None)
            if own is None:
                continue
            key = key_of(file, name)
            assert key not in pieces, key
            if id(tensor) not in local:
                whole: Any = tensor
                local[id(tensor)] = whole.to_local() if is_spread(tensor) else tensor
            pieces[key] = local[id(tensor)]
            assert not spread.shape or pieces[key].shape[0] == own[2] - own[1], name
            offsets[key] = {"saved_offsets": [own[1], *[0] * (len(spread.shape) - 1)] if spread.shape else []}
    header = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    return pieces, header, json.dumps({"ranks": world, "files": index}, indent=1) + "\n"


def _spread(tensor: torch.Tensor, name: str, world: int) -> Spread:
    shape = tuple(tensor.shape)
    if not is_spread(tensor):
        return Spread(shape, ((0, 0, shape[0] if shape else 1),))
    placements: Any = tensor.placements  # type: ignore[attr-defined]
    if len(placements) != 1 or not placements[0].is_shard(0) or tensor.device_mesh.size() != world:  # type: ignore[attr-defined]
        raise InputError(f"{name} is sharded as {placements}; expected rows over all ranks, as fully_shard does")
    size = -(-shape[0] // world)
    ends = [min(number * size, shape[0]) for number in range(world + 1)]
    rows = [(number, *pair) for number, pair in enumerate(itertools.pairwise(ends)) if pair[0] < pair[1]]
    return Spread(shape, tuple(rows) or ((0, 0, shape[0]),))


class ShardIndex:
    """The contents of `shards.json`: where the pieces of tensors are."""

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        """
        Args:
            data: the JSON object.
            path: the file, for messages.

        Raises:
            InputError: the data are invalid; names `path`.
        """
        self.path = path
        try:
            if data.keys() != {"ranks", "files"} or not is_count(data["ranks"]) or not isinstance(data["files"], dict):
                raise ValueError("expected ranks and files")
            self.ranks = int(data["ranks"])
            self.files = {
                file: {name: Spread.from_json(item) for name, item in tensors.items()}
                for file, tensors in data["files"].items()
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} does not say where the pieces of tensors are ({error})") from error

    def whole(self, file: str, read: Callable[[str], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Returns the whole tensors of a file.

        Args:
            file: name of the file that the pieces replace.
            read: returns the tensors of the file of a rank.

        Raises:
            InputError: a piece is missing or has another shape.
        """
        found = {}
        for name, spread in self.files[file].items():
            pieces = []
            for number, begin, end in spread.rows:
                piece = read(shard_file(number, self.ranks)).get(key_of(file, name))
                if piece is None or tuple(piece.shape) != (end - begin, *spread.shape[1:])[: len(spread.shape)]:
                    raise InputError(f"{self.path}: rows {begin} to {end} of {name[:80]!r} are not in the named file")
                pieces.append(piece)
            found[name] = pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces)
        return found


class Others:
    """The other ranks, which write their files into the folder that rank 0 creates."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self._told = False

    def begin(self, folder: Path) -> None:
        """On rank 0: lets the other ranks write."""
        self._told = True
        told(str(folder), self.group)

    def end(self) -> dict[str, FileEntry]:
        """On rank 0: waits for the other ranks, and returns the files that they wrote.

        Raises:
            InputError: a rank could not write.
        """
        found = gathered(({}, None), self.group)
        failed = next(((number, text) for number, (_, text) in enumerate(found) if text is not None), None)
        if failed is not None:
            raise InputError(f"rank {failed[0]}: {failed[1]}")
        return {name: entry for entries, _ in found for name, entry in entries.items()}

    def give_up(self) -> None:
        """On rank 0: tells the other ranks that there is no folder to write into."""
        if not self._told:
            told(None, self.group)

    def take_part(self, write: Callable[[Path], Mapping[str, FileEntry]]) -> None:
        """On every other rank: waits for the folder and writes into it."""
        folder = told(None, self.group)
        if folder is None:
            return
        entries: dict[str, FileEntry] = {}
        text = None
        try:
            entries = dict(write(Path(folder)))
        except (OSError, InputError) as error:
            text = f"{getattr(error, 'strerror', None) or error}"
        gathered((entries, text), self.group)
