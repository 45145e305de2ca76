"""State that is spread over ranks, as files: every rank writes its own rows, whoever reads puts them together again.

The file of a rank is a safetensors file in the layout of torch.distributed.checkpoint's Hugging Face storage (the
offsets of its pieces in the header), so that torch's own reader finds the weights, too. What belongs where stands in
`shards.json`, once more as plain data: no pickle is written, and none is read.
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
from progc.ranks.gathering import gathered, told

SHARDS = "shards.json"
_MODEL = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Tensors of one file that are spread over ranks by rows (dim 0).

    Attributes:
        shape: of the whole tensor.
        rows: of every piece: number of the rank, first row, row behind the last one. One of a rank alone is whole.
    """

    shape: tuple[int, ...]
    rows: tuple[tuple[int, int, int], ...]

    @classmethod
    def from_json(cls, data: Any) -> Spread:
        """What `dataclasses.asdict` gave.

        Raises:
            ValueError: something else.
        """
        if not isinstance(data, dict) or data.keys() != {"shape", "rows"}:
            raise ValueError("expected shape and rows")
        shape, rows = data["shape"], data["rows"]
        if not isinstance(shape, list) or not all(map(is_count, shape)) or not isinstance(rows, list) or not rows:
            raise ValueError("shape or rows are none")
        if not all(isinstance(row, list) and len(row) == 3 and all(map(is_count, row)) for row in rows):
            raise ValueError("rows are none")
        ends = [0, *(row[2] for row in rows)]
        if any(begin != row[1] or row[2] < begin for begin, row in zip(ends, rows, strict=False)):
            raise ValueError("rows overlap or leave a gap")
        if ends[-1] != (shape[0] if shape else 1):
            raise ValueError("rows do not make the shape")
        return cls(tuple(shape), tuple((row[0], row[1], row[2]) for row in rows))


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def shard_file(number: int, world: int) -> str:
    """File of a rank's pieces."""
    return f"shard-{number:05d}-of-{world:05d}.safetensors"


def key_of(file: str, name: str) -> str:
    """Under which a tensor of a file stands in the file of a rank: weights under their names."""
    return name if file == _MODEL else f"{file.removesuffix('.safetensors')}/{name}"


def cut(
    files: Mapping[str, Mapping[str, torch.Tensor]], rank: int, world: int
) -> tuple[dict[str, torch.Tensor], dict[str, str], str]:
    """What a rank writes instead of these files.

    Returns:
        Its pieces by key; what the header says of them; the text of `shards.json`, the same on all ranks.

    Raises:
        InputError: a tensor that is spread in another way than by rows.
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
        raise InputError(f"{name} is spread as {placements}; expected rows over all ranks, as fully_shard does it")
    size = -(-shape[0] // world)
    ends = [min(number * size, shape[0]) for number in range(world + 1)]
    rows = [(number, *pair) for number, pair in enumerate(itertools.pairwise(ends)) if pair[0] < pair[1]]
    return Spread(shape, tuple(rows) or ((0, 0, shape[0]),))


class ShardIndex:
    """What `shards.json` says."""

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        """
        Raises:
            InputError: it says something else; names `path`.
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
        """The tensors of a file, put together.

        Args:
            read: gives the tensors of a rank's file.

        Raises:
            InputError: a piece is missing or has another shape.
        """
        found = {}
        for name, spread in self.files[file].items():
            pieces = []
            for number, begin, end in spread.rows:
                piece = read(shard_file(number, self.ranks)).get(key_of(file, name))
                if piece is None or tuple(piece.shape) != (end - begin, *spread.shape[1:])[: len(spread.shape)]:
                    raise InputError(f"{self.path}: rows {begin} to {end} of {name[:80]!r} are not in the file it says")
                pieces.append(piece)
            found[name] = pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces)
        return found


class Others:
    """The ranks that write their files into the folder which rank 0 has made."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self._told = False

    def begin(self, folder: Path) -> None:
        """On rank 0: they may write now."""
        self._told = True
        told(str(folder), self.group)

    def end(self) -> dict[str, FileEntry]:
        """On rank 0: what they wrote.

        Raises:
            InputError: one of them could not.
        """
        found = gathered(({}, None), self.group)
        failed = next(((number, text) for number, (_, text) in enumerate(found) if text is not None), None)
        if failed is not None:
            raise InputError(f"rank {failed[0]}: {failed[1]}")
        return {name: entry for entries, _ in found for name, entry in entries.items()}

    def give_up(self) -> None:
        """On rank 0: there will be no folder."""
        if not self._told:
            told(None, self.group)

    def take_part(self, write: Callable[[Path], Mapping[str, FileEntry]]) -> None:
        """On every other rank."""
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
