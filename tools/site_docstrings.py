"""Docstrings of this package as Markdown: an extension of griffe, for the API pages of the documentation site.

A docstring names a parameter or an attribute at the start of a line, `ttl: age at which ...`, and indents what follows.
On a page these lines are a list, and examples are blocks of code.
What a class does not show (`mmcache/shown.py`) is on no page.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_FURTHER = re.compile(r"(?<=\. )([a-z]\w*(?:, [a-z]\w*)*)(?=: \S)")
"""A parameter that follows another one on its line."""
_ITEM = re.compile(r"^((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*): (?=\S)")


class Prose(griffe.Extension):
    """Rewrites each docstring before it is rendered, and takes out what a class does not show."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if isinstance(obj, griffe.Function):
            obj.overloads = None  # they are for type checkers; the signature that a reader needs is the last one
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        for name in unshown([str(decorator.value) for decorator in cls.decorators]):
            if name in cls.members:
                del cls.members[name]


def unshown(decorators: list[str]) -> list[str]:
    """The members that these decorators of a class take from its page."""
    names = ["__init__"] * ("made_here" in decorators)
    for text in decorators:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "internal":
            names += [ast.literal_eval(argument) for argument in call.args]
    return names


def markdown(text: str) -> str:
    """The docstring `text`, with lists of names and fenced examples."""
    lines: list[str] = []
    in_list = in_example = False
    for line in text.splitlines():
        is_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if is_example != in_example:
            lines += ["", "```pycon"] if is_example else ["```", ""]
            in_example = is_example
        if is_example:
            lines.append(line.strip() if line.lstrip().startswith((">>>", "...")) else line)
            continue
        item = _ITEM.match(line)
        if item and not in_list:
            lines.append("")
        if item:
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            line = f"- {names}: {line[item.end() :]}"
        elif line and in_list and not line.startswith(" "):
            lines.append("")
        in_list = bool(item) or (in_list and (not line or line.startswith(" ")))
        if in_list:
            line = _FURTHER.sub(lambda match: ", ".join(f"`{name}`" for name in match[1].split(", ")), line)
        lines.append(line)
    return "\n".join([*lines, "```"] if in_example else lines)
