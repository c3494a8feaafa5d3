"""The counter files of one cache file, `.<name>.<nonce>.counts`: one for each worker that lives, and those of ended
workers, which the next workers adopt.

    blocks   two, written in turn: form, schema, nonce, sequence, time, lives, the first sample, label, gauges, what
             this life counted, what ended lives counted, checksum
    samples  three rings: the last flush of each second, minute and hour that had one
    events   a ring of the last ones: serial, time, kind, value, checksum

The block with the higher sequence counts. Its owner alone writes a file, and holds its `flock` for life, so that others
know that it lives; no lock is waited for. An adopter takes the lock of a file without an owner, and its first block
adds the last life to the ended ones: as one block holds both, a kill at any call neither loses nor doubles a count.
Nothing is mapped and nothing is synced: a power cut may cost counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .. import wallclock
from ..errors import MissingFileError, MmcacheError, UnusableFileError
from ..logs import log_once
from ..storage import fs, shared
from .fleet import History, Sample
from .metrics import (
    BATCH_HITS,
    CAUSES,
    COUNTED,
    FALLBACKS,
    FIRST_COUNTER,
    HITS,
    LOOKS,
    MISSES,
    SCHEMA,
    WORDS,
)
from .tally import U64

__all__ = ["RING", "SIZE", "Block", "CounterFile", "Found", "names", "read", "remove", "sample_of"]

RING: Final = 256
"""Events kept, in each file and of all."""
_FORM: Final = int.from_bytes(b"mmc-cnt\x01", "little")
_LABEL_BYTES: Final = 64
_SAMPLE: Final = len(Sample._fields)
_LIFE: Final = 6 + _SAMPLE + _LABEL_BYTES // 8
_ENDED: Final = _LIFE + WORDS
_BLOCK: Final = _ENDED + WORDS - FIRST_COUNTER + 1
"""Words of a block, the checksum included."""
_PLACE: Final = -(-8 * _BLOCK // 4096) * 4096
"""Bytes from one block to the next: whole pages, so that a block is written within as few as can be."""
_RESOLUTIONS: Final = (10**9, 60 * 10**9, 3600 * 10**9)
_SAMPLES: Final = 64
_SAMPLES_AT: Final = 2 * _PLACE
_SAMPLE_BYTES: Final = 8 * (_SAMPLE + 1)
_EVENTS_AT: Final = _SAMPLES_AT + len(_RESOLUTIONS) * _SAMPLES * _SAMPLE_BYTES
_EVENT: Final = 5
SIZE: Final = -(-(_EVENTS_AT + RING * 8 * _EVENT) // 4096) * 4096
_HITS, _BATCH_HITS, _LOOKS, _MISSES = (word - FIRST_COUNTER for word in (HITS, BATCH_HITS, LOOKS, MISSES))
_FALLBACKS: Final = slice(FALLBACKS - FIRST_COUNTER, FALLBACKS - FIRST_COUNTER + len(CAUSES))
_LAST: Final = 2**63
"""No sequence or serial gets as far: what claims to have is not ours."""


class Block(NamedTuple):
    """One flush. lives: begun in this file. life: all words of the last life; ended: sums of those before."""

    sequence: int
    time_ns: int
    lives: int
    first: Sample
    label: bytes
    life: array[int]
    ended: array[int]

    def sums(self) -> array[int]:
        """What all lives counted."""
        return array("Q", (min(one + other, U64) for one, other in zip(self.life[COUNTED], self.ended, strict=True)))


class Found(NamedTuple):
    """A counter file as it was read. events: serial, time in ns, kind, value, oldest first."""

    block: Block
    history: History
    events: list[tuple[int, int, int, int]]


# --- names ------------------------------------------------------------------------------------------------------------


def _name_of(path: str, nonce: int) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{nonce:016x}.counts")


def names(path: str) -> list[tuple[int, str]]:
    """(nonce, path) of all that are there."""
    directory, name = os.path.split(path)
    prefix, suffix = f".{name}.", ".counts"
    found = []
    for candidate in shared.names_beside(path):
        if candidate.startswith(prefix) and candidate.endswith(suffix):
            token = candidate[len(prefix) : -len(suffix)]
            if len(token) == 16 and set(token) <= set("0123456789abcdef"):
                found.append((int(token, 16), os.path.join(directory, candidate)))
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


def read(nonce: int, where: str) -> Found | None:
    """None where there is no file, or nothing in it that is understood. Raises UnusableFileError as `ReadFile`."""
    try:
        with contextlib.closing(fs.ReadFile(where)) as file:
            for _ in range(3):  # Case: both blocks were written while they were read
                found = _parsed(nonce, file.read(0, SIZE))
                if found is not None:
                    return found
    except MissingFileError:
        pass
    return None


def _parsed(nonce: int, content: bytes) -> Found | None:
    blocks = [_block(nonce, content[at : at + 8 * _BLOCK]) for at in (0, _PLACE)]
    block = max((one for one in blocks if one is not None), default=None, key=lambda one: one.sequence)
    if block is None:
        return None
    last = sample_of(block.time_ns, block.sums())
    return Found(block, History(block.first, last, tuple(_samples(content))), sorted(_events(content)))


def _block(nonce: int, content: bytes) -> Block | None:
    if len(content) < 8 * _BLOCK:
        return None
    words = array("Q", content)
    form, schema, found, sequence, time_ns, lives = words[:6]
    is_ours = (form, schema, found) == (_FORM, SCHEMA, nonce) and sequence < _LAST
    if not is_ours or words[-1] != xxh3_64_intdigest(content[:-8]):
        return None
    first = Sample(*words[6 : 6 + _SAMPLE])
    label = words[6 + _SAMPLE : _LIFE].tobytes()
    return Block(sequence, time_ns, lives, first, label, words[_LIFE:_ENDED], words[_ENDED:-1])


def _samples(content: bytes) -> Iterator[Sample]:
    for at in range(_SAMPLES_AT, _EVENTS_AT, _SAMPLE_BYTES):
        if words := _checked(content[at : at + _SAMPLE_BYTES]):
            yield Sample(*words)


def _events(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    for place in range(RING):
        at = _EVENTS_AT + 8 * _EVENT * place
        if words := _checked(content[at : at + 8 * _EVENT]):
            serial, time_ns, kind, value = words
            if serial % RING == place and 0 < serial < _LAST:
                yield serial, time_ns, kind, value


def _checked(content: bytes) -> Sequence[int]:
    """Words that their checksum, the last one, is right for; else none."""
    if len(content) % 8 or not any(content):
        return ()
    *words, checksum = array("Q", content)
    return words if checksum == xxh3_64_intdigest(content[:-8]) else ()


def _sealed(words: Sequence[int]) -> bytes:
    content = array("Q", words).tobytes()
    return content + struct.pack("=Q", xxh3_64_intdigest(content))


def sample_of(time_ns: int, *counts: Sequence[int]) -> Sample:
    """Of what lives counted, all together."""
    hits = misses = fallbacks = looks = 0
    for sums in counts:
        hits += sums[_HITS] + sums[_BATCH_HITS]
        looks += sums[_LOOKS]
        misses += sums[_MISSES]
        fallbacks += sum(sums[_FALLBACKS])
    return Sample(time_ns, *(min(max(0, n), U64) for n in (hits - looks, misses, fallbacks)))


# --- owning -----------------------------------------------------------------------------------------------------------


class CounterFile:
    """A counter file, and the lock that keeps it. One thread at a time calls a method. written: words, by this life.

    Every method but `close` raises OSError as the system; nothing that was written before is lost then.
    """

    def __init__(self, held: shared.HeldLock, path: str, nonce: int, found: Found) -> None:
        self.path = path
        self.nonce = nonce
        self._held = held
        block = found.block
        self._sequence = block.sequence
        self._lives = block.lives
        self._first = block.first
        self._last = found.history.last
        self._ended = block.sums()
        self._serial = found.events[-1][0] if found.events else 0
        self._is_begun = False
        self.written = array("Q", bytes(8 * WORDS))

    @classmethod
    def open(cls, path: str) -> CounterFile:
        """One that has lost its owner, or a new one. Raises MmcacheError or OSError where there can be none."""
        return _adopted(path) or cls.anew(path, Sample(0, 0, 0, 0))

    @classmethod
    def anew(cls, path: str, counted: Sample) -> CounterFile:
        """A new one. counted: by this life, in a file that is gone. Raises as `open`."""
        error: Exception = FileNotFoundError(path)
        for _ in range(5):
            nonce = int.from_bytes(os.urandom(8), "big")
            where = _name_of(path, nonce)
            found = _nothing(counted._replace(time_ns=wallclock.now_ns()))
            content = _content(nonce, found.block).ljust(SIZE, b"\0")
            try:
                return cls(shared.create_held(where, content), where, nonce, found)
            except (FileNotFoundError, BlockingIOError) as refused:
                error = refused  # Case: an adopter found it before it was locked, and empty
        raise error

    def is_current(self) -> bool:
        """Whether its path still names it, and its descriptor is still its own. A `stat` and an `fstat`."""
        return self._held.is_ours() and shared.identity_at(self.path) == self._held.identity

    def is_ours(self) -> bool:
        """Whether the descriptor is still its own: else another process may adopt it at any time."""
        return self._held.is_ours()

    def write(self, label: bytes, words: array[int]) -> None:
        """A flush of this life. What it replaces stands until it is whole."""
        time_ns = wallclock.now_ns()
        sample = sample_of(time_ns, words[COUNTED], self._ended)
        self._keep(self._last, time_ns)
        lives = self._lives + (not self._is_begun)
        label = label[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")
        block = Block(self._sequence + 1, time_ns, min(lives, U64), self._first, label, words, self._ended)
        self._held.write(_content(self.nonce, block), block.sequence % 2 * _PLACE)
        self._sequence, self._lives, self._is_begun, self._last = block.sequence, block.lives, True, sample
        self.written = words

    def _keep(self, sample: Sample, now_ns: int) -> None:
        """Write the sample of the last flush where this one is of another second, minute or hour."""
        for level, resolution in enumerate(_RESOLUTIONS):
            bucket = sample.time_ns // resolution
            if bucket != now_ns // resolution:
                place = level * _SAMPLES + bucket % _SAMPLES
                self._held.write(_sealed(sample), _SAMPLES_AT + place * _SAMPLE_BYTES)

    def append(self, time_ns: int, kind: int, value: int) -> None:
        """Add an event; the oldest makes room."""
        serial = self._serial + 1
        self._held.write(_sealed((serial, time_ns, kind, value)), _EVENTS_AT + serial % RING * 8 * _EVENT)
        self._serial = serial

    def close(self) -> None:
        """Leave it to the next worker."""
        self._held.close()


_PASSES: Final = 3
"""Looks for a file without an owner: workers that end and begin meanwhile may each time be where this one looks."""


def _adopted(path: str) -> CounterFile | None:
    """A file whose owner ended. What is there in the place of one, and has no owner, is removed."""
    there = names(path)
    random.shuffle(there)  # so that workers that begin at once seldom try the same one
    for nonce, where in _PASSES * there:
        # One that cannot be trusted, read or written stays, and keeps no other.
        with contextlib.suppress(MmcacheError, OSError):
            held = shared.take_held(where)
            if held is None:
                continue
            try:
                content = held.read(SIZE)
                found = _parsed(nonce, content)
                if found is not None:
                    return CounterFile(held, where, nonce, found)
                if content:  # else its maker has not locked it yet
                    log_once("counters_foreign", path, "a counter file of another version, or damaged, is begun anew")
                with fs.Directory(path) as directory:
                    directory.unlink(os.path.basename(where))
            except BaseException:
                held.close()
                raise
            held.close()
    return None


def _nothing(first: Sample) -> Found:
    life, ended = array("Q", bytes(8 * WORDS)), array("Q", bytes(8 * (WORDS - FIRST_COUNTER)))
    block = Block(0, first.time_ns, 0, first, bytes(_LABEL_BYTES), life, ended)
    return Found(block, History(first, first, ()), [])


def _content(nonce: int, block: Block) -> bytes:
    head = (_FORM, SCHEMA, nonce, block.sequence, block.time_ns, block.lives, *block.first)
    content = struct.pack(f"={len(head)}Q", *head) + block.label + block.life.tobytes() + block.ended.tobytes()
    return content + struct.pack("=Q", xxh3_64_intdigest(content))


# --- the end ----------------------------------------------------------------------------------------------------------


def remove(path: str, *, dry_run: bool = False) -> list[str]:
    """Remove all: their paths. A worker that lives makes a new one at its next poll, of what it counted itself.

    Raises PublishError or UntrustedPathError about the directory; a file of a stranger stays. dry_run: only look.
    """
    removed = []
    with fs.Directory(path) as directory:
        for _, where in names(path):
            with contextlib.suppress(UnusableFileError):
                directory.check_ours(os.path.basename(where))
                if not dry_run:
                    directory.unlink(os.path.basename(where))
                removed.append(where)
    return removed
