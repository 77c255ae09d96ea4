"""A part of the schedule: its metadata, its edges in float32, and what the config refuses."""

import pytest
import torch
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.record import Run, RunInfo
from bespoke.training.run_identity import defaults_of, run_id
from bespoke.training.timestep_range import WHOLE, TimestepRange, common_range, range_in
from bespoke.training.timesteps import LimitedTimesteps, UniformTimesteps


def test_the_metadata_is_read_as_it_was_written():
    part = TimestepRange(0.1 + 0.2, 0.8)
    assert range_in(part.metadata()) == part  # all digits
    assert part.metadata()["modelspec.timestep_range"] == "300,800"
    assert (part.metadata()["ss_min_timestep"], part.metadata()["ss_max_timestep"]) == ("300", "800")
    assert WHOLE.metadata() == {}
    assert range_in({}) == WHOLE


@pytest.mark.parametrize(
    ("meta", "low", "high"),
    [
        # sd-scripts (library/sai_model_spec.py) and musubi-tuner (utils/sai_model_spec.py): f"{min},{max}" of 0..1000.
        ({"modelspec.timestep_range": "875,1000"}, 0.875, 1.0),
        ({"modelspec.timestep_range": "0,900"}, 0.0, 0.9),
        ({"modelspec.timestep_range": "0, 500"}, 0.0, 0.5),
        # The examples of the model specification 1.0.0.
        ({"modelspec.timestep_range": "500,999"}, 0.5, 1.0),
        ({"modelspec.timestep_range": "0,499"}, 0.0, 0.499),
        ({"ss_min_timestep": "300"}, 0.3, 1.0),
        ({"ss_max_timestep": "700"}, 0.0, 0.7),
        ({"ss_min_timestep": "None", "ss_max_timestep": "None"}, 0.0, 1.0),
        ({"modelspec.timestep_range": "0,1000"}, 0.0, 1.0),
        # Nothing of these names a part.
        ({"modelspec.timestep_range": "500,500"}, 0.0, 1.0),
        ({"modelspec.timestep_range": "900,100"}, 0.0, 1.0),
        ({"modelspec.timestep_range": "nan,inf"}, 0.0, 1.0),
        ({"modelspec.timestep_range": "1,2,3"}, 0.0, 1.0),
        ({"modelspec.timestep_range": "high"}, 0.0, 1.0),
        ({"bespoke.timestep_range": "0.25,", "ss_min_timestep": "100"}, 0.1, 1.0),
    ],
)
def test_the_metadata_of_other_programs(meta, low, high):
    assert range_in(meta) == TimestepRange(low, high)


def test_parts_overlap_contain_and_agree():
    part = TimestepRange(0.3, 0.8)
    assert part.overlap(TimestepRange(0.5, 1.0)) == TimestepRange(0.5, 0.8)
    assert part.overlap(TimestepRange(0.8, 1.0)) is None
    third = torch.tensor(0.3).item()  # float32's 0.3 is above float64's
    below = torch.nextafter(torch.tensor(0.3), torch.tensor(0.0)).item()
    assert part.contains(third)
    assert not part.contains(below)
    assert not part.contains(torch.tensor(0.8).item())
    assert part.contains(torch.nextafter(torch.tensor(0.8), torch.tensor(0.0)).item())
    assert TimestepRange(0.5, 1.0).contains(1.0)
    assert common_range([part, TimestepRange(0.3, 0.8)]) == part
    assert common_range([part, WHOLE]) is None


@pytest.mark.parametrize("count", [1000, 10_000])
def test_no_draw_leaves_the_part_through_rounding(count):
    """The first and the last draw of every part, as a schedule of `count` levels looks them up: floor(t * count) in
    float32. Without a margin 0.8 * (1 - 2^-24) * 1000 rounds to 800."""
    ends = torch.linspace(0, count, 61).long().unique().tolist()
    draws = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24])
    for first in ends[:-1]:
        for last in [first + 1, *(end for end in ends if end > first)]:
            limited = LimitedTimesteps(UniformTimesteps(), first / count, last / count)
            index = (limited.sample(draws) * count).long()
            assert first <= int(index.min()), (first, last)
            assert int(index.max()) < last, (first, last)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.6, 0.4, "min_timestep 0.6 is not below max_timestep 0.4"),
        (0.5, 0.5, "no timestep would be left"),
        (-0.1, 1.0, "min_timestep is -0.1"),
        (0.0, 1.5, "max_timestep is 1.5"),
    ],
)
def test_an_empty_part_is_refused(low, high, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(10, 1e-3, 1, 0, min_timestep=low, max_timestep=high)


def test_the_whole_schedule_leaves_settings_ids_and_records_as_they_were():
    """Version 0.1 has none of the three."""
    plain = TrainConfig(10, 1e-3, 1, 0)
    part = TrainConfig(10, 1e-3, 1, 0, min_timestep=0.3)
    assert not {"min_timestep", "max_timestep"} & set(plain.settings())
    assert part.settings()["min_timestep"] == 0.3
    ids = [run_id("lora", {"min_timestep": low}, "a", "b", defaults_of(TrainConfig)) for low in (0.0, 0.3, 0.4)]
    assert ids[0] == run_id("lora", {}, "a", "b", defaults_of(TrainConfig))
    assert len(set(ids)) == 3
    info = dict(id="lora-1", technique="lora", settings={}, base="base", images=1)
    assert "timestep_range" not in Run(RunInfo(**info)).to_json()
    limited = Run.from_json(Run(RunInfo(**info, timestep_range=(0.3, 0.8))).to_json())
    assert limited.info.part == TimestepRange(0.3, 0.8)
    for bad in ([0.3], ["a", "b"], "0.3,0.8"):
        with pytest.raises(ValueError, match="no record of a run"):
            Run.from_values(info | {"timestep_range": bad})
