"""Hooks of the documentation site, and the check of what was built; `make docs` runs them through MkDocs.

Pages of the command line and of settings are filled in from the code, so they cannot fall behind it. After a build
every link and anchor of every page is followed, and nothing may be loaded from another host.
"""

from __future__ import annotations

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
"""Elements that a browser loads without a click, and the attribute that says from where."""


# --- hooks of MkDocs -------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """`section: directory/*` in the navigation is every page of that directory, in the order of their names."""
    config["nav"] = [expanded(entry, Path(config["docs_dir"])) for entry in config["nav"]]
    return config


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill `<!-- generated: name -->` with what the code says."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), markdown)


def on_post_build(config: Any) -> None:
    """Fail the build where a link of the site leads nowhere, or a page loads something from elsewhere."""
    if found := list(problems(Path(config["site_dir"]))):
        from mkdocs.exceptions import PluginError

        raise PluginError("the built site has dead links:\n" + "\n".join(found))


def expanded(entry: Any, docs: Path) -> Any:
    if isinstance(entry, str):
        return entry
    ((title, value),) = entry.items()
    if isinstance(value, list):
        return {title: [expanded(inner, docs) for inner in value]}
    if value.endswith("/*"):
        return {title: [str(page.relative_to(docs)) for page in sorted((docs / value[:-2]).glob("*.md"))]}
    return entry


# --- pages from the code ---------------------------------------------------------------------------------------------


def commands() -> str:
    """One section a command, with what `--help` says of it and a table of its options."""
    from mmcache.cli.main import COMMANDS

    return "\n".join(_section(name, aliases) for name, (_, aliases, _) in COMMANDS.items())


def _section(name: str, aliases: Any) -> str:
    from mmcache.cli.main import make_parser

    (parser,) = (
        action.choices[name] for action in make_parser(name)._actions if isinstance(action, argparse._SubParsersAction)
    )
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    lines = [f"## mmcache {name}\n"]
    if aliases:
        lines += [f"Also: {', '.join(f'`mmcache {alias}`' for alias in aliases)}.\n"]
    if parser.description:
        lines += [f"```text\n{_dedented(parser.description)}\n```\n"]
    lines += [f"```text\n{usage}\n```\n", "| argument | meaning |", "|---|---|"]
    lines += [f"| {_words(action)} | {_meaning(action)} |" for action in _actions(parser)]
    return "\n".join(lines) + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            yield action


def _words(action: argparse.Action) -> str:
    value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
    names = action.option_strings or [str(action.metavar or action.dest)]
    return ", ".join(f"`{name}{value}`" for name in names)


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _dedented(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def settings() -> str:
    """The table of settings, with the variable and the default of each."""
    from mmcache.cli.options import SETTINGS

    rows = [
        f"| `{name}` | `--{name.replace('_', '-')}` | `MMCACHE_{name.upper()}` | {_default(default)} |"
        for name, (_, default) in SETTINGS.items()
    ]
    return "\n".join(["| `[tool.mmcache]` | flag | variable | default |", "|---|---|---|---|", *rows])


def _default(value: object) -> str:
    return "that of `profile`" if value is None else f"`{value}`"


GENERATED: dict[str, Callable[[], str]] = {"commands": commands, "settings": settings}


# --- the built site --------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values[LOADED[tag]])


def problems(site: Path) -> Iterator[str]:
    """A line for each link, anchor or loaded file of the built site that is not there, or not of the site."""
    pages = {path.resolve(): _Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":  # is served from anywhere, so its links are absolute
            continue
        where = path.relative_to(site.resolve())
        for link in page.loaded:
            if urlsplit(link).scheme not in ("", "data") or link.startswith("//"):
                yield f"{where}: loads {link} from another host"
            elif not link.startswith("data:") and not (path.parent / unquote(urlsplit(link).path)).exists():
                yield f"{where}: loads {link}, which is not there"
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{where}: {link} leads nowhere"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{where}: {link} has no such anchor"
