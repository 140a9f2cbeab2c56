"""Reads a YAML file into plain values that remember their lines.

Stricter than a YAML library on purpose: keys are always text (``no:`` and ``1:`` stay ids), a key may stand
once, one document per file, no tags, no merge keys. Anchors and aliases work, within limits that stop
"billion laughs" files. Scalars follow YAML 1.2 with the true/false words of 1.1, so ``1e-3`` is a number and
``12:30`` is text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lynx_parallel.inputs.problems import KeyPath, Problems, shown_key, shown_value
from lynx_parallel.inputs.text_files import Unreadable, read_text

MAX_DEPTH = 50
MAX_VALUES = 1_000_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {
    spelled: word in ("true", "yes", "on")
    for word in ("true", "false", "yes", "no", "on", "off")
    for spelled in (word, word.capitalize(), word.upper())
}
_INT = re.compile(r"[-+]?[0-9](?:_?[0-9])*", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_INF_NAN = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_COMMENT = re.compile(r"([ \t]+)(#[^\r\n]*)")
_TAG = "tag:yaml.org,2002:"


class Place(NamedTuple):
    """The place of an entry. ``where`` is its kind in error messages, such as ``row``."""

    file: Path
    line: int
    where: str


class Lost(NamedTuple):
    """Text that YAML dropped from an unquoted value.

    Attributes:
        line: where it stands.
        mark: an anchor that no alias uses (``&Co``) or ``!``; empty if there is none.
        comment: the comment behind the value, from its ``#``; empty if there is none.
        gap: characters of white space before the comment.
    """

    line: int
    mark: str
    comment: str
    gap: int


@dataclass
class Document:
    """A parsed file: plain values, and for every key path its line (a mapping entry's is its key's).

    Attributes:
        raw: scalars that are not text, as written.
        elsewhere: places of entries that another file gives, such as a table's subjects.
        lost: what YAML dropped from unquoted values.
    """

    file: Path
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    raw: dict[KeyPath, str] = field(default_factory=dict)
    elsewhere: dict[KeyPath, Place] = field(default_factory=dict)
    lost: dict[KeyPath, Lost] = field(default_factory=dict)

    def standing(self, path: KeyPath) -> KeyPath:
        """Returns the path, or its nearest parent that stands in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return path

    def line(self, path: KeyPath) -> int:
        """Returns the line of the path, or of its nearest parent that stands in the file."""
        return self.lines.get(self.standing(path), 1)

    def shown(self, path: KeyPath, value: Any) -> str:
        """Returns the value as the user wrote it, shortened."""
        raw = self.raw.get(path)
        return shown_value(value) if not raw else raw[:80]

    def blame(self, problems: Problems, path: KeyPath, message: str) -> None:
        """Records ``file:line: path: message``."""
        if place := self.elsewhere.get(path[:2]):
            problems.add(place.file, place.line, f"{place.where}: {message}")
            return
        where = shown_key(path)
        problems.add(self.file, self.line(path), f"{where}: {message}" if where else message)


def read_scalar(text: str) -> Any:
    """Returns the value of an unquoted YAML scalar: None, bool, int, float, date or str."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    try:
        if _INT.fullmatch(text):
            return int(text.replace("_", ""))
        if _HEX.fullmatch(text):
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INF_NAN.fullmatch(text):
            return float(text.replace(".", "", 1))
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:  # a number of thousands of digits, the 31st of February
        return text
    return text


class _Node:
    """A value with its line. ``value`` is a scalar, a list of nodes, or a dict's list of entries."""

    __slots__ = ("comment", "key", "kind", "line", "mark", "open", "raw", "value")

    def __init__(self, kind: str, value: Any, line: int, raw: str | None = None):
        self.kind, self.value, self.line, self.raw = kind, value, line, raw
        self.open = kind != "scalar"
        self.key: tuple[str, int] | None = None  # a mapping's key that waits for its value
        self.mark = ""  # of a plain scalar: "!", or its anchor until an alias uses it
        self.comment = (line, "", 0)  # behind a plain scalar: line, text, white space before it


def _scalar(event: yaml.ScalarEvent, line: int, text: str) -> _Node:
    if "\0" in event.value or any("\ud800" <= c <= "\udfff" for c in event.value):
        raise Unreadable(f"{shown_value(event.value)}: a NUL or half a surrogate pair is not text", line)
    if event.tag not in (None, "!", _TAG + "str"):
        raise Unreadable(f"the tag {shown_value(event.tag)} is not supported: leave it out", line)
    typed = event.tag is None and event.implicit[0]
    value = read_scalar(event.value) if typed else event.value
    node = _Node("scalar", value, line, event.value if typed and not isinstance(value, str) else None)
    if not event.style:  # neither quoted nor a block
        node.mark = "!" if event.tag == "!" else f"&{event.anchor}" if event.anchor else ""
        end: Any = event.end_mark
        if comment := _COMMENT.match(text, end.index):
            node.comment = (end.line + 1, comment[2].rstrip(), len(comment[1]))
    return node


def _attach(parent: _Node, node: _Node, event: Any, line: int) -> None:
    """Adds a node to the open collection; in a mapping, keys and values take turns."""
    if parent.kind == "list":
        parent.value.append(node)
    elif parent.key is not None:
        parent.value.append((*parent.key, node))
        parent.key = None
    elif not isinstance(event, yaml.ScalarEvent):
        raise Unreadable("a key must be plain text, not a list, a mapping or an alias", line)
    elif event.value == "<<" and event.implicit[0]:
        raise Unreadable("merge keys (<<) are not supported: write the keys out", line)
    else:
        parent.key = (event.value, line)


def _compose(text: str) -> _Node:
    """Builds the node tree from YAML events, without recursion, so that deep nesting cannot crash."""
    root: _Node | None = None
    stack: list[_Node] = []
    anchors: dict[str, _Node] = {}
    documents = values = 0
    events: Any = yaml.parse(text, Loader=_LOADER)
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise Unreadable("a second document starts here: one file holds one", line)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop().open = False
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise Unreadable(f"*{event.anchor}: no such anchor above", line)
            node = anchors[event.anchor]
            if node.open:
                raise Unreadable(f"*{event.anchor}: refers to itself", line)
            node.mark = ""
        elif isinstance(event, yaml.ScalarEvent):
            node = _scalar(event, line, text)
        elif isinstance(event, yaml.CollectionStartEvent):
            kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
            if event.tag not in (None, "!", _TAG + ("seq" if kind == "list" else "map")):
                raise Unreadable(f"the tag {shown_value(event.tag)} is not supported: leave it out", line)
            node = _Node(kind, [], line)
        else:  # the stream's and the document's ends
            continue
        values += 1
        if values > MAX_VALUES:
            raise Unreadable(f"more than {MAX_VALUES} values", line)
        if getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
            anchors[event.anchor] = node
        if stack:
            _attach(stack[-1], node, event, line)
        else:
            root = node
        if node.open:
            stack.append(node)
            if len(stack) > MAX_DEPTH:
                raise Unreadable(f"nested deeper than {MAX_DEPTH} levels", line)
    if root is None:
        raise Unreadable("is empty", 1)
    return root


class _Builder:
    """Turns nodes into plain values, aliases written out, and notes lines and repeated keys."""

    def __init__(self, document: Document, problems: Problems):
        self.document = document
        self.problems = problems
        self.values = 0

    def build(self, node: _Node, path: KeyPath, line: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise Unreadable("too large when its aliases are written out", line)
        self.document.lines[path] = line
        if node.kind == "list":
            return [self.build(item, (*path, i), item.line) for i, item in enumerate(node.value)]
        if node.kind == "mapping":
            out: dict[str, Any] = {}
            for key, key_line, value in node.value:
                at = (*path, key)
                if key in out:
                    first = self.document.lines[at]
                    where = shown_key(at)
                    self.problems.add(self.document.file, key_line, f"{where}: given twice, first on line {first}")
                else:
                    out[key] = self.build(value, at, key_line)
            return out
        if node.raw is not None:
            self.document.raw[path] = node.raw
        if node.mark or node.comment[1]:
            comment_line, comment, gap = node.comment
            self.document.lost[path] = Lost(comment_line, node.mark, comment, gap)
        return node.value


def read_yaml(file: Path, problems: Problems) -> Document | None:
    """Reads a YAML file whose top level is a mapping; records what is wrong and returns None otherwise."""
    document = Document(file, None)
    text = ""
    try:
        text = read_text(file)
        root = _compose(text)
        document.data = _Builder(document, problems).build(root, (), root.line)
        if not isinstance(document.data, dict):
            raise Unreadable(f"{shown_value(document.data)}: the top level must be a mapping (key: value)", 1)
    except Unreadable as error:
        problems.add(file, error.line, error.reason)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark else 1
        reason = " ".join(str(getattr(error, "problem", None) or "unreadable").split())
        here = text.split("\n")[line - 1 : line]
        if mark and here and here[0][mark.column :].startswith("\t"):
            reason = "indent with spaces, not tabs"
        for number, near in enumerate(text.split("\n")[max(line - 2, 0) : line], max(line - 1, 1)):
            if comment := re.search(r"[ \t](#[^\s#].*)", near):
                shown = shown_value(comment[1].rstrip())
                reason += f"; {shown} on line {number} is a comment: put a text that holds ' #' in quotes"
                break
        problems.add(file, line, f"not valid YAML: {reason}")
    else:
        return document
    return None
