"""Clips from films: which frames become which pixels, by arithmetic on numbered frames."""

from fractions import Fraction

import numpy as np
import pytest
from bespoke.nodes.images.clips.folder import ClipRequest, read_clip_folder
from bespoke.nodes.images.clips.plan import Cutting
from ..lib.films import grey, numbers, write_film


def clips_of(folder, trigger="", captions="text files", resolution=128, **settings):
    names = ("frames", "fps", "frame_step", "stride", "most", "threshold")
    cutting = Cutting(**({"frames": 9} | {name: settings.pop(name) for name in names if name in settings}))
    return read_clip_folder(
        ClipRequest(folder, captions, trigger=trigger, resolution=resolution, bucket_step=8, cutting=cutting, **settings)
    )


def test_frames(tmp_path):
    write_film(tmp_path / "a.mkv", [grey(i) for i in range(40)])
    images = clips_of(tmp_path)
    for each in images.items: print(each.name, numbers(each.pixels), each.start, each.fps, each.pixels.shape)
    print(images.notes)
