"""Databases of applications that people keep their things in: music, flash cards, calendars, tickets."""

from __future__ import annotations

import wave
from pathlib import Path

from tests.programs.catalog import program, run


@program("beets", "beets")
def beets() -> None:
    """A library of three albums, with attributes that are flexible."""
    import mediafile

    for album in range(3):
        folder = Path(f"music/album {album}")
        folder.mkdir(parents=True)
        for track in range(5):
            path = folder / f"{track}.wav"
            with wave.open(str(path), "wb") as sound:
                sound.setparams((1, 1, 8000, 0, "NONE", ""))
                sound.writeframes(bytes([128]) * 8000)
            tags = mediafile.MediaFile(path)
            tags.title, tags.artist, tags.album = f"Söng {track}", f"Artist {album % 2}", f"Album {album}"
            tags.track, tags.year = track + 1, 1990 + album
            tags.save()
    Path("config.yaml").write_text("directory: kept\nlibrary: library.db\nimport:\n  copy: yes\nplugins: []\n")
    run("beet", "-c", "config.yaml", "import", "-A", "-q", "music")
    run("beet", "-c", "config.yaml", "modify", "-y", "-M", "-W", "year:1991", "mood=calm")
    run("beet", "-c", "config.yaml", "modify", "-y", "-a", "-M", "-W", "albumartist:0", "shelf=3")
    for path in Path(".config/beets").glob("*.bak"):  # of the migrations of an empty library
        path.unlink()


@program("anki", "anki")
def anki() -> None:
    """A collection of notes and cards; its tables have a collation of its own, and no rowid."""
    from anki.collection import Collection

    collection = Collection("collection.anki2")
    basic = collection.models.by_name("Basic (and reversed card)")
    assert basic is not None
    for n in range(30):
        note = collection.new_note(basic)
        note.fields = [f"front {n}", f"bäck {n}"]
        note.tags = ["even"] if n % 2 == 0 else ["odd", f"Tag{n}"]
        deck = collection.decks.id(f"Deck::{n % 4}")
        assert deck is not None
        collection.add_note(note, deck)
    collection.close()


@program("khal", "khal")
def khal() -> None:
    """The cache of two calendars, with events that recur."""
    for calendar in ("home", "wörk"):
        folder = Path(calendar)
        folder.mkdir()
        for n in range(12):
            lines = [
                "BEGIN:VCALENDAR",
                "VERSION:2.0",
                "PRODID:-//test//",
                "BEGIN:VEVENT",
                f"UID:{calendar}-{n}",
                f"SUMMARY:Event {n}",
                "DTSTAMP:20240101T000000Z",
                f"DTSTART:202401{n + 1:02}T100000Z" if n % 2 else f"DTSTART;VALUE=DATE:202401{n + 1:02}",
                *(["RRULE:FREQ=WEEKLY;COUNT=4"] if n % 3 == 0 else []),
                "END:VEVENT",
                "END:VCALENDAR",
                "",
            ]
            (folder / f"{n}.ics").write_text("\r\n".join(lines))
    here = Path.cwd()
    calendars = "".join(f"[[{name}]]\npath = {here / name}\n" for name in ("home", "wörk"))
    locale = "[locale]\nlocal_timezone = UTC\ndefault_timezone = UTC\nlongdateformat = %Y-%m-%d\n"
    Path("khal.conf").write_text(f"[calendars]\n{calendars}{locale}[sqlite]\npath = {here}/khal.db\n")
    run("khal", "-c", "khal.conf", "list", "2024-01-01", "60d")


@program("trac", "Trac")
def trac() -> None:
    """A project with tickets, wiki pages, milestones and permissions; keys of several texts."""
    run("trac-admin", "project", "initenv", "Pröject", "sqlite:db/trac.db")
    for command in (
        ["milestone", "add", "käse"],
        ["component", "add", "shell", "somebody else"],
        ["permission", "add", "tester", "TRAC_ADMIN"],
        ["version", "add", "9.0"],
    ):
        run("trac-admin", "project", *command)
    Path("tickets.py").write_text(TICKETS)
    run("python", "tickets.py")


TICKETS = """
from trac.env import Environment
from trac.ticket.model import Ticket

env = Environment("project")
for n in range(20):
    ticket = Ticket(env)
    ticket["summary"], ticket["reporter"] = f"Ticket {n}", "tester"
    ticket["status"] = "new"
    ticket.insert()
    if n % 2:
        ticket["status"] = "accepted"
        ticket.save_changes("tester", "taken")
"""
