"""A training adapter: part of the base in the steps and the losses, and in nothing else.

The oracle of a change is `W + delta` written into the model's weights as a plain difference, with the delta by hand.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.training.adapters import ADAPTERS, AdapterConfig, AdapterSet
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import layers_of
from helpers import sprite_set, weights_hash
from PIL import Image

SIZE = 0.2  # of the adapter's change, over the weight's norm


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture(scope="module", autouse=True)
def short_drawings(comfyui):
    """Pictures of two steps, where the graph has no KSampler."""
    from bespoke.nodes.bridge.runs.samples import SamplerSettings
    from bespoke.nodes.lora.training import node

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node, "DEFAULT_SAMPLER", SamplerSettings(steps=2, cfg=1.0))
        yield


@pytest.fixture(scope="module")
def adapter(models):
    """A LoRA on all linear layers of the attention and feed-forward, other ones than are trained too."""
    layers = tiny.linear_layers(models[0], "transformer_blocks")
    return tiny.random_lora(layers, rank=3, alpha=1.5, size=SIZE)


def deltas_of(lora):
    """{layer: (alpha / rank) B A} by hand."""
    out = {}
    for layer, parts in layers_of(lora).items():
        up, down = parts[".lora_up.weight"], parts[".lora_down.weight"]
        out[layer] = up @ down * (float(parts[".alpha"]) / down.shape[0])
    return out


def with_deltas(model, deltas, strength=1.0):
    merged = model.clone()
    merged.add_patches({f"{layer}.weight": ("diff", (delta,)) for layer, delta in deltas.items()}, strength)
    return merged


def train(run_node, models, **changes):
    model, clip, vae = models
    settings = dict(
        steps=4, batch_size=2, rank=2, alpha=2.0, learning_rate=2e-2, seed=5, precision="fp32", resume=False,
        lr_schedule="constant", score_pictures="off", validation_images=sprite_set(9, 2, side=64, colour="teal"),
    )  # fmt: skip
    images = sprite_set(2, 4, side=64, colour="teal")
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


@pytest.fixture(scope="module")
def trained(run_node, models, adapter):
    """(with the adapter, on W + delta, without it): the outputs of three trainings."""
    model, clip, vae = models
    before = weights_hash(model.model)
    mine = train(run_node, models, training_adapter=adapter)
    assert weights_hash(model.model) == before
    merged = train(run_node, (with_deltas(model, deltas_of(adapter)), clip, vae))
    return mine, merged, train(run_node, models)


def relative(one, other):
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def distance(one, other):
    """The largest difference of two LoRAs over the largest number."""
    return max(float((one[key] - other[key]).abs().max()) for key in other) / max(
        float(part.abs().max()) for key, part in other.items() if "alpha" not in key
    )


def test_the_training_and_the_held_out_loss_see_the_base_with_the_delta(trained):
    """Losses and what is learned are those of W + delta; without the adapter they are others."""
    mine, merged, plain = trained
    assert relative(mine[3].losses, merged[3].losses) < 1e-5
    assert relative([loss for _, loss in mine[3].held_out], [loss for _, loss in merged[3].held_out]) < 1e-5
    assert distance(mine[1], merged[1]) < 1e-3
    assert relative(mine[3].losses, plain[3].losses) > 1e-3
    assert distance(mine[1], plain[1]) > 1e-2


def test_the_outputs_have_what_was_trained_alone(trained, models, adapter):
    mine, _, plain = trained
    assert set(mine[1]) == set(plain[1])
    by_hand = tiny.predict(with_deltas(models[0], deltas_of(mine[1])))
    moved = (by_hand - tiny.predict(models[0])).abs().max()
    assert (tiny.predict(mine[0]) - by_hand).abs().max() < 1e-4 * moved


def test_nothing_is_left_on_the_model(trained, models):
    for layer in models[0].model.modules():
        assert not layer._forward_hooks
        assert not getattr(layer, "weight_function", ())


def drawn(runs, run, number):
    path = Path(runs) / run.id / "samples" / run.samples[number][1]
    return torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8)


@pytest.mark.slow
def test_samples_are_drawn_without_it_also_where_none_is_due(run_node, models, adapter, runs, monkeypatch):
    """Of the base before the first step, and at the end of what a training without it draws of the same LoRA."""
    from bespoke.nodes.bridge.runs.samples import SamplerSettings
    from bespoke.nodes.lora.training import node

    monkeypatch.setattr(node, "DEFAULT_SAMPLER", SamplerSettings())  # those of a training without an adapter
    _, learned, _, run, *_ = train(run_node, models, training_adapter=adapter, keep="last")
    assert [step for step, _ in run.samples] == [0, 4]
    still = dict(sample_every=4, steps=1, learning_rate=1e-12, keep="last")
    base = train(run_node, models, **still)[3]
    other = train(run_node, models, lora=learned, **still)[3]
    assert torch.equal(drawn(runs, run, 0), drawn(runs, base, 0))
    assert torch.equal(drawn(runs, run, 1), drawn(runs, other, 0))
    assert not torch.equal(drawn(runs, run, 1), drawn(runs, run, 0))


def full_weights(models):
    """A file of whole differences, of a weight, a norm and a bias."""
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0."
    network, seed = models[0].model, torch.Generator().manual_seed(3)
    weight = network.get_submodule(name + "attn2.to_k").weight
    norm = network.get_submodule(name + "norm2")
    return {
        name + "attn2.to_k.diff": 0.1 * torch.randn(weight.shape, generator=seed),
        name + "norm2.diff": 0.3 * torch.randn(norm.weight.shape, generator=seed),
        name + "norm2.diff_b": 0.3 * torch.randn(norm.bias.shape, generator=seed),
        name + "attn2.to_out.0.diff_b": 0.3 * torch.randn(weight.shape[0], generator=seed),
    }


def made(run_node, models, kind):
    """An adapter file of a kind, and {weight's key: the change} by `delta_weight`, which the unit tests compare with
    PEFT and LyCORIS."""
    lora = train(run_node, models, adapter=kind, steps=2, learning_rate=0.2, keep="last", targets="attention")[1]
    names = list(layers_of(lora))
    layers = {name: models[0].model.get_submodule(name) for name in names}
    adapters = AdapterSet(ADAPTERS[kind], layers, AdapterConfig(2, 2.0, 0), torch.device("cpu"))
    adapters.load_state_dict(lora)
    return lora, {f"{name}.weight": adapters[name].delta_weight().detach() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DoRA", "LoKr", "LoHa", "differences"])
def test_every_kind_of_file_is_part_of_the_base(run_node, models, kind):
    """Kinds that are no two factors: the layer's weight is computed at each call, in both passes."""
    if kind == "differences":
        lora = full_weights(models)
        ends = {".diff": ".weight", ".diff_b": ".bias"}
        deltas = {key[: key.rindex(".")] + ends[key[key.rindex(".") :]]: change for key, change in lora.items()}
    else:
        lora, deltas = made(run_node, models, kind)
    merged = models[0].clone()
    merged.add_patches({key: ("diff", (delta,)) for key, delta in deltas.items()}, 0.5 if kind != "DoRA" else 1.0)
    strength = 0.5 if kind != "DoRA" else 1.0
    mine = train(run_node, models, training_adapter=lora, training_adapter_strength=strength, steps=2)
    other = train(run_node, (merged, *models[1:]), steps=2)
    assert relative(mine[3].losses, other[3].losses) < 1e-5
    assert distance(mine[1], other[1]) < 1e-3
    assert relative(mine[3].losses, train(run_node, models, steps=2)[3].losses) > 1e-5
    test_nothing_is_left_on_the_model(None, models)


def test_a_file_of_kohyas_names_is_read_by_load_lora(run_node, models, trained, adapter):
    """As published adapters have their layers' names. Written by Save LoRA."""
    file, *_ = run_node(
        "BespokeSaveLora", lora=adapter, filename_prefix="adapter/kohya", dtype="fp32", run=trained[1][3]
    )
    read, *_ = run_node("BespokeLoadLora", lora_name=file)
    mine = train(run_node, models, training_adapter=read, steps=1)
    assert relative(mine[3].losses, trained[0][3].losses[:1]) < 1e-6


def test_strength_scales_the_change(run_node, models, adapter):
    twice = train(run_node, models, training_adapter=adapter, training_adapter_strength=2.0, steps=1)
    merged = with_deltas(models[0], deltas_of(adapter), 2.0)
    assert relative(twice[3].losses, train(run_node, (merged, *models[1:]), steps=1)[3].losses) < 1e-5


def test_gradient_checkpointing_gives_the_same(run_node, models, adapter, trained):
    mine = train(run_node, models, training_adapter=adapter, gradient_checkpointing=True)
    assert relative(mine[3].losses, trained[0][3].losses) < 1e-6
    assert distance(mine[1], trained[0][1]) < 1e-5


def test_a_resumed_run_ends_on_the_same_bits(run_node, models, adapter, runs, trained):
    first = train(run_node, models, training_adapter=adapter, steps=2, resume=True)
    again = train(run_node, models, training_adapter=adapter, steps=4, resume=True)
    assert first[3].id == again[3].id == trained[0][3].id
    assert all(torch.equal(again[1][key], part) for key, part in trained[0][1].items())
    assert sum("few-step drift" in note for note in again[3].notes) == 1


def test_the_adapter_is_part_of_the_runs_identity(adapter, trained):
    images = sprite_set(2, 4, side=64, colour="teal")
    assert LoraData(images).fingerprint() == "|".join([images.fingerprint, "", "", ""])  # as in version 0.1
    other = {key: part * 2 for key, part in adapter.items()}
    prints = [LoraData(images, training_adapter=one).fingerprint() for one in (None, adapter, other)]
    assert len(set(prints)) == 3
    mine, _, plain = trained
    assert mine[3].id != plain[3].id
    assert "training_adapter_strength" not in plain[3].info.settings
    assert mine[3].info.settings["training_adapter_strength"] == 1.0


def test_the_report_says_what_it_was_and_how_far_the_few_step_pictures_drifted(trained):
    mine, _, plain = trained
    assert "The training adapter (40 layers, strength 1) was part of the base in the training steps" in mine[4]
    assert "Few-step drift: 4 pictures that the base drew in 2 steps at CFG 1" in mine[4]
    assert "few-step drift takes 48 calls of the model" in mine[3].start_line  # 4 x (2 + 2 x 5)
    assert "drift" not in plain[4] + plain[3].start_line


@pytest.mark.slow
def test_the_drift_of_a_training_that_learns_nothing_is_none(run_node, models, adapter):
    """And before it is the base's own loss, whatever the LoRA to go on from is."""
    mine = train(run_node, models, training_adapter=adapter, learning_rate=0.0, steps=1)
    assert "(+0.0%)" in mine[4]
    far = train(run_node, models, steps=2, keep="last", learning_rate=0.2)[1]
    other = train(run_node, models, training_adapter=adapter, learning_rate=0.0, steps=1, lora=far)
    before = [report.partition("have the loss ")[2].split()[0] for report in (mine[4], other[4])]
    assert before[0] == before[1] != ""
    assert "(+0.0%)" not in other[4]


def test_layers_without_a_place_are_refused(run_node, models, adapter):
    odd = adapter | {"diffusion_model.nowhere.lora_up.weight": torch.ones(4, 2)}
    odd |= {"diffusion_model.nowhere.lora_down.weight": torch.ones(2, 4)}
    with pytest.raises(InputError, match=r"training_adapter has 1 layers that this model does not have.*nowhere.*give"):
        train(run_node, models, training_adapter=odd)


def test_dora_is_refused_where_the_adapter_changes_its_weights(run_node, models):
    lora = made(run_node, models, "LoHa")[0]
    with pytest.raises(InputError, match="adapter is DoRA.*training_adapter changes .*choose adapter LoRA"):
        train(run_node, models, training_adapter=lora, adapter="DoRA")


def test_dora_sees_the_layers_own_output(run_node, models, adapter):
    """At the start nothing is changed, so the loss is that of the base with the adapter."""
    mine = train(run_node, models, training_adapter=adapter, adapter="DoRA", steps=1)
    merged = with_deltas(models[0], deltas_of(adapter))
    assert relative(mine[3].losses, train(run_node, (merged, *models[1:]), steps=1)[3].losses) < 1e-5


def text_lora(clip):
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    rows, columns = clip.cond_stage_model.get_submodule(name).weight.shape
    seed = torch.Generator().manual_seed(4)
    return {
        f"text_encoders.{name}.lora_up.weight": torch.randn(rows, 2, generator=seed),
        f"text_encoders.{name}.lora_down.weight": 0.2 * torch.randn(2, columns, generator=seed),
    }, name


@pytest.mark.slow
def test_a_text_encoders_part_acts_where_it_runs_in_the_steps(run_node, models, adapter):
    """There the loss is that of the CLIP with the change in its weights; elsewhere it is left out, with a word."""
    lora, name = text_lora(models[1])
    clip = models[1].clone()
    up, down = lora.values()
    clip.patcher.add_patches({f"{name}.weight": ("diff", (up @ down,))})
    few = dict(steps=1, learning_rate=1e-3, train_text_encoder=True)
    mine = train(run_node, models, training_adapter=adapter | lora, **few)
    other = train(run_node, (with_deltas(models[0], deltas_of(adapter)), clip, models[2]), **few)
    assert relative(mine[3].losses, other[3].losses) < 1e-5
    left = train(run_node, models, training_adapter=adapter | lora, steps=1)
    assert "1 more layers are of the text encoder" in left[4]
    assert relative(left[3].losses, mine[3].losses) > 1e-6
    assert not any(layer._forward_hooks for layer in models[1].cond_stage_model.modules())


@pytest.mark.slow
def test_a_job_carries_it(run_node, models, adapter, tmp_path, runs, trained):
    """Trained from what was written and read again: the same bits as from the node."""
    from bespoke.nodes.bridge.runs.samples import SamplerSettings
    from bespoke.nodes.bridge.trainer import Models
    from bespoke.nodes.bridge.trainer import train as train_it
    from bespoke.nodes.jobs.checks import request_of
    from bespoke.nodes.jobs.job import JobContents, read_job, write_job
    from bespoke.nodes.lora.training.technique import LoraTechnique, encode_dataset, settings_with_adapter

    config = TrainConfig(4, 2e-2, 2, 5, lr_schedule="constant", score_pictures="off")
    request = LoraRequest(config, rank=2, alpha=2.0, precision="fp32", resume=False)
    held_out = sprite_set(9, 2, side=64, colour="teal")
    data = LoraData(sprite_set(2, 4, side=64, colour="teal"), held_out, training_adapter=adapter)
    found = Models(*models)
    with torch.inference_mode():
        dataset = encode_dataset(found, data, request)
        settings = settings_with_adapter(request, adapter)
        assert settings["training_adapter_strength"] == 1.0
        write_job(tmp_path / "job", JobContents("lora", settings, dataset, {}, {}, SamplerSettings(steps=4, cfg=1.0)))
        text = (tmp_path / "job" / "job.toml").read_text()
        (tmp_path / "job" / "job.toml").write_text(text + "\n[model]\n" + MODEL)
        job = read_job(tmp_path / "job")
        assert job.samples.steps == 4
        again = job.dataset(config)
        assert all(torch.equal(again.training_adapter[key], part) for key, part in adapter.items())
        read = request_of(job)
        result = train_it(LoraTechnique(read, found, again), found, again)
    assert all(torch.equal(result.learned[key], part) for key, part in trained[0][1].items())


MODEL = 'loader = "checkpoint"\nfiles = ["a.safetensors"]\nsha256 = ["0"]\n'


def eight_bit():
    """(a U-Net whose weights are fp8 numbers in float32, the same in fp8)."""
    plain = tiny.patcher(tiny.SMALLEST)
    narrow, cpu = tiny.patcher(tiny.SMALLEST), torch.device("cpu")
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    known = comfy.supported_models.SD15(tiny.SMALLEST | {"dtype": torch.float8_e4m3fn})
    known.set_inference_dtype(torch.float8_e4m3fn, torch.float32, device=cpu)
    with torch.inference_mode():  # as in a loader node
        base = comfy.model_base.BaseModel(known, device=cpu)
        state = {k: v.to(torch.float8_e4m3fn) for k, v in narrow.model.diffusion_model.state_dict().items()}
        base.diffusion_model.load_state_dict(state)
    base.diffusion_model.requires_grad_(False)
    plain.model.diffusion_model.load_state_dict({k: v.float() for k, v in state.items()})
    return plain, comfy.model_patcher.ModelPatcher(base.eval(), cpu, cpu)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_weights_of_fp8_are_changed_as_exactly_as_those_of_float32(run_node, models, adapter, kind):
    """Beside the layer, or in the weight that is cast at each call: no change is rounded to fp8."""
    lora = {key: part * 3 for key, part in adapter.items()} if kind == "LoRA" else made(run_node, models, kind)[0]
    plain, narrow = eight_bit()
    before = weights_hash(narrow.model)
    wide = train(run_node, (plain, *models[1:]), training_adapter=lora, steps=2)
    mine = train(run_node, (narrow, *models[1:]), training_adapter=lora, steps=2)
    assert relative(mine[3].losses, wide[3].losses) < 1e-5
    assert distance(mine[1], wide[1]) < 1e-3
    assert relative(mine[3].losses, train(run_node, (narrow, *models[1:]), steps=2)[3].losses) > 1e-5
    assert weights_hash(narrow.model) == before


def offload(patcher, _leave_free):
    """As ComfyUI where weights do not fit: the layers are unloaded and cast their weight at each call."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    patcher.partially_unload(torch.device("cpu"), 10**12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_offloaded_weights_give_the_same(run_node, models, adapter, monkeypatch, kind):
    """ComfyUI's partly loaded model, also after the samples, for which it loads the weights anew."""
    import comfy.model_management
    from bespoke.nodes.bridge.training_model import denoiser

    lora = adapter if kind == "LoRA" else made(run_node, models, kind)[0]
    few = dict(training_adapter=lora, steps=2, sample_every=1)
    whole = train(run_node, models, **few)
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(denoiser, "_load", offload)
    mine = train(run_node, models, **few)
    assert relative(mine[3].losses, whole[3].losses) < 1e-6
    assert distance(mine[1], whole[1]) < 1e-4


def test_the_drift_is_measured_on_a_device_without_float64(comfyui, monkeypatch):
    """MPS refuses float64 with a TypeError; the mean by hand."""
    from bespoke.nodes.lora.training import few_steps

    @dataclass(frozen=True)
    class Settings:
        steps: int = 4

    class OnDevice(torch.Tensor):
        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(few_steps, "denoising_loss", lambda *args: torch.tensor([1.0, 4.0]).as_subclass(OnDevice))
    denoiser = SimpleNamespace(device=torch.device("cpu"), sigma=lambda t: t)
    captions = SimpleNamespace(of_batch=lambda indices, prompts: None)
    latent = torch.zeros(1, 4, 2, 2)
    contexts = (contextlib.nullcontext, contextlib.nullcontext)
    drift = few_steps.FewStepDrift(denoiser, captions, (0, latent), Settings(), [0.2, 0.8], "none", contexts)
    assert drift._loss_of(0, "a cat", latent) == 2.5
