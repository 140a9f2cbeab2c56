"""The rough pose of a head, by three points of its face."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pose(NamedTuple):
    """Rough pose of a head in degrees; 0 from the front.

    Attributes:
        yaw: positive if the nose points to the viewer's right.
        pitch: positive if it points down.
        roll: positive if the head leans to the viewer's right (clockwise).
    """

    yaw: float
    pitch: float
    roll: float


class Nose(NamedTuple):
    """Where the nose's point lies on a face from the front, in distances between the eyes.

    Attributes:
        below: the line between the eyes.
        before: the plane of the face.
    """

    below: float
    before: float


NOSE_TIP = Nose(0.57, 0.5)
"""By ARCFACE_TEMPLATE; the depth is an estimate."""
NOSE_BASE = Nose(0.72, 0.35)
"""dlib's fifth point; measured on a portrait from the front, the depth is an estimate."""


def pose_of(
    left_eye: NDArray[np.float64], right_eye: NDArray[np.float64], nose_at: NDArray[np.float64], nose: Nose
) -> Pose:
    """Returns the rough pose of a head from three points in pixels.

    Roll is the angle of the line between the eyes. Turned back by it, the nose moves to the side by its depth times
    sin(yaw), and down by its depth times sin(pitch), in distances between the eyes. That holds to about 10 degrees.

    Args:
        left_eye: the one that the viewer sees on the left.
    """
    between = right_eye - left_eye
    distance = max(float(np.hypot(*between)), 1e-6)
    roll = math.atan2(between[1], between[0])
    offset = (nose_at - (left_eye + right_eye) / 2) / distance
    side = offset[0] * math.cos(roll) + offset[1] * math.sin(roll)
    down = -offset[0] * math.sin(roll) + offset[1] * math.cos(roll)
    angles = (_angle(side / nose.before), _angle((down - nose.below) / nose.before), math.degrees(roll))
    return Pose(*(round(angle, 1) for angle in angles))


def _angle(sine: float) -> float:
    return math.degrees(math.asin(min(max(sine, -1.0), 1.0)))
