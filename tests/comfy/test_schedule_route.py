"""The schedule route, which the node's dial requests: the connected model's schedule without loading the model."""

import json
import math
import struct

import folder_paths
import full_size
import pytest
import torch
from bespoke.nodes.bridge.files.headers import read_small_tensors
from bespoke.nodes.bridge.models import schedule_probe
from bespoke.nodes.img2img import routes
from bespoke.nodes.img2img.shown import MOST_POINTS
from bespoke.training.errors import InputError
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def nodes_loaded(comfyui):
    """Core's ModelSampling nodes are registered."""


def request(chain=(), **query):
    return routes.answer_to({**{k: str(v) for k, v in query.items()}, "model": json.dumps(list(chain))})


def checkpoint(name):
    return {"type": "CheckpointLoaderSimple", "input": None, "values": {"ckpt_name": name}}


def after(kind, **values):
    """A node whose model comes from the one before it."""
    return {"type": kind, "input": "model1" if kind.startswith("ModelMerge") else "model", "values": values}


UNKNOWN = {"problem": "unknown"}


@pytest.fixture(scope="module")
def small_name(comfyui, small_checkpoint):
    """The small model's file among ComfyUI's checkpoints."""
    link = comfyui / "models" / "checkpoints" / "route-small.safetensors"
    link.symlink_to(small_checkpoint)
    return link.name


def test_the_answer_equals_the_nodes_output(run_node, small_name, small):
    for query in (
        dict(
            strength=0.5, steps=20, contract="diffusers", exact_steps="false", scheduler="normal", sampler_name="euler"
        ),
        dict(
            strength=0.3, steps=7, contract="noise level", exact_steps="true", scheduler="karras", sampler_name="dpm_2"
        ),
        dict(strength=0.0, steps=7, contract="comfy", exact_steps="false", scheduler="simple", sampler_name="euler"),
    ):
        answer = request([checkpoint(small_name)], **query)
        sigmas, report, _ = run_node(
            "BespokeStrengthSigmas", model=small[0], **{**query, "exact_steps": query["exact_steps"] == "true"}
        )
        assert answer["model"] == small_name
        assert answer["report"] == report
        assert [sigma for _, sigma in answer["sigmas"]] == pytest.approx(sigmas.tolist(), rel=1e-5)
        assert answer["run"] == max(len(sigmas) - 1, 0)


def test_the_default_is_stable_diffusion(comfyui):
    answer = request(strength=0.5, steps=20, contract="diffusers", scheduler="normal")
    assert answer["model"] is None
    assert (
        answer["report"] == "diffusers: runs 10 of 20 steps, from sigma 1.48 (t = 473), 69 % of the variance is noise."
    )
    assert (answer["run"], answer["total"], len(answer["whole"])) == (10, 20, 21)
    assert answer["sigmas"][0][0] == 10.0
    assert answer["sigmas"][-1] == [20.0, 0.0]


def test_sampling_nodes_change_the_answer(small_name):
    flow = [checkpoint(small_name), after("ModelSamplingSD3", shift=3.0)]
    assert "from sigma 0.75 (t = 750)" in request(flow, strength=0.5, scheduler="simple")["report"]
    zsnr = [checkpoint(small_name), after("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True)]
    assert request(zsnr, strength=1)["sigma"] == pytest.approx(4518.76, rel=1e-3)
    edm = after("ModelSamplingContinuousEDM", sampling="edm", sigma_max=80.0, sigma_min=0.002)
    assert request([checkpoint(small_name), edm], strength=1)["sigma"] == pytest.approx(80.0)
    lora = after("LoraLoaderModelOnly", lora_name="x", strength_model=1.0)
    assert request([checkpoint(small_name), lora], strength=0.5) == request([checkpoint(small_name)], strength=0.5)


def sigma_by_hand(t: float) -> float:
    """Stable Diffusion's sigma at timestep t: betas are the squares of 1000 numbers from .00085^.5 to .012^.5, evenly
    spaced, the signal's share of the variance is the product of 1 - beta, sigma^2 is noise over signal, and between
    two timesteps log sigma is linear."""
    kept, logs = 1.0, []
    for i in range(1000):
        kept *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2
        logs.append(math.log(((1 - kept) / kept) ** 0.5))
    low = min(int(t), 998)
    return math.exp(logs[low] + (t - low) * (logs[low + 1] - logs[low]))


def test_known_chains_give_the_schedule_by_hand(small_name):
    """Sigma of strength .5 on "noise level": the one at t = 499.5, whatever passes the model on; shift 3 of a flow:
    3 * .5 / (1 + 2 * .5) = .75."""
    passing = [after("FreeU_V2"), after("LoraLoader"), after("ModelMergeSimple"), after("BespokeInjectLora")]
    by_hand = sigma_by_hand(499.5)
    assert by_hand == pytest.approx(1.6156, rel=1e-4)
    for chain in ([checkpoint(small_name)], [checkpoint(small_name), *passing]):
        answer = request(chain, strength=0.5, scheduler="simple")
        assert answer["sigma"] == pytest.approx(by_hand, rel=2e-3)
        assert answer["model"] == small_name
    shifted = [checkpoint(small_name), after("ModelSamplingSD3", shift=3.0), *passing]
    assert request(shifted, strength=0.5, scheduler="simple")["sigma"] == pytest.approx(0.75, rel=1e-6)


def test_a_chain_that_is_not_certain_is_unknown(small_name, monkeypatch):
    """No chain with a node that may do anything, or with a value that is not known, gives a schedule."""
    import nodes

    loader, shift = checkpoint(small_name), after("ModelSamplingSD3", shift=3.0)
    uncertain = {
        "another pack's loader": [{"type": "Easy Loader", "input": None, "values": {"ckpt_name": small_name}}],
        "a loader with a configuration": [{**loader, "type": "CheckpointLoader"}],
        "no loader": [shift],
        "a node that makes a model of another input": [loader, {**shift, "input": "pipe"}],
        "another pack's node": [loader, after("Context (rgthree)")],
        "another pack's node before a known one": [loader, after("AlignYourNoise"), shift],
        "core's node whose shift depends on a latent": [
            loader,
            after("ModelSamplingLTXV", max_shift=2.0, base_shift=1),
        ],
        "a shift from a wire": [loader, after("ModelSamplingSD3")],
        "a file from a wire": [{**loader, "values": {}}],
        "a scale that this model has not": [loader, after("ModelNoiseScale", noise_scale=8.0)],
        "types that are no types": [loader, {"type": 3}],
    }
    for way, chain in uncertain.items():
        assert request(chain, strength=0.5) == UNKNOWN, way
        assert request(chain[1:], strength=0.5, problem="muted") in (UNKNOWN, {"problem": "muted"}), way
    assert request([shift], strength=0.5, problem="muted") == {"problem": "muted"}
    assert request([shift], strength=0.5, problem="open") == {"problem": "open"}
    assert request([after("Any Switch"), shift], strength=0.5, problem="muted") == UNKNOWN
    with pytest.raises(InputError, match="problem is 'x'"):
        request([loader], strength=0.5, problem="x")

    class Replaced(nodes.NODE_CLASS_MAPPINGS["ModelSamplingSD3"]):  # as a pack that takes core's name
        RELATIVE_PYTHON_MODULE = "custom_nodes.other"

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "ModelSamplingSD3", Replaced)
    assert request([loader, shift], strength=0.5) == UNKNOWN


def test_passing_nodes_leave_the_noise_levels(small):
    """Each of core's passing nodes that runs with its defaults hands on the very object; none writes another."""
    import inspect

    import nodes

    model, ran = small[0], []
    before = model.get_model_object("model_sampling")
    for kind in sorted(schedule_probe.PASSING_NODES):
        node = nodes.NODE_CLASS_MAPPINGS.get(kind)
        if node is None or kind.startswith("Bespoke"):
            continue  # not in this ComfyUI; this pack's own are run by other tests
        method = getattr(node, "execute" if hasattr(node, "define_schema") else node.FUNCTION)
        assert 'model_sampling",' not in inspect.getsource(method), kind
        inputs = node.INPUT_TYPES()["required"]
        if any(
            name not in ("model", "model1", "model2") and "default" not in (spec[1] if len(spec) > 1 else {})
            for name, spec in inputs.items()
        ):
            continue  # needs a file or a choice
        values = {name: model if spec[0] == "MODEL" else spec[1]["default"] for name, spec in inputs.items()}
        try:
            out = node.execute(**values) if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)(**values)
        except Exception:  # made for another family
            continue
        (result, *_) = out.args if hasattr(out, "args") else out
        assert result.get_model_object("model_sampling") is before, kind
        ran.append(kind)
    assert len(ran) > 20, ran


@pytest.mark.parametrize("kind", ["BespokeStrengthSigmas", "BespokePartialDenoise"])
def test_a_node_sends_the_schedule_that_ran(kind, small):
    """Through the node's `ui`: a flow with shift 3 at strength .5 starts at .75 (by hand), with the values it got."""
    import nodes

    (model,) = nodes.NODE_CLASS_MAPPINGS["ModelSamplingSD3"]().patch(small[0], 3.0)
    values = dict(strength=0.5, steps=4, contract="noise level", exact_steps=False, scheduler="simple")
    more = {}
    if kind == "BespokePartialDenoise":
        conditioning = [[torch.zeros(1, 8, 768), {}]]
        latent = {"samples": torch.ones(1, 4, 8, 8)}
        more = dict(positive=conditioning, negative=conditioning, latent_image=latent, cfg=1.0, seed=0)
    out = nodes.NODE_CLASS_MAPPINGS[kind].execute(model=model, sampler_name="euler", **values, **more)
    (text,) = out.ui["bespoke_schedule"]
    sent = json.loads(text)
    assert sent["values"] == values | {"sampler_name": "euler"}
    assert sent["sigma"] == pytest.approx(0.75, rel=1e-6)
    assert sent["report"] == out.args[-2 if kind == "BespokeStrengthSigmas" else -1]


@pytest.mark.parametrize(
    ("name", "kind", "sigma_at_half"),
    [
        pytest.param("sdxl", "EPS", 1.6156, marks=pytest.mark.slow),
        pytest.param("sdxl-v", "V_PREDICTION", 1.6156, marks=pytest.mark.slow),
        ("flux-dev", "FLUX", 0.7595),
    ],
)
def test_the_prediction_type_is_detected_from_the_file(comfyui, name, kind, sigma_at_half):
    """Sparse files of the real sizes, without data."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops

    operations = {"operations": comfy.ops.disable_weight_init, "device": "meta", "dtype": torch.float16}
    if name == "flux-dev":
        folder, loader, prefix = (
            "diffusion_models",
            {"type": "UNETLoader", "input": None, "values": {"unet_name": f"{name}.safetensors"}},
            "",
        )
        shapes = comfy.ldm.flux.model.Flux(**full_size.FLUX, **operations).state_dict()
    else:
        folder, loader, prefix = "checkpoints", checkpoint(f"{name}.safetensors"), "model.diffusion_model."
        shapes = unet.UNetModel(**full_size.SDXL, **operations).state_dict()
    shapes = {prefix + key: tuple(tensor.shape) for key, tensor in shapes.items()}
    if name == "sdxl-v":
        shapes["v_pred"] = (0,)
    path = comfyui / "models" / folder / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_sparse(path, shapes)
    try:
        model, found = schedule_probe.probe_model([loader])
        assert (model.model.model_type.name, found) == (kind, path.name)
        assert request([loader], strength=0.5, scheduler="simple")["sigma"] == pytest.approx(sigma_at_half, rel=1e-4)
    finally:
        path.unlink()


def write_sparse(path, shapes) -> None:
    """Write a sparse safetensors file of 16-bit tensors, without data."""
    header, at = {}, 0
    for key, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def test_files_that_are_not_detected_are_unknown(comfyui):
    folder = comfyui / "models" / "checkpoints"
    save_file({"something": torch.zeros(3)}, folder / "route-other.safetensors")
    (folder / "route-broken.safetensors").write_bytes(b"no header")
    (folder / "route-pickle.ckpt").write_bytes(b"never opened")
    for name in (
        "route-other.safetensors",
        "route-broken.safetensors",
        "route-pickle.ckpt",
        "none.safetensors",
        "../../x.safetensors",
    ):
        assert request([checkpoint(name)], strength=0.5, scheduler="normal") == UNKNOWN


def test_a_header_is_read_without_its_weights(small_checkpoint):
    tensors, _ = read_small_tensors(small_checkpoint, schedule_probe.SMALL_TENSOR)
    large = [t for t in tensors.values() if t.numel() > schedule_probe.SMALL_TENSOR]
    assert len(large) > 100
    assert all(t.device.type == "meta" for t in large)


def test_a_request_changes_nothing_in_comfyui(small_name, small):
    before = folder_paths.get_filename_list("checkpoints")
    import comfy.model_management

    loaded = len(comfy.model_management.current_loaded_models)
    request([checkpoint(small_name)], strength=0.5)
    assert len(comfy.model_management.current_loaded_models) == loaded
    assert folder_paths.get_filename_list("checkpoints") == before


def test_long_schedules_are_thinned_and_too_long_ones_refused():
    answer = request(strength=0.1, steps=100, contract="comfy", scheduler="simple")
    assert answer["total"] == 1000
    assert len(answer["whole"]) <= MOST_POINTS + 1
    assert answer["whole"][-1] == [1000, 0.0]
    assert answer["sigmas"][0][0] == 900.0
    with pytest.raises(InputError, match="too long to draw"):
        request(strength=0.01, steps=1000, contract="comfy")


@pytest.mark.parametrize(
    "query",
    [
        {"strength": "much"},
        {"strength": "nan"},
        {"steps": "0"},
        {"steps": "2.5"},
        {"contract": "x"},
        {"scheduler": "x"},
    ],
)
def test_an_invalid_request_is_an_error(query):
    with pytest.raises((InputError, ValueError)):
        request(**query)


def test_the_route_answers_with_status_200_for_errors_too(comfyui):
    import asyncio

    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    class Server:
        routes = web.RouteTableDef()

    async def get():
        routes.register(Server)
        app = web.Application()
        app.add_routes(Server.routes)
        async with TestClient(TestServer(app)) as client:
            good = await client.get(
                "/bespoke/schedule", params={"strength": "0.5", "scheduler": "karras", "contract": "a1111"}
            )
            bad = await client.get("/bespoke/schedule", params={"strength": "2"})
            worse = await client.get("/bespoke/schedule", params={"model": "{"})
            return good.status, await good.json(), bad.status, await bad.json(), worse.status

    good, answer, bad, error, worse = asyncio.run(get())
    assert (good, bad, worse) == (200, 200, 200)
    assert answer["report"].startswith("a1111: runs 11 of 20 steps, from sigma 1.48 (t = 474), 69 %")
    assert error["error"].startswith("strength is 2.0; give a number from 0")
