"""The world of bouncing balls in plain NumPy, one world at a time, written from its published description.

Slow and obvious. Shares nothing with the package: the start is given, the rest follows.
"""

import numpy as np

BOX = 10.0


def simulate(positions, velocities, frames, radius):
    """Return positions and velocities ``[frames, balls, 2]`` of one world that starts as given, ``[balls, 2]``."""
    x, v = np.asarray(positions, dtype=np.float64), np.asarray(velocities, dtype=np.float64)
    stored = []
    for _ in range(frames):
        stored.append((x.copy(), v.copy()))
        for _ in range(2):
            x = x + 0.5 * v
            v = np.where(x - radius < 0, np.abs(v), v)
            v = np.where(x + radius > BOX, -np.abs(v), v)
            for i in range(len(x)):
                for j in range(i):
                    distance = np.linalg.norm(x[i] - x[j])
                    if distance < 2 * radius:
                        normal = (x[i] - x[j]) / distance
                        along_i, along_j = v[i] @ normal, v[j] @ normal
                        v[i] = v[i] + (along_j - along_i) * normal
                        v[j] = v[j] + (along_i - along_j) * normal
    return np.array([x for x, _ in stored]), np.array([v for _, v in stored])


def render(positions, radius, resolution):
    """Return the image ``[resolution, resolution]`` of balls ``[balls, 2]``; rows are y, columns are x."""
    centre = (np.arange(resolution) + 0.5) * BOX / resolution
    x, y = np.meshgrid(centre, centre)
    light = np.zeros((resolution, resolution))
    for ball_x, ball_y in positions:
        light += np.exp(-((((x - ball_x) ** 2 + (y - ball_y) ** 2) / radius**2) ** 4))
    return np.minimum(light, 1.0)
