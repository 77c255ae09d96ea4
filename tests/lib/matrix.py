"""Long test matrices: a selection in the default run, the rest under `slow`."""

from __future__ import annotations

import pytest

# One of each family: plain, ancestral, two evaluations, drops a sigma, steps of its own, SDE, multistep, consistency,
# predictor-corrector, CFG++ (steps along the unconditional prediction), exponential with churn.
SAMPLERS = (
    "euler",
    "euler_ancestral",
    "dpm_2",
    "dpm_adaptive",
    "dpmpp_2m_sde",
    "ipndm_v",
    "lcm",
    "uni_pc",
    "euler_cfg_pp",
    "exp_heun_2_x0_sde",
)


def mark_slow(values, usual):
    """The values as pytest parameters, those that are not among `usual` marked slow."""
    missing = set(usual) - set(values)
    assert not missing, f"unknown here: {missing}"
    return [value if value in usual else pytest.param(value, marks=pytest.mark.slow) for value in values]


def usual_and_all(every, usual):
    """Two parameters for a test with its own loop: all of `usual`, and under `slow` all of `every`."""
    assert set(usual) <= set(every), set(usual) - set(every)
    return [pytest.param(tuple(usual), id="some"), pytest.param(tuple(every), marks=pytest.mark.slow, id="all")]
