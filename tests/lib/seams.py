"""How visible a border in a picture is, and a decoder and an encoder that lose nothing, for the benches."""

import functools

import torch
import torch.nn.functional as F
from bespoke.nodes.inpaint.mask import grow

CELLS, CELL = 64, 8
SCALE = 0.18215  # SD1.5's, which ComfyUI multiplies by before the model
FAR = (2, 3, 4, 5, 6)  # cells from the border


@functools.cache
def contour(inside, distance):
    """The neighbours [h - 1, w] vertically and [h, w - 1] horizontally that a contour separates.

    inside: (bytes, height, width).
    """
    region = torch.frombuffer(bytearray(inside[0]), dtype=torch.float32).reshape(inside[1:])
    region = grow(region[None], distance)[0] > 0
    return region[1:] != region[:-1], region[:, 1:] != region[:, :-1]


def steps_across(image, inside, distances, unit=1):
    """|differences| [any] between neighbours of image [B, C, h, w] that a contour at a distance from a border
    separates.

    inside [h, w]; distances in units of `unit` cells or pixels, positive outward.
    """
    out, key = [], (inside.numpy().tobytes(), *inside.shape)
    for distance in distances:
        down, right = contour(key, distance * unit)
        out.append((image[..., 1:, :] - image[..., :-1, :]).abs()[..., down].flatten())
        out.append((image[..., 1:] - image[..., :-1]).abs()[..., right].flatten())
    return torch.cat(out)


class Seam:
    """The steps of one method, collected over masks."""

    def __init__(self, unit=1):
        self.unit, self.at, self.far, self.near, self.outside = unit, [], [], {}, 0.0

    def add(self, image, inside):
        self.at.append(steps_across(image, inside, [0], self.unit))
        self.far.append(steps_across(image, inside, [-d for d in FAR] + list(FAR), self.unit))
        for distance in range(-6, 2):
            self.near.setdefault(distance, []).append(steps_across(image, inside, [distance], self.unit))
        self.near.setdefault("far outside", []).append(steps_across(image, inside, [3, 4, 5, 6], self.unit))

    def ratio(self):
        return float(torch.cat(self.at).median() / torch.cat(self.far).median())

    def worst_contour(self):
        """The largest median step of any contour from 6 cells within to 1 beyond, over that far outside."""
        medians = {d: torch.cat(steps).median() for d, steps in self.near.items()}
        far = medians.pop("far outside")
        return float(max(medians.values()) / far)


def table(title, columns, rows):
    width = max(len(c) for c in columns) + 2
    print(f"\n{title}\n{'':38s}" + "".join(f"{c:>{width}s}" for c in columns))
    for name, cells in rows:
        print(f"{name:38s}" + "".join(f"{c:>{width}}" for c in cells))


def decode(latent):
    """A smooth decoder: [B, 4, h, w] -> pictures [B, 8 h, 8 w, 3] in 0..1."""
    return (
        (0.5 + 0.12 * SCALE * F.interpolate(latent[:, :3], scale_factor=CELL, mode="bicubic"))
        .movedim(1, -1)
        .clamp(0, 1)
    )


@functools.cache
def cells_of_pixels(cells):
    """[cells, cells * CELL]: the least squares inverse of the decoder's bicubic along one side."""
    eye = torch.eye(cells, dtype=torch.float64).view(1, cells, cells, 1)
    return torch.linalg.pinv(F.interpolate(eye, (cells * CELL, 1), mode="bicubic")[0, :, :, 0].T)


def encode(image):
    """What `decode` made the picture of, exactly, and the mean of the three as the fourth channel.

    An encoder that loses detail would make the inside smoother than the outside, on every way alike; here the border
    is what is measured.
    """
    rows, columns = (cells_of_pixels(size // CELL) for size in image.shape[1:3])
    rgb = ((rows @ image.movedim(-1, 1).double() @ columns.T).float() - 0.5) / (0.12 * SCALE)
    return torch.cat((rgb, rgb.mean(1, keepdim=True)), 1)
