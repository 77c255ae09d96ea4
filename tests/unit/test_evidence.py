"""Which step to use and what to change next: rules on records whose curves are written by hand.

Every expected number is arithmetic on those curves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from bespoke.training.evidence import MOST_ADVICE, RULES, advice, rate_text, verdict
from bespoke.training.leak import LeakPoint
from bespoke.training.picture_scores import PictureLosses
from bespoke.training.record import Run, RunInfo, RunState
from bespoke.training.stopping import TURNS, Comparison

SETTINGS = {"steps": 400, "learning_rate": 1e-3, "keep": "best", "optimizer": "AdamW"}


def run_of(curve: Any = (), steps: int = 400, state: RunState = RunState.FINISHED, **more: Any) -> Run:
    """A run with samples and a held-out curve of (step, loss)."""
    settings = {**SETTINGS, **more.pop("settings", {})}
    info = RunInfo("lora-0123456789ab", "lora", settings, "base", more.pop("images", 20))
    samples = more.pop("samples", [(0, "000000.png"), (400, "000400.png")])
    return Run(info, [0.1] * steps, [*curve], samples, state=state, **more)


def told(run: Run) -> list[str]:
    return [str(each) for each in advice(run)]


TURNED = [(0, 0.2), (50, 0.16), (100, 0.14), (150, 0.13), (200, 0.125), (250, 0.13), (300, 0.14), (400, 0.15)]


def test_a_curve_that_turned():
    """0.125 / 0.2 is 0.625, so 38 % below; 0.15 / 0.125 is 1.2; 1.2 times 200 steps are 240."""
    found = verdict(run_of(TURNED))
    assert found.title == "Use step 200 of 400, which is kept"
    assert "lowest at step 200: 0.1250, 38 % below the start (0.2000)" in found.reason
    assert "At step 400 it was 0.1500, 20 % above that." in found.reason
    assert told(run_of(TURNED)) == [
        "Fewer steps are enough, about 240: the held-out loss turned at step 200 of 400 and ended 20 % higher."
    ]


def test_a_rise_within_the_measured_noise_is_no_turn():
    """The end is 0.025 above step 200. Two standard errors of 0.02 are 0.04, of 0.01 they are 0.02."""
    for error, is_noise in ((0.02, True), (0.01, False)):
        run = run_of(TURNED, comparisons=[Comparison(400, 200, 0.025, error, 200)])
        assert run.rise_is_noise is is_noise
        assert (run.over_fitting_since() is None) is is_noise
        assert (not told(run)) is is_noise


def test_a_curve_that_turned_at_once_asks_for_a_lower_rate():
    """50 is in the first quarter of 400; 0.22 / 0.19 is 1.158."""
    curve = [(0, 0.2), (50, 0.19), (100, 0.2), (200, 0.21), (400, 0.22)]
    assert told(run_of(curve)) == [
        "Lower learning_rate (it was 1e-3), so that it learns for longer: the held-out loss turned at step 50 of 400 "
        "and ended 16 % higher."
    ]
    prodigy = run_of(curve, settings={"optimizer": "Prodigy (built in)", "learning_rate": 1.0})
    assert told(prodigy)[0].startswith("Set learning_rate to 0.5, a factor of what Prodigy (built in) finds")


def test_a_curve_that_still_falls():
    """The last point up to 80 % of 400 is step 300 with 0.125: 1 - 0.12 / 0.125 is 4 %. 1.5 times 400 is 600."""
    curve = [(0, 0.2), (100, 0.15), (200, 0.13), (300, 0.125), (400, 0.12)]
    assert told(run_of(curve)) == [
        "Train longer, about 600 steps: the held-out loss still fell by 4.0 % over the last fifth, from step 300 to "
        "400."
    ]
    assert "That was the last measurement." in verdict(run_of(curve)).reason
    slower = [*curve[:-1], (400, 0.1226)]  # by 1.92 %, below 2 %
    assert told(run_of(slower)) == []


def test_a_curve_that_rose_before_it_fell_had_too_large_steps():
    """0.09 / 0.04 - 1 is 125 %; the fall at the end says nothing then. 0.044 is 10 % above the start, which may be."""
    curve = [(0, 0.04), (100, 0.09), (200, 0.06), (300, 0.05), (400, 0.035)]
    (said,) = told(run_of(curve))
    assert said.endswith("the held-out loss was 125 % above the start at step 100, before it fell below it.")
    assert said.startswith("Lower learning_rate")
    tolerated = [(0, 0.04), (100, 0.044), (200, 0.039), (300, 0.037), (400, 0.035)]
    assert all("above the start" not in each for each in told(run_of(tolerated)))


def test_a_run_that_was_ended_while_its_curve_fell_needs_more_steps_than_were_asked_for():
    """A run of 400 steps that was ended at 100 trains nothing when 150 are queued: it gives the same result."""
    curve = [(0, 0.2), (25, 0.15), (50, 0.13), (75, 0.125), (100, 0.12)]
    assert told(run_of(curve, steps=100, state=RunState.KEPT)) == [
        "Train longer: with more than 400 steps it goes on after 100: the held-out loss still fell by 4.0 % over the "
        "last fifth, from step 75 to 100."
    ]


def test_a_measured_rate_is_not_told_to_be_changed_in_a_widget():
    """The rate comes over a wire, so what is changed is that it is typed."""
    run = run_of([(0, 0.2), (50, 0.19), (100, 0.2), (200, 0.21), (400, 0.22)])
    run.info = replace(run.info, rate_source="BespokeFindLearningRate")
    assert told(run)[0].startswith("Type a lower learning_rate than the 1e-3 of Find Learning Rate, so that it learns")


def test_the_setting_that_ended_a_run_is_named():
    """Both last validations are above step 200 by 0.005 and 0.01, and twice the error is 0.002."""
    rows = [Comparison(250, 200, 0.005, 0.001, 250), Comparison(300, 200, 0.01, 0.001, 300)]
    more = dict(settings={"stop": TURNS}, steps=300, comparisons=rows)
    reason = verdict(run_of(TURNED[:7], state=RunState.KEPT, **more)).reason
    assert (
        "At step 300 it was 0.1400, 12 % above that, and the run ended, as stop is 'when validation turns'." in reason
    )
    assert "the run ended" not in verdict(run_of(TURNED[:7], **more)).reason  # it was at its last step


def test_a_curve_that_stays_flat_has_spare_steps():
    """From step 100 on all points are within 1 % of 0.1; 100 of 400 is below 60 %. At step 300 it is not."""
    curve = [(0, 0.2), (100, 0.1005), (200, 0.1002), (300, 0.1001), (400, 0.1)]
    assert told(run_of(curve)) == [
        "Fewer steps do as well, about 100: from step 100 of 400 on the held-out loss changed by less than 1%."
    ]
    assert told(run_of([(0, 0.2), (100, 0.15), (200, 0.12), (300, 0.1005), (400, 0.1)])) == []


def test_three_points_have_no_shape():
    assert told(run_of([(0, 0.2), (200, 0.1), (400, 0.15)])) == []


def test_no_step_is_better_than_the_start():
    rises = [(0, 0.1), (200, 0.11), (400, 0.12)]
    assert verdict(run_of(rises)).title == "No step is better than the base"
    assert "0.1000 before the training and 0.1100 at best after it (step 200)" in verdict(run_of(rises)).reason
    assert told(run_of(rises)) == ["Lower learning_rate (it was 1e-3): the held-out loss rose from 0.1000 to 0.1200."]
    flat = [(0, 0.1), (200, 0.1005), (400, 0.1001)]
    assert told(run_of(flat)) == [
        "Raise learning_rate (it was 1e-3), or give more steps: the held-out loss hardly moved, from 0.1000 to 0.1001."
    ]


def test_a_result_that_cannot_be_told_from_the_start():
    """5e-6 of 0.1 is 5e-5 of the start, below 1e-4; 2e-4 is above."""
    assert told(run_of([(0, 0.1), (400, 0.1 - 5e-6)]))[0].startswith("Raise learning_rate (it was 1e-3), or give more")
    assert told(run_of([(0, 0.1), (400, 0.1 - 2e-5)])) == []


def test_losses_that_are_no_numbers():
    run = run_of([(0, 0.1), (200, math.nan), (400, math.nan)], state=RunState.FAILED)
    assert told(run) == [
        "Lower learning_rate (it was 1e-3): the held-out loss was not a number at 2 of 3 measurements, first at step "
        "200."
    ]
    assert verdict(run).title == "Step 400 of 400: the run failed"


def test_keep_last_hands_on_a_worse_step():
    """1 - 0.125 / 0.15 is 16.7 %."""
    run = run_of(TURNED, settings={"keep": "last"})
    assert run.kept_step == 400
    assert verdict(run).title == "Step 400 is kept; step 200 scored best"
    assert told(run)[0] == "Set keep to best: step 200 scored 17 % better than the last."


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, "Write prompts of the class into preserve, one a line"),
        ({"preserve": "a dog", "preserve_weight": 2.0}, "Raise preserve_weight (it was 2), or add prompts to preserve"),
    ],
)
def test_a_high_leak(settings, change):
    """sqrt(0.64 / 1) is 0.8, and sqrt(0.25 / 1) is 0.5, which is not above 0.5."""
    curve = [(0, 0.2), (400, 0.1)]
    run = run_of(curve, settings=settings, leak=[LeakPoint(400, 0.64, 1.0)])
    assert [each.change for each in advice(run)] == [change]
    assert "the leak is 0.80" in advice(run)[0].figure
    assert told(run_of(curve, leak=[LeakPoint(400, 0.25, 1.0)])) == []


def test_nothing_held_out_and_no_samples():
    run = run_of(samples=[])
    assert verdict(run).title == "Step 400 of 400, the last"
    assert "No pictures were held out" in verdict(run).reason
    assert told(run) == [
        "Set validation to 2: 0 of 20 pictures were held out, so nothing says when to stop.",
        "Set sample_every to 100: 0 samples were drawn, so base and result cannot be compared here.",
    ]
    assert told(run_of(images=1))[0].startswith("Set validation to 1: 0 of 1 pictures were held out")


def test_a_caption_that_does_not_fit_is_named():
    """Nine captions lower the loss by a tenth (log 1.1), and one raises it by a half."""
    rows = [PictureLosses("", f"{i}.png", False, [(0, 0.1), (400, 0.08)], math.log(1.1)) for i in range(9)]
    rows.append(PictureLosses("", "wrong.png", False, [(0, 0.1), (400, 0.08)], -math.log(1.5)))
    run = run_of([(0, 0.2), (400, 0.1)], pictures=rows)
    assert told(run) == ["Look at the captions of wrong.png: 1 of 10 pictures: its caption may not fit."]


def test_an_interrupted_run_is_gone_on_with():
    run = run_of([(0, 0.2), (20, 0.18), (40, 0.17), (60, 0.16), (80, 0.15), (100, 0.14)], 100, RunState.INTERRUPTED)
    assert verdict(run).title == "Step 100 of 400: the run was interrupted"
    assert "So far the loss on held-out pictures was lowest at step 100" in verdict(run).reason
    assert told(run) == ["Queue the same again, it goes on from there: the run ended at step 100 of 400."]


def test_cross_validation_says_where_the_step_comes_from():
    """The last training goes to the step that the others found: it has 200 losses."""
    run = run_of(TURNED, 200, folds=3, images=5)
    assert run.kept_step == 200
    assert verdict(run).title == "Use step 200 of 400, which is kept"
    assert verdict(run).reason.startswith("3 trainings that left pictures out said so")
    assert "all 5 pictures" in verdict(run).reason


def test_at_most_three_and_the_most_urgent_first():
    run = run_of(TURNED, settings={"keep": "last"}, samples=[], leak=[LeakPoint(400, 1.0, 1.0)])
    applies = [rule.__name__ for rule in RULES if rule(run)]
    assert applies == ["keeps_last", "turned", "high_leak", "no_samples"]
    assert [each.change for each in advice(run)] == [rule(run).change for rule in RULES if rule(run)][:MOST_ADVICE]


@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("curve", [[], [(0, math.nan)], [(0, 0.0), (1, 0.0)], [(0, 0.2)], [(1, 0.1)]])
@pytest.mark.parametrize("state", list(RunState))
def test_odd_records_have_a_verdict(losses, curve, state):
    """Records without settings, steps or finite losses, as old or damaged ones may be."""
    info = RunInfo("lora-0123456789ab", "lora", {"steps": "many", "learning_rate": None}, "base", 0)
    run = Run(info, [math.nan] * losses, curve, state=state)
    assert verdict(run).title
    assert all(each.change and each.figure for each in advice(run))


@pytest.mark.parametrize(
    ("rate", "text"), [(1e-4, "1e-4"), (3.21e-5, "3.21e-5"), (0.0025, "2.5e-3"), (0.01, "0.01"), (1.0, "1"), (0, "0")]
)
def test_a_rate_in_words(rate, text):
    assert rate_text(rate) == text
