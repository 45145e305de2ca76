"""Seeds of samples, as pure functions of (seed, epoch, index).

They come from numpy's `SeedSequence` (O'Neill, Developing a seed_seq alternative, 2015), whose output numpy guarantees
across its versions. It hashes its words one after another, and the index of a sample is the last one: the seeds of a
whole batch are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SAMPLE = 2
"""Stream of a seed from which samples are seeded; the order of an epoch comes from another one."""
_MASK = 2**64 - 1
_WORD = 2**32
_POOL = 4  # words in the pool of a SeedSequence: each is hashed at first, then mixed with the three others
# Constants of SeedSequence (numpy/random/bit_generator.pyx).
_INIT_A, _MULT_A, _INIT_B, _MULT_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
_LEFT, _RIGHT, _SHIFT = 0xCA01F9DD, 0x4973F715, 16


def sequence(seed: int, *key: int) -> np.random.SeedSequence:
    """Returns the seed sequence of one stream of a seed; all numbers count modulo 2**64."""
    return np.random.SeedSequence(seed & _MASK, spawn_key=tuple(part & _MASK for part in key))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Returns the seed for everything drawn for sample `index` of the data set in this epoch: an int of 63 bits."""
    return int(sequence(seed, SAMPLE, epoch, index).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sample_seeds(seed: int, epoch: int, indices: Sequence[int]) -> list[int]:
    """Returns `sample_seed` for each index, computed in one pass."""
    if not indices or min(indices) < 0 or max(indices) >= _WORD:  # an index that is not one word
        return [sample_seed(seed, epoch, index) for index in indices]
    pool = sequence(seed, SAMPLE, epoch).pool.tolist()
    words = _POOL + 1 + max(-(-(epoch & _MASK).bit_length() // 32), 1)
    # The constants of both hashes change with every word that is hashed.
    entering = _INIT_A * pow(_MULT_A, _POOL * _POOL + _POOL * (words - _POOL), _WORD) % _WORD
    leaving = _INIT_B
    last = np.asarray(indices, dtype=np.uint32)
    halves = []
    for word in pool[:2]:  # 64 bits are made from two words of the pool
        mixed = np.uint32(_LEFT * word % _WORD) - np.uint32(_RIGHT) * _hashed(last, entering, _MULT_A)
        mixed ^= mixed >> _SHIFT
        halves.append(_hashed(mixed, leaving, _MULT_B).astype(np.uint64))
        entering, leaving = entering * _MULT_A % _WORD, leaving * _MULT_B % _WORD
    found: list[int] = ((halves[0] | halves[1] << 32) >> 1).tolist()
    return found


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Returns a generator (CPU) for everything drawn for one sample, seeded with `sample_seed`."""
    return torch.Generator().manual_seed(sample_seed(seed, epoch, index))


def _hashed(words: np.ndarray, constant: int, factor: int) -> np.ndarray:
    """One hash of words `[n]`, u32, modulo 2**32."""
    found: np.ndarray = (words ^ np.uint32(constant)) * np.uint32(constant * factor % _WORD)
    return found ^ found >> _SHIFT
