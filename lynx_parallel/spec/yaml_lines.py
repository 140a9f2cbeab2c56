"""Reads a YAML file into plain values that remember their lines.

Stricter than a YAML library on purpose: keys are always text (``no:`` and ``1:`` stay ids), a key may stand
once, one document per file, no tags, no merge keys. Anchors and aliases work, within limits that stop
"billion laughs" files. Scalars follow YAML 1.2 with the true/false words of 1.1, so ``1e-3`` is a number and
``12:30`` is text.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader

from lynx_parallel.spec.problems import KeyPath, Problems, shown_key, shown_value

MAX_BYTES = 16 * 2**20
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
_TAG = "tag:yaml.org,2002:"


class Unreadable(Exception):
    """A file cannot be used at all; ``line`` is where it shows (1 when it is the whole file)."""

    def __init__(self, reason: str, line: int = 1):
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass
class Document:
    """A parsed file: plain values, and for every key path its line (a mapping entry's is its key's)."""

    file: Path
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    raw: dict[KeyPath, str] = field(default_factory=dict)  # scalars that are not text, as written

    def standing(self, path: KeyPath) -> KeyPath:
        """The path, or its nearest parent that stands in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return path

    def line(self, path: KeyPath) -> int:
        """Line of the path, or of its nearest parent that stands in the file."""
        return self.lines.get(self.standing(path), 1)

    def shown(self, path: KeyPath, value: Any) -> str:
        """The value as the user wrote it, shortened."""
        raw = self.raw.get(path)
        return shown_value(value) if not raw else raw[:80]

    def blame(self, problems: Problems, path: KeyPath, message: str) -> None:
        """Records ``file:line: path: message``."""
        where = shown_key(path)
        problems.add(self.file, self.line(path), f"{where}: {message}" if where else message)


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Text of a regular file, without a byte order mark.

    Raises:
        Unreadable: missing, not a regular file, too large, not UTF-8, or holding control characters.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise Unreadable("is a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise Unreadable("missing file") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise Unreadable("not a possible path") from None
    if len(content) > max_bytes:
        raise Unreadable(f"larger than {max_bytes / 2**20:g} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable("not UTF-8 text", content.count(b"\n", 0, error.start) + 1) from None
    odd = Reader.NON_PRINTABLE.search(text)
    if odd:
        raise Unreadable(f"holds the control character {odd[0]!r}", text.count("\n", 0, odd.start()) + 1)
    return text


def read_scalar(text: str) -> Any:
    """Value of an unquoted YAML scalar: None, bool, int, float, date or str."""
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

    __slots__ = ("key", "kind", "line", "open", "raw", "value")

    def __init__(self, kind: str, value: Any, line: int, raw: str | None = None):
        self.kind, self.value, self.line, self.raw = kind, value, line, raw
        self.open = kind != "scalar"
        self.key: tuple[str, int] | None = None  # a mapping's key that waits for its value


def _scalar(event: yaml.ScalarEvent, line: int) -> _Node:
    if "\0" in event.value or any("\ud800" <= c <= "\udfff" for c in event.value):
        raise Unreadable(f"{shown_value(event.value)}: a NUL or half a surrogate pair is not text", line)
    if event.tag not in (None, "!", _TAG + "str"):
        raise Unreadable(f"the tag {shown_value(event.tag)} is not supported: leave it out", line)
    if event.tag is None and event.implicit[0]:
        value = read_scalar(event.value)
        return _Node("scalar", value, line, None if isinstance(value, str) else event.value)
    return _Node("scalar", event.value, line)


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
        elif isinstance(event, yaml.ScalarEvent):
            node = _scalar(event, line)
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
        raise Unreadable("is empty")
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
            raise Unreadable(f"{shown_value(document.data)}: the top level must be a mapping (key: value)")
    except Unreadable as error:
        problems.add(file, error.line, error.reason)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = mark.line + 1 if mark else 1
        reason = " ".join(str(getattr(error, "problem", None) or "unreadable").split())
        here = text.split("\n")[line - 1 : line]
        if mark and here and here[0][mark.column :].startswith("\t"):
            reason = "indent with spaces, not tabs"
        problems.add(file, line, f"not valid YAML: {reason}")
    else:
        return document
    return None
