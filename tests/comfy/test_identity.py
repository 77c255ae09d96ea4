"""The identity of models depends on the base's own weights, not on patches that another clone has left in them."""

import pytest
import tiny
import torch
from bespoke.nodes.bridge import identity


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher()


def patched(model, value=0.01):
    clone = model.clone()
    key = "diffusion_model.input_blocks.0.0.weight"
    weight = dict(clone.model.named_parameters())[key]
    assert clone.add_patches({key: ("diff", (torch.full_like(weight, value),))}, 0.5)
    return clone


def test_patches_of_another_clone_do_not_count(model):
    import comfy.model_management

    before = identity.checksum(model), identity.of_patcher(model)
    clone = patched(model)
    plain = [tensor.clone() for _, tensor in identity.base_tensors(model)]
    comfy.model_management.load_models_gpu([clone], force_full_load=True)
    changed = dict(model.model.named_parameters())["diffusion_model.input_blocks.0.0.weight"]
    # The clone's patch is in the weights.
    assert any(not torch.equal(a, changed) for a in plain if a.shape == changed.shape)
    assert (identity.checksum(model), identity.of_patcher(model)) == before
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert (identity.checksum(model), identity.of_patcher(model)) == before


def test_a_replaced_module_of_another_clone_does_not_count(model):
    """The module that an object patch replaces is in the model while the clone is loaded."""
    import comfy.model_management

    before = identity.checksum(model), identity.of_patcher(model)
    clone = model.clone()
    layer = model.get_model_object("diffusion_model.middle_block")
    clone.add_object_patch("diffusion_model.middle_block", torch.nn.Sequential(torch.nn.Identity(), *layer[1:]))
    comfy.model_management.load_models_gpu([clone], force_full_load=True)
    assert isinstance(model.model.diffusion_model.middle_block[0], torch.nn.Identity)
    assert (identity.checksum(model), identity.of_patcher(model)) == before
    assert identity.of_patcher(clone) != before[1]
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert (identity.checksum(model), identity.of_patcher(model)) == before


def test_patches_on_the_wire_count(model):
    names = {identity.of_patcher(one) for one in (model, patched(model), patched(model, 0.02))}
    assert len(names) == 3
    assert identity.of_patcher(patched(model)) in names


def test_a_changed_weight_changes_the_checksum(model):
    before = identity.checksum(model)
    weight = next(iter(model.model.parameters()))
    with torch.inference_mode():
        kept = weight.flatten()[0].clone()
        weight.view(-1)[0] = kept + 1
        assert identity.checksum(model) != before
        weight.view(-1)[0] = kept
    assert identity.checksum(model) == before


def test_the_class_of_a_text_encoder_counts(comfyui):
    """SDXL's and SD3's two encoders may have the same weights and give another conditioning."""
    clip = tiny.clip(two=True)
    same = tiny.clip(two=True)
    assert identity.of_clip(clip) == identity.of_clip(same)
    same.cond_stage_model.__class__ = type("Another", (type(same.cond_stage_model),), {})
    assert identity.of_clip(clip) != identity.of_clip(same)


def test_the_noise_schedule_counts(model):
    import comfy.model_sampling

    shifted = model.clone()
    sampling = type(model.get_model_object("model_sampling"))(model.model.model_config)
    sampling.set_sigmas(sampling.sigmas * 2)
    shifted.add_object_patch("model_sampling", sampling)
    assert identity.of_patcher(shifted) != identity.of_patcher(model)
    v = model.clone()
    v.add_object_patch(
        "model_sampling",
        type("V", (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.ModelSamplingDiscrete), {})(
            model.model.model_config
        ),
    )
    assert len({identity.of_patcher(one) for one in (model, shifted, v)}) == 3
    assert identity.checksum(shifted) == identity.checksum(model)  # the weights are the same


@pytest.mark.parametrize(("two", "part"), [(False, "clip_l"), (True, "clip_l")], ids=["SD1.5", "SDXL"])
def test_a_weight_that_no_file_has_and_no_output_needs_does_not_count(comfyui, two, part):
    """Files of SD1.5 and SDXL lack CLIP-L's projection; ComfyUI leaves what was in the memory, new at every start.

    Oracle: the encoding, which is bit-equal whatever stands there.
    """
    clip = tiny.clip(two)
    weights = dict(clip.patcher.model.named_parameters())
    projection = weights[f"{part}.transformer.text_projection.weight"]

    def encoded():
        tokens = clip.tokenize("a red circle")
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        return cond, pooled

    texts, checksums, encodings = set(), set(), []
    for value in (0.0, 1.0, float("nan")):
        with torch.no_grad():
            projection.fill_(value)
        texts.add(identity.of_clip(clip).text)
        checksums.add(identity.checksum(clip.patcher))
        encodings.append(encoded())
    assert len(texts) == len(checksums) == 1
    assert all(torch.equal(a, b) for one in encodings[1:] for a, b in zip(one, encodings[0], strict=True))
    used = weights["clip_g.transformer.text_projection.weight"] if two else next(iter(weights.values()))
    with torch.no_grad():
        used += 1
    assert identity.checksum(clip.patcher) not in checksums
