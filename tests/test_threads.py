"""Threads that begin late, or at the moment they are given up."""

from __future__ import annotations

import threading

from mmcache import threads


def test_a_thread_that_is_given_up_as_it_begins_runs_nothing_and_says_nothing(capfd):
    ran = []
    thread = threads._Thread("late", lambda: ran.append("work"))

    class Begins(threading.Event):
        """Set by the thread just before `threading` takes it from those that have yet to begin."""

        def set(self) -> None:
            if not self.is_set():
                assert thread.turn.acquire(blocking=False)
                thread.give_up()
            super().set()

    thread._started = Begins()
    thread.start()
    thread.join(10.0)
    assert not thread.is_alive()
    assert (ran, capfd.readouterr().err) == ([], "")
