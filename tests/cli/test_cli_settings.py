"""Settings, and values as text: the small rules behind the commands."""

from __future__ import annotations

import argparse
import json
import math
import re
import tomllib

import msgpack
import pytest

from mmcache.cli import main
from mmcache.cli.doctor import DEPENDENCIES
from mmcache.cli.invalidate import REASONS
from mmcache.cli.jsontext import dumps
from mmcache.cli.options import PROFILES, SETTINGS, UsageError, policy_of, setting
from mmcache.freshness import PROFILES as POLICIES, Policy
from mmcache.sharing.alerts import Rules
from mmcache.sharing.events import REASONS as MEANINGS
from mmcache.text import ago, bytes_of, printable, short, span
from tests.support.console import ROOT


def settings(**flags: object) -> argparse.Namespace:
    return argparse.Namespace(**{"timeout": None, "verify": None, "access": None, **flags})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A directory below one with a pyproject.toml, and where we are."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    return tmp_path / "pyproject.toml"


def test_flag_beats_environment_beats_project_beats_default(project, monkeypatch):
    assert setting(settings(), "timeout") == 600
    project.write_text("[tool.mmcache]\ntimeout = 7.5\nverify = 'full'\n")
    assert setting(settings(), "timeout") == 7.5
    assert setting(settings(), "verify") == "full"
    monkeypatch.setenv("MMCACHE_TIMEOUT", "3")
    assert setting(settings(), "timeout") == 3
    assert setting(settings(timeout=0.0), "timeout") == 0
    assert setting(settings(), "access") == "mmap"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tool.mmcache]\ntimeout = 'soon'", "timeout of .tool.mmcache. in .*: expected seconds"),
        ("[tool.mmcache]\ntimout = 3", "unknown in .tool.mmcache.: timout; known: timeout"),
        ("[tool.mmcache", "not valid TOML"),
        ("[tool]\nmmcache = 3", "must be a table"),
    ],
)
def test_settings_that_are_nonsense_are_named_with_their_place(project, text, reason):
    project.write_text(text)
    with pytest.raises(UsageError, match=reason):
        setting(settings(), "timeout")


def test_a_project_that_is_not_about_us_is_not_parsed(project):
    project.write_text("this is no TOML")
    assert setting(settings(), "verify") == "lazy"


def test_nonsense_in_the_environment_is_a_usage_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MMCACHE_VERIFY", "some")
    assert main(["get", str(tmp_path / "f.mmc"), "a"]) == 2
    assert "MMCACHE_VERIFY: expected one of auto, full, lazy" in capsys.readouterr().err


def test_what_is_spelt_out_for_the_parser_is_what_the_package_has():
    assert tuple(POLICIES) == PROFILES
    assert tuple(MEANINGS) == REASONS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    least: dict[str, str] = {}
    for line in project["dependencies"]:
        name, version = re.findall(r"^(\w+)>=([\d.]+)", line)[0]
        least.setdefault(name, version)  # a later line is of a later Python
    assert least == DEPENDENCIES


def test_the_rules_of_status_are_those_of_the_package():
    ours = [SETTINGS[name][1] for name in ("min_hit_rate", "max_load_ms", "max_corruptions", "max_rebuilds", "window")]
    rules = Rules()
    assert ours == [rules.hit_rate, rules.load * 1e3, rules.corruptions, rules.rebuilds, rules.window]


def test_profile_and_ttl_make_a_policy(monkeypatch, project):
    assert policy_of(settings()) == Policy()
    project.write_text("[tool.mmcache]\nprofile = 'production'\n")
    assert policy_of(settings()).ttl == 86_400
    monkeypatch.setenv("MMCACHE_TTL", "inf")
    assert policy_of(settings()).ttl == math.inf
    assert policy_of(settings(ttl=5.0)).ttl == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": b"\x00"}, '{"b": {"$base64": true, "encoded": "AA=="}}'),
        (float("-inf"), '{"$float": "-inf"}'),
        ({b"k": 1}, '{"$map": [[{"$base64": true, "encoded": "aw=="}, 1]]}'),
        ((1, [2.5, None, True]), "[1, [2.5, null, true]]"),
        (msgpack.ExtType(5, b"x"), '{"$ext": 5, "encoded": "eA=="}'),
        (msgpack.Timestamp(7, 8), '{"$timestamp": [7, 8]}'),
        ("é\x9b\u202e\udcff", '"é\\u009b\\u202e\\udcff"'),
        (2**64 - 1, "18446744073709551615"),
    ],
)
def test_every_value_that_msgpack_carries_has_json(value, text):
    assert dumps(value) == text
    json.loads(dumps(value))
    assert dumps(value, ascii_only=True).isascii()


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (8_294_400, "8.3 MB"), (10**12, "1.0 TB")]
)
def test_sizes_for_people(size, text):
    assert bytes_of(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.2e-7, "420 ns"), (2.134e-6, "2.13 µs"), (0.0134, "13.4 ms"), (1.25, "1.25 s"), (125, "125 s")],
)
def test_times_for_people(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "in the future, by this clock"), (1, "1 second ago"), (150, "2 minutes ago"), (86_400, "1 day ago")],
)
def test_ages_for_people(seconds, text):
    assert ago(seconds) == text


def test_text_of_unknown_origin_is_harmless():
    assert printable("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb\\nc"
    assert short("abcdef", 4) == "abc…"
