"""The demo's two faces and their embeddings, as committed under ``manifests/faces/``.

- ``astronaut.jpg``: Eileen Collins, photographed by NASA (public domain; it ships with scikit-image).
- ``drawn.png``: drawn here from ellipses, so that nobody real is needed at all.
- ``*.safetensors``: **made up**. A true embedding comes from the ArcFace network; these are fixed random unit
  vectors. With the demo's random weights they serve as well; with real weights they are nobody's face.

    python -m lynx_parallel.demo.faces FOLDER
"""

from __future__ import annotations

import io
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SIZE = 512

# Pixels, in insightface's order, left as the viewer sees it: left eye, right eye, nose tip, left and right
# corner of the mouth. Placed by hand, checked on the crops.
LANDMARKS: dict[str, list[list[float]]] = {
    "astronaut": [[204.5, 101.0], [247.0, 103.0], [226.0, 122.5], [205.0, 140.5], [243.5, 141.0]],
    "drawn": [[212.0, 236.0], [300.0, 236.0], [256.0, 288.0], [219.0, 332.0], [293.0, 332.0]],
}
FILES = {"astronaut": "astronaut.jpg", "drawn": "drawn.png"}


def astronaut() -> Image:
    """Returns the portrait, 512 × 512. Needs scikit-image, and no network."""
    from PIL import Image
    from skimage import data

    return Image.fromarray(data.astronaut())


def drawn() -> Image:
    """Draws a friendly face on a plain wall, 512 × 512, at four times the size, and averages it down."""
    from PIL import Image, ImageDraw

    scale = 4
    picture = Image.new("RGB", (SIZE * scale, SIZE * scale), "#b9cfd4")
    draw = ImageDraw.Draw(picture)

    def spot(x: float, y: float, rx: float, ry: float, fill: str) -> None:
        draw.ellipse([(x - rx) * scale, (y - ry) * scale, (x + rx) * scale, (y + ry) * scale], fill)

    def shape(points: Sequence[tuple[float, float]], fill: str) -> None:
        draw.polygon([(x * scale, y * scale) for x, y in points], fill)

    def both(mark: Callable[[int], None]) -> None:
        for side in (-1, 1):  # the face is symmetric about x = 256
            mark(side)

    hair, skin, shade, shirt = "#4a2f23", "#e0aa84", "#cd9069", "#2f6f73"
    spot(256, 208, 116, 112, hair)
    shape([(141, 200), (371, 200), (360, 268), (152, 268)], hair)
    spot(256, 546, 196, 116, shirt)
    shape([(218, 340), (294, 340), (304, 446), (208, 446)], shade)
    spot(256, 446, 48, 26, shade)
    both(lambda side: spot(256 + side * 104, 262, 15, 27, shade))
    shape(_oval(256, 262, 102, 132), skin)
    shape(_fringe(), hair)
    both(lambda side: spot(256 + side * 62, 300, 22, 14, "#e2a482"))
    both(lambda side: shape(_arc(256 + side * 44, 214, 27, 9, thick=9), hair))
    both(lambda side: spot(256 + side * 44, 236, 21, 12.5, "#fbf7f0"))
    both(lambda side: spot(256 + side * 44, 236, 11.5, 11.5, "#5b7a3d"))
    both(lambda side: spot(256 + side * 44, 236, 5.5, 5.5, "#17130f"))
    both(lambda side: spot(260 + side * 44, 232, 2.6, 2.6, "#ffffff"))
    both(lambda side: shape(_arc(256 + side * 44, 233, 23, 12, thick=4), "#2c1c15"))
    shape([(249, 240), (263, 240), (274, 286), (238, 286)], "#d99f78")
    spot(256, 284, 18, 11, "#d79a72")
    both(lambda side: spot(256 + side * 8, 291, 4, 2.5, "#a8694b"))
    shape(_smile(332, 37, upper=8, lower=27), "#9c4840")
    shape(_smile(333, 31, upper=7, lower=18), "#fbf7f0")
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def _oval(x: float, y: float, rx: float, ry: float) -> list[tuple[float, float]]:
    """Returns an ellipse whose lower half narrows towards a chin."""
    outline = []
    for step in range(180):
        angle = step * math.tau / 180
        narrow = 1 - 0.16 * max(0.0, math.sin(angle)) ** 2
        outline.append((x + rx * narrow * math.cos(angle), y + ry * math.sin(angle)))
    return outline


def _fringe() -> list[tuple[float, float]]:
    """Returns hair over the forehead, parted to one side."""
    top = [(256 + 112 * math.cos(a), 215 + 112 * math.sin(a)) for a in _angles(math.pi, math.tau)]
    part = (300, 138)
    right = [(part[0] + (366 - part[0]) * t, part[1] + 88 * t * t) for t in _angles(1, 0)]
    left = [(part[0] - (part[0] - 146) * t, part[1] + 100 * t**1.5) for t in _angles(0, 1)]
    return top + right + left


def _arc(x: float, y: float, half: float, rise: float, thick: float) -> list[tuple[float, float]]:
    upper = [(x + half * t, y - rise * (1 - t * t)) for t in _angles(-1, 1)]
    return upper + [(px, py + thick * (1 - ((px - x) / half) ** 2)) for px, py in reversed(upper)]


def _smile(y: float, half: float, upper: float, lower: float) -> list[tuple[float, float]]:
    """Returns the area between two curves that meet in the corners (256 ± half, y)."""
    above = [(256 + half * t, y + upper * (1 - t * t)) for t in _angles(-1, 1)]
    return above + [(256 + half * t, y + lower * (1 - t * t)) for t in _angles(1, -1)]


def _angles(start: float, end: float, steps: int = 48) -> list[float]:
    return [start + (end - start) * i / steps for i in range(steps + 1)]


def embedding(name: str) -> np.ndarray:
    """Returns a unit vector [512] float32 that stands in for ArcFace's output. It depends on the name alone.

    From the standard library's generator, whose ``random()`` is fixed across versions and machines.
    """
    import numpy as np

    source = random.Random(f"lynx-parallel demo face: {name}")
    vector = np.array([sum(source.random() for _ in range(12)) - 6 for _ in range(512)])  # nearly normal
    return (vector / math.sqrt(math.fsum(vector * vector))).astype(np.float32)


def picture_bytes(name: str) -> bytes:
    """Returns the encoded picture of ``name``, a key of FILES."""
    buffer = io.BytesIO()
    if name == "astronaut":
        astronaut().save(buffer, "JPEG", quality=90)
    else:
        drawn().save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_faces(folder: Path) -> list[Path]:
    """Writes both pictures and both embeddings into ``folder``. Returns the paths."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, file in FILES.items():
        for path, content in (
            (folder / file, picture_bytes(name)),
            (folder / f"{name}.safetensors", save({"face_embedding": embedding(name)})),
        ):
            path.write_bytes(content)
            written.append(path)
    return written


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit("usage: python -m lynx_parallel.demo.faces FOLDER")
    for path in write_faces(Path(arguments[0])):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
