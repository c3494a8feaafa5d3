"""Which paragraph of Python's own reference answers a question? A search over text that every Python has.

    python topics.py when is an exception handler executed
    python topics.py --topic try,with the finally clause

The text is that of `help()`. A vector counts the words of a paragraph by their hashes, rare words for more, so this
needs no model: put the vectors of yours in their place. The first run builds topics.mmc, with the weights of words in
its metadata; all workers of a service would map that one file.
"""

from __future__ import annotations

import argparse
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmcache
from mmcache import Schema

FILE = Path("topics.mmc")
DIM = 512
PLACES = 8
"""Numbers of a vector to which one word adds, so that no two words count as one."""
SCHEMA = Schema("paragraphs", index=("topic",), embedding="vector", dim=DIM)


def words(text: str) -> list[str]:
    """Lower-case, without a plural's ending."""
    return [word.removesuffix("s") for word in re.findall(r"[a-z_]{4,}", text.lower())]


def paragraphs() -> Iterator[tuple[str, str, str]]:
    """(key, topic, text) of each that says something."""
    for topic, text in topics.items():
        for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
            if len({*words(paragraph)}) >= 8:
                yield f"{topic}#{number}", topic, " ".join(paragraph.split())


def vector_of(found: Iterable[str], weights: Mapping[str, float]) -> NDArray[np.float32]:
    """float32, (DIM,): each word adds to some numbers, up or down, by its hashes."""
    vector = np.zeros(DIM, np.float32)
    for word, count in Counter(found).items():
        for place in range(PLACES):
            code = zlib.crc32(f"{place}{word}".encode())
            vector[code % DIM] += (1 if code >> 31 else -1) * (1 + math.log(count)) * weights.get(word, 0.0)
    return vector


def build() -> None:
    every = list(paragraphs())
    seen = Counter(word for _, _, text in every for word in set(words(text)))
    weights = {word: math.log(len(every) / count) for word, count in seen.items()}

    def records() -> Iterator[dict[str, Any]]:
        for key, topic, text in every:
            yield {"id": key, "topic": topic, "text": text, "vector": vector_of(words(text), weights)}

    mmcache.build(FILE, records(), SCHEMA, metadata={"weights": weights})


def main() -> None:
    parser = argparse.ArgumentParser(description="Search the reference of Python.")
    parser.add_argument("question", nargs="+")
    parser.add_argument("--topic", help="only of these topics, separated by commas")
    parser.add_argument("-k", type=int, default=5)
    asked = parser.parse_args()
    if not FILE.exists():
        build()
    with mmcache.Snapshot.open(FILE) as snapshot:
        vector = vector_of(words(" ".join(asked.question)), snapshot.metadata["weights"])
        if not vector.any():
            parser.error("the reference has none of these words")
        where = {"topic": asked.topic.split(",")} if asked.topic else {}
        for record, score in snapshot.nearest(vector, k=asked.k, where=where).pairs():
            print(f"{score:.3f}  {record['topic']:16}  {record['text'][:90]}")
        print(f"\n{len(snapshot)} paragraphs of {len(snapshot.terms('topic'))} topics")


if __name__ == "__main__":
    main()
