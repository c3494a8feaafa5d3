"""Made-up banks of test patterns in SQLite: of the demo, and of the project's own tests and benchmarks.

`generate(n, dim=d, seed=s)` gives the same records everywhere and for ever, and its first records do not depend on n:
only the raw bits of numpy's PCG64 are used (its distributions may change between versions), and arithmetic that IEEE
754 rounds exactly (sums in integers, no transcendental function). Skews are like those of real banks: few domains and
frameworks have most patterns, few patterns most uses. Embeddings are of unit length and cluster by domain, then type,
then framework.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from mmcache.presets.patterns import DDL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["generate", "generate_agents", "write_bank"]

_BLOCK = 512
_CENTRES, _PATTERNS, _AGENTS = range(3)  # streams of random bits

# Name -> weight.
_DOMAINS = {
    "api": 220, "ui": 170, "database": 130, "auth": 110, "payments": 80, "search": 70, "messaging": 60,
    "storage": 50, "reporting": 40, "notifications": 30, "scheduling": 22, "localization": 12, "migration": 6,
}  # fmt: skip
_TYPES = {
    "unit-test": 460, "integration-test": 210, "e2e-test": 110, "contract-test": 60, "property-test": 50,
    "performance-test": 40, "security-test": 30, "snapshot-test": 20, "accessibility-test": 12, "mutation-test": 8,
}  # fmt: skip
_FRAMEWORKS = {
    "pytest": 340, "jest": 220, "junit": 150, "playwright": 90, "vitest": 60, "cypress": 50, "go-test": 50,
    "rspec": 25, "xunit": 15,
}  # fmt: skip
_UI_FRAMEWORKS = _FRAMEWORKS | {"pytest": 40, "jest": 360, "junit": 30, "playwright": 260, "cypress": 170, "go-test": 5}

_SUBJECTS = {
    "api": ("pagination cursor", "rate limiter", "error envelope", "idempotency key", "content negotiation"),
    "ui": ("login form", "data table", "date picker", "modal dialog", "navigation menu"),
    "database": ("connection pool", "unique constraint", "read replica", "transaction isolation", "query planner"),
    "auth": ("refresh token", "password reset", "session cookie", "role check", "one-time code"),
    "payments": ("refund", "currency rounding", "webhook signature", "chargeback", "partial capture"),
    "search": ("ranking", "facet count", "typo tolerance", "synonym list", "index refresh"),
    "messaging": ("dead-letter queue", "consumer offset", "retry policy", "message order", "poison message"),
    "storage": ("multipart upload", "checksum", "signed link", "quota", "lifecycle rule"),
    "reporting": ("daily rollup", "CSV export", "time-zone bucket", "empty period", "percentile"),
    "notifications": ("unsubscribe link", "digest", "push token", "quiet hours", "template fallback"),
    "scheduling": ("cron expression", "daylight-saving change", "overlapping run", "missed run", "lease"),
    "localization": ("plural rule", "right-to-left layout", "missing key", "number format", "locale fallback"),
    "migration": ("backfill", "column rename", "rollback", "dual write", "schema version"),
}
_CONDITIONS = (
    "when the input is empty", "after a timeout", "under concurrent requests", "with an expired credential",
    "when a dependency is down", "with the largest allowed payload", "on a retry", "with non-ASCII text (naïve, 日本)",
    "when the clock moves back", "for a user without permission", "after a restart", "with duplicate entries",
)  # fmt: skip
_OUTCOMES = (
    "is rejected with a clear message", "keeps the previous state", "is applied exactly once", "recovers by itself",
    "returns a stable order", "leaves nothing behind", "reports the cause", "stays within its budget",
)  # fmt: skip
_TEMPLATES = {
    "pytest": 'def test_{name}({fixture}):\n    """The {subject} {outcome} {condition}."""\n'
    "    result = {fixture}.run({case!r})\n    assert result.ok\n    assert result.calls == {calls}\n",
    "junit": "@Test\nvoid {name}() {{\n    // The {subject} {outcome} {condition}.\n"
    '    var result = {fixture}.run("{case}");\n    assertTrue(result.ok());\n'
    "    assertEquals({calls}, result.calls());\n}}\n",
    "go-test": "func Test_{name}(t *testing.T) {{\n\t// The {subject} {outcome} {condition}.\n"
    '\tresult := {fixture}.Run(t, "{case}")\n\tif !result.OK || result.Calls != {calls} {{\n'
    '\t\tt.Fatalf("got %+v", result)\n\t}}\n}}\n',
    "rspec": "it 'handles the {subject} {condition}' do\n  # It {outcome}.\n"
    "  result = {fixture}.run('{case}')\n  expect(result).to be_ok\n  expect(result.calls).to eq({calls})\nend\n",
}
_SCRIPT = (
    "test('the {subject} {outcome} {condition}', async () => {{\n  const result = await {fixture}.run('{case}');\n"
    "  expect(result.ok).toBe(true);\n  expect(result.calls).toBe({calls});\n}});\n"
)
_FIXTURES = ("client", "service", "gateway", "harness", "sandbox")

_AGENT_TYPES = ("test-generator", "coverage-analyzer", "flaky-hunter", "performance-tester", "security-scanner")
_MODELS = ("small", "medium", "large")


def generate(n: int, *, dim: int = 768, seed: int = 0) -> Iterator[dict[str, Any]]:
    """n valid patterns, "pattern-0", "pattern-1", ...; an embedding is `4 * dim` bytes of little-endian float32.

    >>> [pattern["id"] for pattern in mmcache.presets.patterns.generate(2, dim=8)]
    ['pattern-0', 'pattern-1']
    """
    fields = ("id", "type", "domain", "framework", "content", "metadata", "embedding")
    for row in islice(_rows(n, dim, seed), n):
        yield dict(zip(fields, row, strict=True))


def generate_agents(n: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """n valid agent configurations, by id "agent-0", ...; `config_json` is JSON text.

    >>> [agent["agent_id"] for agent in mmcache.presets.patterns.generate_agents(2)]
    ['agent-0', 'agent-1']
    """
    bits = _bits(seed, _AGENTS)
    for i in range(n):
        draw = [int(word) >> 32 for word in bits.random_raw(6)]
        config = {
            "model": _MODELS[draw[0] % 3],
            "temperature": draw[1] % 11 / 10,
            "max_parallel": 1 << draw[2] % 5,
            "frameworks": sorted({list(_FRAMEWORKS)[draw[3] % 9], list(_FRAMEWORKS)[draw[4] % 9]}),
            "retry": {"attempts": 1 + draw[5] % 4, "backoff_seconds": 0.5},
        }
        yield {
            "agent_id": f"agent-{i}",
            "type": _AGENT_TYPES[i % len(_AGENT_TYPES)],
            "config_json": json.dumps(config),
            "version": f"{1 + draw[0] % 3}.{draw[1] % 10}.{draw[2] % 20}",
            "updated_at": f"2025-{1 + draw[3] % 12:02}-{1 + draw[4] % 28:02}T{draw[5] % 24:02}:00:00Z",
        }


def write_bank(path: str | os.PathLike[str], n: int, *, dim: int = 768, seed: int = 0, agents: int = 32) -> None:
    """A new SQLite file with the patterns of `generate` and the configurations of `generate_agents`.

    Streams, in a few MB beside SQLite's cache. A failure leaves an empty file, a crash a broken one: it is not written
    durably, as it can be made again. Raises FileExistsError when there is a database with anything in it.

    >>> write_bank("bank.db", 10, dim=8)
    >>> report = mmcache.build("bank.mmc", "bank.db", Schema("patterns", embedding="embedding", dim=8))
    >>> dict(report.records)
    {'patterns': 10}
    """
    db = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF", "cache_size = -65536"):
            db.execute(f"PRAGMA {pragma}")
        with db:
            db.execute("BEGIN IMMEDIATE")
            if db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise FileExistsError(errno.EEXIST, "there is a database already; give another path", os.fspath(path))
            _fill(db, n, dim, seed, agents)
    finally:
        db.close()


def _fill(db: sqlite3.Connection, n: int, dim: int, seed: int, agents: int) -> None:
    statements = DDL.split(";\n")
    for statement in statements:
        if "CREATE TABLE" in statement:
            db.execute(statement)
    dumps = json.JSONEncoder(ensure_ascii=False).encode
    db.executemany(
        "INSERT INTO patterns VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (id_, type_, domain, framework, content, dumps(metadata), embedding)
            for id_, type_, domain, framework, content, metadata, embedding in islice(_rows(n, dim, seed), n)
        ),
    )
    rows = (tuple(config.values()) for config in generate_agents(agents, seed=seed))
    db.executemany("INSERT INTO agent_configs VALUES (?, ?, ?, ?, ?)", rows)
    for statement in statements:  # after the rows, which is faster
        if "CREATE INDEX" in statement:
            db.execute(statement)


Row = tuple[str, str, str, str, str, dict[str, Any], bytes]


def _rows(n: int, dim: int, seed: int) -> Iterator[Row]:
    """At least n rows: whole blocks, each from random bits of its own."""
    bank = _Bank(dim, seed)
    for number in range(-(-n // _BLOCK)):
        yield from bank.block(number)


class _Bank:
    """The distributions and cluster centres of one (dim, seed)."""

    def __init__(self, dim: int, seed: int) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.dim = dim
        self.seed = seed
        bits = _bits(seed, _CENTRES)
        # Weights of 3 : 2 : 1 : 2 with the noise make patterns of one domain about 0.5 similar, of nothing in common 0.
        self._domains = 3 * _noise(bits, len(_DOMAINS), dim)
        self._types = 2 * _noise(bits, len(_TYPES), dim)
        self._frameworks = _noise(bits, len(_FRAMEWORKS), dim)

    def block(self, number: int) -> Iterator[Row]:
        import numpy as np

        bits = _bits(self.seed, _PATTERNS, number)
        domain = _pick(bits, _DOMAINS)
        type_ = _pick(bits, _TYPES)
        ui = domain == list(_DOMAINS).index("ui")
        framework = np.where(ui, _pick(bits, _UI_FRAMEWORKS), _pick(bits, _FRAMEWORKS))
        metadata = _metadata(bits)
        words = (bits.random_raw(_BLOCK) >> np.uint64(8)).tolist()
        embeddings = self._embeddings(bits, domain, type_, framework)
        width = 4 * self.dim
        names = list(_DOMAINS), list(_TYPES), list(_FRAMEWORKS)
        picks = zip(domain.tolist(), type_.tolist(), framework.tolist(), strict=True)
        for i, (d, t, f) in enumerate(picks):
            row = number * _BLOCK + i
            content = _content(names[0][d], names[2][f], row, words[i])
            embedding = embeddings[i * width : (i + 1) * width]
            yield f"pattern-{row}", names[1][t], names[0][d], names[2][f], content, metadata[i], embedding

    def _embeddings(
        self, bits: np.random.PCG64, domain: NDArray[Any], type_: NDArray[Any], framework: NDArray[Any]
    ) -> bytes:
        """Unit vectors as bytes. Integers up to the norm, so that no order of additions can show in the last bit."""
        import numpy as np

        vectors = 2 * _noise(bits, _BLOCK, self.dim)
        vectors += self._domains[domain]
        vectors += self._types[type_]
        vectors += self._frameworks[framework]
        vectors[~vectors.any(axis=1), 0] = 1
        squares = np.einsum("ij,ij->i", vectors, vectors)
        unit: bytes = (vectors / np.sqrt(squares.astype("f8"))[:, None]).astype("<f4").tobytes()
        return unit


def _bits(seed: int, *stream: int) -> np.random.PCG64:
    import numpy as np

    return np.random.PCG64(np.random.SeedSequence([seed, *stream]))


def _unit(bits: np.random.PCG64) -> NDArray[Any]:
    """A block of numbers, uniform in [0, 1)."""
    import numpy as np

    return (bits.random_raw(_BLOCK) >> np.uint64(11)) * 2.0**-53


def _noise(bits: np.random.PCG64, n: int, dim: int) -> NDArray[Any]:
    """Integers, near to normally distributed around 0: each is the sum of the four quarters of a random word."""
    import numpy as np

    raw = bits.random_raw(n * dim)
    quarter = np.uint64(0xFFFF)
    total = raw & quarter
    for shift in (16, 32, 48):
        total += (raw >> np.uint64(shift)) & quarter
    return total.view("i8").reshape(n, dim) - np.int64(2 * 0xFFFF)


def _pick(bits: np.random.PCG64, weights: dict[str, int]) -> NDArray[Any]:
    """A block of positions in `weights`, each as often as its weight says."""
    import numpy as np

    bounds = np.cumsum(list(weights.values()))
    positions: NDArray[Any] = np.searchsorted(bounds, np.floor(_unit(bits) * bounds[-1]), side="right")
    return positions


def _metadata(bits: np.random.PCG64) -> list[dict[str, Any]]:
    import numpy as np

    u = [_unit(bits) for _ in range(6)]
    coverage = np.floor(1000 - 700 * u[0] * u[0]) / 1000
    rare = u[1] * u[1] * u[1] * u[1]
    flakiness = np.floor(900 * rare * rare) / 1000
    calm = np.where(u[2] < 0.80, "success", np.where(u[2] < 0.92, "failure", "unknown"))
    verdict = np.where(flakiness > 0.4, "flaky", calm)
    usage = np.floor(2 / (u[3] + 0.002)).astype("i8")
    success = np.floor(usage * (1 - flakiness) * np.where(verdict == "failure", 0.4, 0.97)).astype("i8")
    start, span = np.datetime64("2023-01-01T00:00:00", "s"), 2 * 365 * 86_400
    age = np.floor(u[4] * span)
    created = np.datetime_as_string(start + age.astype("m8[s]"))
    used = np.datetime_as_string(start + (age + np.floor((span - age) * (1 - u[5] * u[5]))).astype("m8[s]"))
    columns = coverage, flakiness, verdict, created, used, usage, success
    return [
        {
            "coverage": c,
            "flakiness_score": f,
            "verdict": v,
            "created_at": a + "Z",
            "last_used": b + "Z",
            "usage_count": n,
            "success_count": k,
        }
        for c, f, v, a, b, n, k in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _content(domain: str, framework: str, row: int, word: int) -> str:
    draws = []
    for choices in (_SUBJECTS[domain], _CONDITIONS, _OUTCOMES, _FIXTURES):
        word, index = divmod(word, len(choices))
        draws.append(choices[index])
    subject, condition, outcome, fixture = draws
    return _TEMPLATES.get(framework, _SCRIPT).format(
        name=f"{subject.replace(' ', '_').replace('-', '_')}_{row}",
        subject=subject,
        condition=condition,
        outcome=outcome,
        fixture=fixture,
        case=f"{domain}/{subject.replace(' ', '-')}/{row % 97}",
        calls=1 + word % 7,
    )
