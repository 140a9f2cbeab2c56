"""Marks in video files: that a generative model made them, and which settings. Imports neither torch nor Ray.

An XMP packet says so in IPTC's vocabulary (``DigitalSourceType``), with the video digest as ``dc:identifier``. In MP4
it is in the ``uuid`` box of XMP, at the end of the file, where no other box has to move. See Adobe, "XMP Specification
Part 3", 2020, and IPTC, "Photo Metadata Standard", 2023.1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree
from xml.sax.saxutils import escape

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media made by a trained model."""
XMP_BOX = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
"""Type of the ``uuid`` box that holds XMP."""
MAX_XMP_BYTES = 2**20
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_LYNX = "urn:lynx-parallel:1.0/"
_SCHEME = "sha256:"


@dataclass(frozen=True)
class Mark:
    """What a video file says of itself.

    Attributes:
        digest: of the video's settings, see ``plan.digests``; empty if the file names none.
        prompt, seed: only with ``metadata: full``.
        source_type: IPTC's term.
    """

    digest: str
    prompt: str | None = None
    seed: int | None = None
    source_type: str = TRAINED


def xmp_packet(mark: Mark) -> bytes:
    """Returns the XMP packet of a mark. Equal marks give equal bytes."""
    prompt = ""
    if mark.prompt is not None:
        item = f'<rdf:li xml:lang="x-default">{_text(mark.prompt)}</rdf:li>'
        prompt = f"<dc:description><rdf:Alt>{item}</rdf:Alt></dc:description>"
    digest = f"<dc:identifier>{_SCHEME}{mark.digest}</dc:identifier>" if mark.digest else ""
    seed = "" if mark.seed is None else f"<lynx:seed>{mark.seed}</lynx:seed>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">'
        f'<rdf:Description rdf:about="" xmlns:dc="{_DC}" xmlns:Iptc4xmpExt="{_IPTC}" xmlns:lynx="{_LYNX}">'
        f"<Iptc4xmpExt:DigitalSourceType>{mark.source_type}</Iptc4xmpExt:DigitalSourceType>"
        f"{digest}{prompt}{seed}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def mark_of(sidecar: Mapping[str, Any]) -> Mark:
    """Returns the mark of the video of a sidecar."""
    settings, digest = sidecar["settings"], str(sidecar["digests"]["video"])
    if sidecar["encoding"].get("video.metadata") != "full":
        return Mark(digest)
    seed = settings.get("sampling.seed")
    return Mark(digest, str(settings.get("prompt", "")), seed if isinstance(seed, int) else None)


def add_mark(path: Path, mark: Mark) -> None:
    """Adds a mark to a finished MP4 file that has none.

    Raises:
        OSError: the file cannot be written.
    """
    packet = xmp_packet(mark)
    box = (8 + len(XMP_BOX) + len(packet)).to_bytes(4, "big") + b"uuid" + XMP_BOX + packet
    with path.open("ab") as file:
        file.write(box)


def read_mark(path: Path) -> Mark | None:
    """Returns the mark of an MP4 file, or None if it has none that can be read.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        packet = next(_xmp_boxes(file), None)
    return None if packet is None else _parsed(packet)


def _xmp_boxes(file: BinaryIO) -> Iterator[bytes]:
    """Yields the content of each XMP box on the top level of an MP4 file. Reads no other box."""
    end, at = os.fstat(file.fileno()).st_size, 0
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), 16
        size = size or end - at
        if size < start or at + size > end:
            return
        if head[4:8] == b"uuid" and size <= MAX_XMP_BYTES:
            file.seek(at + start)
            content = file.read(size - start)
            if content.startswith(XMP_BOX):
                yield content[len(XMP_BOX) :]
        at += size


def _parsed(packet: bytes) -> Mark | None:
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # nobody's XMP needs them, and they may expand for ever
        return None
    try:
        root = ElementTree.fromstring(packet.decode().strip("\ufeff"))
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError):
        return None
    source = root.findtext(f".//{{{_IPTC}}}DigitalSourceType")
    identifier = root.findtext(f".//{{{_DC}}}identifier") or ""
    if source is None:
        return None
    seed = root.findtext(f".//{{{_LYNX}}}seed")
    prompt = root.findtext(f".//{{{_DC}}}description/{{{_RDF}}}Alt/{{{_RDF}}}li")
    digest = identifier.removeprefix(_SCHEME) if identifier.startswith(_SCHEME) else ""
    return Mark(digest, prompt, int(seed) if seed and seed.isdecimal() else None, source)


def _text(text: str) -> str:
    """Returns a text for XML. Characters that XML cannot hold become question marks."""
    allowed = (c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c >= "\U00010000" else "?"
               for c in text)  # fmt: skip
    return escape("".join(allowed))
