"""Rotation vectors and matrices: exponential and logarithm, exact also near 0 and near pi.

A rotation vector (axis-angle, rad) in the base frame is applied from the left: R_new = exp(r) R.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def skew(vector: Vector) -> Vector:
    """The matrix [3, 3] that takes w to `vector` x w."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def exp_rotation(vector: Vector) -> Vector:
    """Rotation matrix [3, 3] of a rotation vector [3] in rad (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    cross = skew(vector)
    # np.sinc has its removable zero at 0 handled: sinc(x) = sin(pi x) / (pi x).
    first = np.sinc(angle / math.pi)
    second = 0.5 * np.sinc(angle / (2 * math.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def log_rotation(matrix: Vector) -> Vector:
    """Rotation vector [3] in rad, of angle 0 to pi, of a rotation matrix [3, 3]."""
    doubled_sine = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    sine = 0.5 * float(np.linalg.norm(doubled_sine))
    cosine = 0.5 * (float(np.trace(matrix)) - 1.0)
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        return np.asarray(doubled_sine * (angle / (2.0 * sine)))
    if cosine > 0:
        return np.asarray(0.5 * doubled_sine)
    # About half a turn: the symmetric part is cos + (1 - cos) n n^T, so the axis is its longest column.
    columns = 0.5 * (matrix + matrix.T) - cosine * np.eye(3)
    axis = columns[:, int(np.argmax(np.diag(columns)))]
    axis = axis / np.linalg.norm(axis)
    return np.asarray(angle * (axis if axis @ doubled_sine >= 0 else -axis))


def orthonormal(matrix: Vector) -> Vector:
    """The rotation matrix nearest to `matrix` [3, 3]: takes out what rounding has added up to."""
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right)
