"""Threads that begin late, or at the moment they are given up."""

from __future__ import annotations

from tests.support.inside import thread_given_up_as_it_begins


def test_a_thread_that_is_given_up_as_it_begins_runs_nothing_and_says_nothing(capfd):
    ran: list[str] = []
    thread = thread_given_up_as_it_begins(lambda: ran.append("work"))
    thread.join(10.0)
    assert not thread.is_alive()
    assert (ran, capfd.readouterr().err) == ([], "")
