"""The rules of ageing as tables: one line a rule or boundary, with the moments written as sums."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

import mmcache.freshness
from mmcache.freshness import CLOCK_SKEW, PROFILES, Policy, freshness, may_answer, policy

INF, NAN = math.inf, math.nan
SECOND, MINUTE, HOUR, DAY = 1, 60, 3600, 86_400

BUILT = 1_800_000_000.0
"""When the files below were built: the size that clocks show, and exact in a float, as are the ages added to it."""

TICK = 2.0**-20
"""About a microsecond; exact beside BUILT."""

PLAIN = Policy(ttl=1024.0, refresh_at=0.75, max_stale=4096.0, jitter=0.0)
"""Expires at 1024 s, stale from 768 s on: binary numbers, so that every boundary is exact."""


def at(age, policy=PLAIN, **more):
    return freshness(policy, now=BUILT + age, built=BUILT, **more)


# States --------------------------------------------------------------------------------------------------------------

STATES = {
    # name -> policy, age, state
    "just built": (PLAIN, 0, "fresh"),
    "a tick before it turns stale": (PLAIN, 768 - TICK, "fresh"),
    "stale from its refresh age on": (PLAIN, 768, "stale"),
    "a tick before it expires": (PLAIN, 1024 - TICK, "stale"),
    "expired from its ttl on": (PLAIN, 1024, "expired"),
    "expired a year ago": (PLAIN, 365 * DAY, "expired"),
    "refresh_at 1: fresh up to the ttl": (replace(PLAIN, refresh_at=1.0), 1024 - TICK, "fresh"),
    "refresh_at 1: expired without having been stale": (replace(PLAIN, refresh_at=1.0), 1024, "expired"),
    "refresh_at 0.25: fresh before": (replace(PLAIN, refresh_at=0.25), 256 - TICK, "fresh"),
    "refresh_at 0.25: stale from then on": (replace(PLAIN, refresh_at=0.25), 256, "stale"),
    "infinite ttl: just built": (Policy(ttl=INF), 0, "fresh"),
    "infinite ttl: a century old": (Policy(ttl=INF), 36_525 * DAY, "fresh"),
    "infinite ttl: of the future": (Policy(ttl=INF), -DAY, "fresh"),
    "tiny ttl: just built": (Policy(ttl=4 * TICK, refresh_at=0.5), 0, "fresh"),
    "tiny ttl: stale": (Policy(ttl=4 * TICK, refresh_at=0.5, jitter=0.0), 2 * TICK, "stale"),
    "tiny ttl: expired": (Policy(ttl=4 * TICK, refresh_at=0.5), 4 * TICK, "expired"),
    "tiny ttl: of the future": (Policy(ttl=4 * TICK), -CLOCK_SKEW - TICK, "stale"),
    "max_stale does not put expiry off": (replace(PLAIN, max_stale=INF), 1024, "expired"),
    "max_stale 0 does not bring it forward": (replace(PLAIN, max_stale=0.0), 1024 - TICK, "stale"),
    "development: stale after 8 minutes": (PROFILES["development"], 8 * MINUTE, "stale"),
    "development: expired after 10": (PROFILES["development"], 10 * MINUTE, "expired"),
    "staging: fresh before 48 minutes": (PROFILES["staging"], 48 * MINUTE - SECOND, "fresh"),
    "staging: stale after 48 minutes": (PROFILES["staging"], 48 * MINUTE, "stale"),
    "staging: expired after an hour": (PROFILES["staging"], HOUR, "expired"),
    "production: fresh after 19 hours": (PROFILES["production"], 19 * HOUR, "fresh"),
    "production: stale after 20": (PROFILES["production"], 20 * HOUR, "stale"),
    "production: expired after a day": (PROFILES["production"], DAY, "expired"),
}


@pytest.mark.parametrize(("policy", "age", "state"), STATES.values(), ids=STATES)
def test_state_of_an_age(policy, age, state):
    found = at(age, policy)
    assert (found.state, found.age) == (state, age)


# Clocks --------------------------------------------------------------------------------------------------------------

CLOCKS = {
    # name -> ttl, true age, what the clock was moved by since, state
    "right": (DAY, 2 * HOUR, 0, "fresh"),
    "59 s behind, as another host's may be": (HOUR, 0, -59, "fresh"),
    "60 s behind: still tolerated": (HOUR, 0, -60, "fresh"),
    "a tick more behind: stale": (HOUR, 0, -60 - TICK, "stale"),
    "an hour back, young file: its age is unknown": (HOUR, MINUTE, -HOUR, "stale"),
    "an hour back, as old: looks just built": (DAY, HOUR, -HOUR, "fresh"),
    "an hour back, older: looks an hour younger": (DAY, 2 * HOUR, -HOUR, "fresh"),
    "an hour back, stale: looks fresh for one more hour": (DAY, 20 * HOUR, -HOUR, "fresh"),
    "an hour back, expired: looks stale": (DAY, 24 * HOUR, -HOUR, "stale"),
    "an hour back, expired long since: still is": (DAY, 26 * HOUR, -HOUR, "expired"),
    "an hour back, ttl of a second: never expired": (SECOND, 0, -HOUR, "stale"),
    "to 1970: never expired": (HOUR, 0, -BUILT, "stale"),
    "an hour on, long ttl: an hour older": (DAY, MINUTE, HOUR, "fresh"),
    "an hour on, nearly stale: stale sooner": (DAY, 19 * HOUR, HOUR, "stale"),
    "an hour on, ttl of an hour: expired": (HOUR, MINUTE, HOUR, "expired"),
    "a century on: expired": (DAY, 0, 36_525 * DAY, "expired"),
}


@pytest.mark.parametrize(("ttl", "age", "moved", "state"), CLOCKS.values(), ids=CLOCKS)
def test_clock_was_moved(ttl, age, moved, state):
    assert freshness(replace(policy(), ttl=ttl), now=BUILT + age + moved, built=BUILT).state == state


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "on"])
def test_one_rebuild_puts_a_clock_step_right_and_so_does_another_after_the_way_back(step):
    wrong = BUILT + MINUTE + step
    assert freshness(policy(), now=wrong, built=BUILT).state != "fresh"
    assert freshness(policy(), now=wrong, built=wrong).state == "fresh"

    right = BUILT + 2 * MINUTE  # the file of `wrong` is of the future now, or an hour old
    assert freshness(policy(), now=right, built=wrong).state != "fresh"
    assert freshness(policy(), now=right, built=right).state == "fresh"


# The refresh age -----------------------------------------------------------------------------------------------------

JITTERY = replace(PLAIN, jitter=0.125)

REFRESH_AGES = {
    # name -> policy, build_seconds, draw, refresh age
    "its share of the ttl": (PLAIN, 0, 0, 768),
    "jitter: no draw": (JITTERY, 0, 0, 768),
    "jitter: earliest": (JITTERY, 0, -1, 768 - 96),
    "jitter: latest": (JITTERY, 0, 1, 768 + 96),
    "jitter: half of it": (JITTERY, 0, 0.5, 768 + 48),
    "jitter: none, whatever is drawn": (PLAIN, 0, 1, 768),
    "jitter: never above the ttl": (replace(JITTERY, refresh_at=1.0), 0, 1, 1024),
    "jitter: below the ttl all the same": (replace(JITTERY, refresh_at=1.0), 0, -1, 1024 - 128),
    "slow build: three of them just fit": (PLAIN, 256 / 3, 0, 768),
    "slow build: pulled earlier": (PLAIN, 100, 0, 1024 - 300),
    "slow build: earlier than every draw": (JITTERY, 128, 1, 1024 - 384),
    "slow build: a draw that is earlier wins": (JITTERY, 100, -1, 768 - 96),
    "slow build: a sixth of the ttl": (PLAIN, 1024 / 6, 0, 512),
    "slow build: more than a sixth pulls no further": (PLAIN, 200, 0, 512),
    "slow build: longer than the ttl": (PLAIN, 5000, 0, 512),
    "slow build: endless": (PLAIN, INF, 0, 512),
    "slow build: refresh_at 1": (replace(PLAIN, refresh_at=1.0), 10, 0, 1024 - 30),
    "slow build: an early plan stands": (replace(PLAIN, refresh_at=0.25), 200, 0, 256),
    "clock went back during the build": (replace(JITTERY, refresh_at=1.0), -HOUR, 1, 1024),
    "tiny ttl": (replace(PLAIN, ttl=TICK), 0, 0, 0.75 * TICK),
    "tiny ttl: any build is slow": (replace(PLAIN, ttl=TICK), 1, 0, 0.5 * TICK),
    "infinite ttl": (Policy(ttl=INF), 0, 0, INF),
    "infinite ttl: earliest": (Policy(ttl=INF), 0, -1, INF),
    "infinite ttl: slow build": (Policy(ttl=INF), DAY, 0, INF),
}


@pytest.mark.parametrize(("policy", "build_seconds", "draw", "expected"), REFRESH_AGES.values(), ids=REFRESH_AGES)
def test_refresh_age(policy, build_seconds, draw, expected):
    assert at(0, policy, build_seconds=build_seconds, draw=draw).refresh_age == expected


@pytest.mark.parametrize(("draw", "state"), [(-1, "stale"), (0, "fresh"), (1, "fresh")])
def test_processes_of_one_age_do_not_all_refresh_at_once(draw, state):
    assert at(768 - 50, JITTERY, draw=draw).state == state


@pytest.mark.parametrize("share", [1 / 8, 1 / 6, 1 / 4, 0.49])
def test_slow_build_lands_fresh_and_before_the_old_file_expires(share):
    """Age counts from the start of a build, so a file is as old as its build was long when it lands."""
    took = share * PLAIN.ttl
    begun = at(0, build_seconds=took).refresh_age
    assert at(begun, build_seconds=took).state == "stale"
    assert at(begun + took, build_seconds=took).state == "stale"  # the old file, when the new one lands
    assert at(took, build_seconds=took).state == "fresh"  # the new one


# max_stale -----------------------------------------------------------------------------------------------------------

MAX_STALE = {
    # name -> policy, age, may it answer
    "fresh": (PLAIN, 0, True),
    "of the future": (PLAIN, -HOUR, True),
    "expired": (PLAIN, 1024, True),
    "at the limit": (PLAIN, 1024 + 4096, True),
    "a tick beyond": (PLAIN, 1024 + 4096 + TICK, False),
    "max_stale 0: up to the ttl": (replace(PLAIN, max_stale=0.0), 1024, True),
    "max_stale 0: not beyond": (replace(PLAIN, max_stale=0.0), 1024 + TICK, False),
    "infinite max_stale": (replace(PLAIN, max_stale=INF), 36_525 * DAY, True),
    "infinite ttl": (Policy(ttl=INF, max_stale=0.0), 36_525 * DAY, True),
    "staging: a day and an hour": (PROFILES["staging"], DAY + HOUR, True),
    "staging: a second more": (PROFILES["staging"], DAY + HOUR + SECOND, False),
}


@pytest.mark.parametrize(("policy", "age", "expected"), MAX_STALE.values(), ids=MAX_STALE)
def test_file_may_answer_while_the_source_fails(policy, age, expected):
    assert may_answer(policy, age) is expected


# Policies ------------------------------------------------------------------------------------------------------------


def test_profiles_differ_in_their_ttl_alone():
    assert {name: profile.ttl for name, profile in PROFILES.items()} == {
        "development": 600,
        "staging": 3600,
        "production": 86_400,
    }
    assert {replace(profile, ttl=1.0) for profile in PROFILES.values()} == {
        Policy(ttl=1.0, refresh_at=0.8, max_stale=86_400.0, jitter=0.05)
    }


def test_policy_is_its_profile_with_what_is_given_in_its_place():
    assert policy() == PROFILES["staging"] == Policy()
    assert policy("production") == PROFILES["production"]
    assert policy("production", ttl=7200) == Policy(ttl=7200.0)
    assert policy("development", refresh_at=1, max_stale=0) == Policy(ttl=600.0, refresh_at=1.0, max_stale=0.0)
    assert policy(ttl=INF, max_stale=INF) == Policy(ttl=INF, max_stale=INF)


TTL = r"ttl must be a number of seconds above 0 \(math\.inf: never expires\), not "
REFRESH_AT = "refresh_at must be a share of the ttl, above 0 and at most 1, not "
MAX_STALE_SECONDS = "max_stale must be a number of seconds, 0 or more, not "
NAMES = "profile must be one of development, staging, production, not "

REFUSED = {
    "ttl 0": ({"ttl": 0}, TTL + "0$"),
    "ttl negative": ({"ttl": -1.5}, TTL + r"-1\.5$"),
    "ttl minus infinity": ({"ttl": -INF}, TTL + "-inf$"),
    "ttl NaN": ({"ttl": NAN}, TTL + "nan$"),
    "ttl bool": ({"ttl": True}, TTL + "True$"),
    "ttl text": ({"ttl": "3600"}, TTL + "'3600'$"),
    "ttl beyond a float": ({"ttl": 10**400}, TTL + "10{400}$"),
    "refresh_at 0": ({"refresh_at": 0.0}, REFRESH_AT + r"0\.0$"),
    "refresh_at negative": ({"refresh_at": -0.8}, REFRESH_AT + r"-0\.8$"),
    "refresh_at above 1": ({"refresh_at": 80}, REFRESH_AT + "80$"),
    "refresh_at NaN": ({"refresh_at": NAN}, REFRESH_AT + "nan$"),
    "refresh_at bool": ({"refresh_at": True}, REFRESH_AT + "True$"),
    "max_stale negative": ({"max_stale": -1}, MAX_STALE_SECONDS + "-1$"),
    "max_stale NaN": ({"max_stale": NAN}, MAX_STALE_SECONDS + "nan$"),
    "max_stale bool": ({"max_stale": False}, MAX_STALE_SECONDS + "False$"),
    "profile unknown": ({"profile": "prod"}, NAMES + "'prod'$"),
    "profile None": ({"profile": None}, NAMES + "None$"),
    "profile unhashable": ({"profile": ["staging"]}, NAMES + r"\['staging'\]$"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_policy_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        policy(**arguments)


@pytest.mark.parametrize("arguments", [{"ttl": NAN}, {"jitter": 1}, {"jitter": -0.1}, {"jitter": NAN}], ids=str)
def test_no_policy_that_is_made_by_hand_is_exempt(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be "):
        Policy(**arguments)


# Reasons -------------------------------------------------------------------------------------------------------------

REASONS = {
    # name -> policy, age, reason
    "fresh": (policy(), 12 * MINUTE, "built 12 minutes ago, refreshed from 48 minutes on"),
    "now": (policy(), 0, "built 0 seconds ago, refreshed from 48 minutes on"),
    "a tick ago": (policy(), TICK, "built 0 seconds ago, refreshed from 48 minutes on"),
    "one second": (policy(), 1, "built 1 second ago, refreshed from 48 minutes on"),
    "stale": (policy(), 50.5 * MINUTE, "built 50.5 minutes ago, due for a refresh since 48 minutes"),
    "expired": (policy(), 3 * HOUR, "built 3 hours ago, expired at 60 minutes"),
    "expired for years": (policy("production"), 1500 * DAY, "built 1,500 days ago, expired at 24 hours"),
    "skewed": (policy(), -30, "built 30 seconds ahead of this clock, refreshed from 48 minutes on"),
    "future": (policy(), -HOUR, "built 60 minutes ahead of this clock, so its age is not known"),
    "infinite": (policy(ttl=INF), 119, "built 119 seconds ago, never expires"),
    "tiny": (policy(ttl=0.25), 0.125, "built 0.125 seconds ago, refreshed from 0.2 seconds on"),
}


@pytest.mark.parametrize(("policy", "age", "reason"), REASONS.values(), ids=REASONS)
def test_reason_is_a_sentence_for_people(policy, age, reason):
    assert at(age, policy).reason == reason


# Properties ----------------------------------------------------------------------------------------------------------

policies = st.builds(
    Policy,
    ttl=st.floats(1e-6, 1e9) | st.just(INF),
    refresh_at=st.floats(1e-6, 1),
    max_stale=st.floats(0, 1e9) | st.just(INF),
    jitter=st.floats(0, 0.999),
)
draws = st.floats(-1, 1)
spans = st.floats(0, 1e9)
moments = st.floats(0, 4e9)
ORDER = ("fresh", "stale", "expired")


@given(policies, moments, spans, draws, st.lists(st.floats(-CLOCK_SKEW / 2, 1e9), min_size=2, max_size=2).map(sorted))
def test_from_when_it_was_built_a_file_only_gets_older(policy, built, took, draw, ages):
    before, after = (freshness(policy, now=built + age, built=built, build_seconds=took, draw=draw) for age in ages)
    assert before.age <= after.age
    assert before.refresh_age == after.refresh_age
    assert ORDER.index(before.state) <= ORDER.index(after.state)
    assert may_answer(policy, before.age) >= may_answer(policy, after.age)


@given(policies, spans | st.floats(-1e9, 0), draws)
@example(Policy(refresh_at=1.0, jitter=0.9), 0.0, 1.0)
def test_refresh_age_is_above_zero_and_never_above_the_ttl(policy, took, draw):
    refresh_age = at(0, policy, build_seconds=took, draw=draw).refresh_age
    assert 0 < refresh_age <= policy.ttl


@given(policies, draws)
def test_jitter_moves_the_refresh_age_by_no_more_than_its_share(policy, draw):
    found = at(0, policy, draw=draw).refresh_age
    planned = policy.refresh_at * policy.ttl
    if math.isinf(planned):
        assert found == INF
    else:
        assert min(planned, policy.ttl) * (1 - policy.jitter) <= found * (1 + 1e-9)
        assert found <= min(planned * (1 + policy.jitter), policy.ttl)


@given(policies, draws, spans, spans)
def test_slower_build_is_never_refreshed_later_and_never_pulled_below_half_of_the_ttl(policy, draw, took, more):
    unpulled, pulled, slower = (
        at(0, policy, build_seconds=seconds, draw=draw).refresh_age for seconds in (0.0, took, took + more)
    )
    assert unpulled >= pulled >= slower >= min(unpulled, policy.ttl / 2)


@given(policies, moments, moments, spans, draws)
def test_file_of_the_future_is_never_expired(policy, one, other, took, draw):
    now, built = sorted((one, other))
    assert freshness(policy, now=now, built=built, build_seconds=took, draw=draw).state != "expired"


# Purity --------------------------------------------------------------------------------------------------------------


def test_freshness_has_no_clock_and_no_die():
    tree = ast.parse(Path(mmcache.freshness.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {"." * node.level + (node.module or "") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "dataclasses", "math", "typing"}
