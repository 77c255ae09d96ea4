"""Bespoke LoRA Sweep: the pictures of ComfyUI's own nodes, each drawn once, and what the plan makes of its inputs."""

import pytest
import torch
from bespoke.nodes.bridge.drawing.fonts import builtin_font
from bespoke.nodes.compare.sheet import SMALL_TEXT
from bespoke.nodes.compare.sweep import cells as sweep_cells
from bespoke.nodes.compare.sweep import sheet
from bespoke.nodes.compare.sweep.losses import Score
from bespoke.nodes.compare.sweep.plan import Column, make_plan, parse_strengths, without_triggers
from bespoke.nodes.lora.files import saved_on_the_way
from bespoke.nodes.lora.named_lora import NamedLora
from bespoke.training.captions import says
from bespoke.training.errors import InputError
from helpers import sprite_set

SETTINGS = dict(
    strengths="0.5, 1",
    negative="blurry",
    steps=2,
    cfg=3.0,
    sampler_name="euler",
    scheduler="normal",
    seed=7,
    width=64,
    height=64,
)


@pytest.fixture(scope="module")
def lora(small, run_node):
    model, clip, vae = small
    images = sprite_set(1, 3, colour="teal")
    _, lora, *_ = run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=images,
        steps=2,
        learning_rate=1e-2,
        batch_size=2,
        rank=2,
        alpha=2.0,
        seed=0,
        train_text_encoder=True,
        resume=False,
    )
    return lora


@pytest.fixture
def sweep(small, run_node):
    sweep_cells.cell_cache.__init__(sweep_cells.MAX_BYTES)
    sweep_cells.loss_cache.__init__()
    model, clip, vae = small

    def run(**changes):
        return run_node("BespokeLoraSweep", model=model, clip=clip, vae=vae, **SETTINGS | changes)

    return run


def by_core(run_node, small, lora, strength, prompt):
    """Load LoRA Model, CLIP Text Encode, KSampler, VAE Decode."""
    import comfy.sd

    model, clip, vae = small
    if strength:
        model, clip = comfy.sd.load_lora_for_models(model, clip, dict(lora), strength, strength)
    (positive,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
    (negative,) = run_node("CLIPTextEncode", clip=clip, text="blurry")
    (latent,) = run_node("EmptyLatentImage", width=64, height=64, batch_size=1)
    (samples,) = run_node(
        "KSampler",
        model=model,
        seed=7,
        steps=2,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=1.0,
    )
    return run_node("VAEDecode", samples=samples, vae=vae)[0]


def test_each_cell_is_the_picture_of_cores_nodes_and_is_drawn_once(sweep, small, run_node, lora, monkeypatch):
    """Bit for bit, for the model with the LoRA at each strength and without it."""
    drawn = {}
    draw = sweep_cells.Cells.picture

    def picture(self, column, strength, prompt):
        drawn[column.name, strength, prompt] = draw(self, column, strength, prompt)
        return drawn[column.name, strength, prompt]

    monkeypatch.setattr(sweep_cells.Cells, "picture", picture)
    prompts = "a teal circle on white"
    grid, report = sweep(loras={"lora0": lora}, prompts=prompts)
    assert "1 LoRA, 1 prompt: 3 pictures drawn" in report
    assert grid.shape[0] == 1
    for (name, strength, prompt), picture_of_cell in drawn.items():
        at = 0.0 if name == "without a LoRA" else strength
        assert torch.equal(picture_of_cell, by_core(run_node, small, lora, at, prompt).cpu()), (name, strength)
    assert len(drawn) == 3

    _, report = sweep(loras={"lora0": lora}, prompts=prompts, strengths="0.5, 0.75, 1")
    assert "1 picture drawn" in report
    assert "3 kept from before" in report
    _, report = sweep(loras={"lora0": lora}, prompts=prompts, seed=8)
    assert "3 pictures drawn" in report


def test_a_further_strength_computes_its_own_score_alone(sweep, lora, monkeypatch):
    from bespoke.nodes.compare.sweep import node

    scored = []
    score, base = node.score_beside, node.predictions_on
    monkeypatch.setattr(node, "score_beside", lambda *args: scored.append("a LoRA") or score(*args))
    monkeypatch.setattr(node, "predictions_on", lambda *args: scored.append("the base") or base(*args))
    given = dict(loras={"lora0": lora}, prompts="a teal circle", images=sprite_set(77, 1, colour="teal"))
    _, one = sweep(strengths="1", **given)
    assert scored == ["the base", "a LoRA"]
    _, two = sweep(strengths="1 0.5 0", **given)
    assert scored == ["the base", "a LoRA", "a LoRA"]
    assert set(scores_in(one)) < set(scores_in(two))
    assert ("0", "lora 1") in [(strength, name) for _, _, strength, name in scores_in(two)]


def scores_in(report):
    """[(loss, leak, strength, LoRA)] of a report's table, as texts."""
    return [tuple(line.split(" | ")) for line in report.splitlines() if line.count(" | ") == 3][1:]


@pytest.mark.slow
def test_losses_are_the_error_of_the_noise_and_leaks_how_far_predictions_moved(sweep, small, run_node, lora):
    """By hand: the mean of |epsilon - prediction|^2 (Ho et al. 2020, eq. 14), with core's network and core's
    LoRA, at five timesteps of each picture, with the noises of a validation. The leak is the root of the mean squared
    change of that prediction at the captions without the trigger over that at the captions."""
    import comfy.model_management
    import comfy.sd
    from bespoke.training.randomness import noise
    from bespoke.training.validation import SEED, TIMESTEPS

    others = sprite_set(77, 2, colour="teal")
    named = NamedLora(lora, "named.safetensors", {"modelspec.trigger_phrase": "teal"})
    _, report = sweep(loras={"lora0": named}, prompts="a teal circle on white", strengths="0.5 1", images=others)
    losses = {(name, float(strength)): float(loss) for loss, _, strength, name in scores_in(report)}
    leaks = {float(strength): leak for _, leak, strength, _ in scores_in(report)}
    assert set(losses) == {("without a LoRA", 0.0), ("named", 0.5), ("named", 1.0)}
    assert sorted(losses.values()) == list(losses.values())
    assert leaks[0.0] == "-"
    predicted = {}
    for (_, strength), loss in losses.items():
        model, clip, vae = small
        if strength:
            model, clip = comfy.sd.load_lora_for_models(model, clip, dict(lora), strength, strength)
        comfy.model_management.load_models_gpu([model])
        errors = []
        for index, item in enumerate(others.items):
            (latent,) = run_node("VAEEncode", pixels=item.pixels[None] / 255, vae=vae)
            clean = model.model.process_latent_in(latent["samples"])
            assert "teal" in item.prompt
            for kind, text in ("own", item.prompt), ("other", without_triggers(item.prompt, "teal")):
                ((cond, _),) = run_node("CLIPTextEncode", clip=clip, text=text)[0]
                for position, t in enumerate(TIMESTEPS):
                    sigma = model.model.model_sampling.sigmas[int(t * 1000)].reshape(1)
                    epsilon = noise(SEED, index, position, clean.shape[1:], "held out")[None]
                    with torch.no_grad():
                        denoised = model.model.apply_model(clean + sigma * epsilon, sigma, c_crossattn=cond)
                    predicted.setdefault((strength, kind), []).append(denoised / sigma)
                    if kind == "own":
                        errors.append(float((((denoised - clean) / sigma) ** 2).mean()))
        assert loss == pytest.approx(sum(errors) / len(errors), rel=0.02), strength  # the network computes in bfloat16
    for strength in (0.5, 1.0):
        other, own = (
            sum(
                float(((now - base) ** 2).mean())
                for now, base in zip(predicted[strength, kind], predicted[0.0, kind], strict=True)
            )
            for kind in ("other", "own")
        )
        assert float(leaks[strength]) == pytest.approx((other / own) ** 0.5, rel=0.05), strength


@pytest.mark.slow
def test_a_lora_of_a_part_of_the_schedule_acts_there_alone(sweep, small, run_node, lora, monkeypatch):
    """The oracle: the graph of Inject LoRA and ComfyUI's own nodes, bit for bit; the loss has the part too."""
    drawn, draw = [], sweep_cells.Cells._draw
    monkeypatch.setattr(sweep_cells.Cells, "_draw", lambda self, *args: drawn.append(draw(self, *args)) or drawn[-1])
    part = NamedLora(lora, "part.safetensors", {"modelspec.timestep_range": "900,1000"})
    others = sprite_set(77, 1, colour="teal")
    given = dict(prompts="a teal circle on white", strengths="1", images=others)
    whole_grid, whole_report = sweep(loras={"lora0": lora}, **given)
    grid, report = sweep(loras={"lora0": part}, **given)
    assert "acts there alone" in report
    assert "1 picture drawn" in report  # what is kept of the whole LoRA is another picture
    model, clip, vae = small
    model, clip, *_ = run_node(
        "BespokeInjectLora", model=model, clip=clip, lora_name="none", strength_model=1.0, lora=part
    )
    picture = by_core(run_node, (model, clip, vae), lora, 0.0, given["prompts"])
    assert not torch.equal(grid, whole_grid)
    assert torch.equal(drawn[-1], picture.cpu())

    def losses(text):
        return [float(loss) for loss, *_ in scores_in(text)]

    without, on_part = losses(report)  # this LoRA raises the loss, everywhere by more than on its part
    assert without == losses(whole_report)[0] < on_part < losses(whole_report)[1]


def test_an_interrupted_sweep_goes_on_where_it_was(sweep, lora, monkeypatch):
    import comfy.model_management

    calls = []
    draw = sweep_cells.Cells._draw

    def draw_two(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException
        return draw(self, *args)

    monkeypatch.setattr(sweep_cells.Cells, "_draw", draw_two)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sweep(loras={"lora0": lora}, prompts="a circle")
    _, report = sweep(loras={"lora0": lora}, prompts="a circle")
    assert "1 picture drawn" in report
    assert "2 kept from before" in report


@pytest.mark.slow
def test_a_runs_files_are_the_columns_by_their_steps(comfyui, sweep, small, run_node):
    model, clip, vae = small
    *_, run, _, _ = run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(1, 3, colour="teal"),
        steps=3,
        save_every=1,
        learning_rate=1e-2,
        batch_size=1,
        rank=2,
        alpha=2.0,
        seed=5,
        resume=False,
    )
    steps = [step for step, _ in saved_on_the_way(run.id)]
    assert steps[:2] == [1, 2]
    _, report = sweep(run=run, prompts="a teal circle", strengths="1")
    assert f"{len(steps)} LoRAs, 1 prompt: {len(steps) + 1} pictures drawn" in report


def column(name="a"):
    return Column(name, NamedLora({}, name, {}))


def test_a_prompt_with_the_trigger_gets_a_row_without_it():
    plan = make_plan([column()], "0.5 1", "a sks cat, sks\na dog", "sks")
    with_trigger, without = plan.blocks
    assert [(row.prompt, row.strength) for row in with_trigger.rows] == [
        ("a sks cat, sks", 0.5),
        ("a sks cat, sks", 1.0),
        ("a cat", 1.0),
    ]
    assert [row.without_trigger for row in without.rows] == [False, False]
    assert plan.cells == 5 + 2 + 1
    assert any("a dog" in note for note in plan.notes)
    assert [block.prompt for block in make_plan([column()], "1", "", "sks").blocks] == ["sks"]


def test_options_of_sample_prompts_are_no_part_of_a_prompt():
    """One text can be wired into sample_prompt of the trainer and into prompts, as in the recipes."""
    text = "a sks cat --n blurry --w 768\r\n\r\n--d 5\na -- b --x"
    plan = make_plan([column()], "1", text, "sks")
    assert [block.prompt for block in plan.blocks] == ["a sks cat", "a -- b --x"]
    assert any("prompts has options of sample prompts" in note for note in plan.notes)
    assert [block.prompt for block in make_plan([column()], "1", "--d 5", "sks").blocks] == ["sks"]
    assert not any("options" in note for note in make_plan([column()], "1", "a sks cat", "sks").notes)


@pytest.mark.parametrize(
    ("prompt", "trigger", "left"),
    [
        ("sks asks Sks, a cat", "sks", "asks, a cat"),
        ("photo of blue dress, ohwx woman", "ohwx woman, ohwx", "photo of blue dress"),
        ("ohwx woman and a zwx dog", "zwx, ohwx woman", "and a dog"),
        ("nothing", "sks", "nothing"),
        ("a  b", "", "a  b"),
        ("a  b,, c", "sks", "a  b,, c"),  # says no trigger: stays as it is, so that no row is added
        ("a (sks:1.2) dog", "sks", "a dog"),
        (r"saber \(fate\), a knight", "saber (fate)", ""),  # another spelling of the trigger: nothing is left of it
        ("\uff53\u732bと犬", "猫", "\uff53と犬"),  # no spaces between words: as `says` reads it
    ],
)
def test_trigger_words_are_taken_out_whole(prompt, trigger, left):
    """Oracle: by hand. What is left says no trigger word (`says`), which is what a training calls one."""
    assert without_triggers(prompt, trigger) == left
    assert not any(says(left, phrase) for phrase in trigger.split(","))


@pytest.mark.parametrize(("others", "word", "wide"), [(0, "loss ", True), (28, "", True), (60, "", False)])
def test_what_stands_under_the_pictures(monkeypatch, others, word, wide):
    """Oracle: by hand. Loss and leak are of LoRA and strength, the loss at the captions of images: the row without the
    trigger has the leak alone, and the model without a LoRA, which has one picture for a prompt, says where that
    picture is. Where pictures are narrow, the loss stands alone."""
    drawn = []
    grid_of = sheet.draw_grid
    monkeypatch.setattr(sheet, "draw_grid", lambda grid, side: (drawn.append((grid, side)), grid_of(grid, side))[1])
    plan = make_plan([column("a"), *(column(f"b{i}") for i in range(others))], "0.5 1", "a sks cat", "sks")
    picture = torch.zeros(1, 256, 256, 3)
    leak = ", leak {:.2f}".format if wide else lambda leak: ""
    pictures = {(0, row, one): picture for row in plan.blocks[0].rows for one in plan.columns}
    scores = {("without a LoRA", 0.0): Score(0.03), ("a", 0.5): Score(0.01, 0.5), ("a", 1.0): Score(0.02, 1.25)}
    sheet.draw(plan, pictures, scores)
    (grid, side), *_ = drawn
    assert {at: text for at, text in grid.under.items() if at[1] in ("without a LoRA", "a")} == {
        ("strength 0.5", "without a LoRA"): "loss 0.0300" if wide else "0.0300",
        ("strength 0.5", "a"): f"{word}0.0100{leak(0.5)}",
        ("strength 1", "without a LoRA"): "as above",
        ("strength 1", "a"): f"{word}0.0200{leak(1.25)}",
        ("without the trigger, strength 1", "a"): "leak 1.25",
    }
    assert grid.marked == {("strength 0.5", "a")}
    assert all(builtin_font(SMALL_TEXT).getlength(text) <= side for text in grid.under.values())
    assert not grid.cells.get(("strength 1", "without a LoRA"))


def test_wrong_inputs_are_refused():
    assert parse_strengths("1, 0.5;0.5\n-2") == [1.0, 0.5, -2.0]
    for text, words in (("", "is empty"), ("1, much", "'much'"), ("11", "'11'"), ("nan", "'nan'")):
        with pytest.raises(InputError, match=words):
            parse_strengths(text)
    with pytest.raises(InputError, match="no LoRA is wired in"):
        make_plan([], "1", "a", "")
    with pytest.raises(InputError, match="prompts is empty"):
        make_plan([column()], "1", "", "")
    many = "\n".join(map(str, range(20)))
    with pytest.raises(InputError, match="give at most 2,000"):
        make_plan([column(str(n)) for n in range(26)], " ".join(str(n / 10) for n in range(20)), many, "")
