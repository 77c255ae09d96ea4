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
from bespoke.training.errors import InputError
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def nodes_loaded(comfyui):
    """Core's ModelSampling nodes are registered."""


def request(chain=(), **query):
    return routes.answer_to({**{k: str(v) for k, v in query.items()}, "model": json.dumps(list(chain))})


def checkpoint(name):
    return {"type": "CheckpointLoaderSimple", "values": {"ckpt_name": name}}


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
    flow = [checkpoint(small_name), {"type": "ModelSamplingSD3", "values": {"shift": 3.0}}]
    assert "from sigma 0.75 (t = 750)" in request(flow, strength=0.5, scheduler="simple")["report"]
    zsnr = [
        checkpoint(small_name),
        {"type": "ModelSamplingDiscrete", "values": {"sampling": "v_prediction", "zsnr": True}},
    ]
    assert request(zsnr, strength=1)["sigma"] == pytest.approx(4518.76, rel=1e-3)
    edm = [{"type": "ModelSamplingContinuousEDM", "values": {"sampling": "edm", "sigma_max": 80.0, "sigma_min": 0.002}}]
    assert request(edm, strength=1)["sigma"] == pytest.approx(80.0)
    unknown = [
        checkpoint(small_name),
        {"type": "LoraLoaderModelOnly", "values": {"lora_name": "x", "strength_model": 1.0}},
    ]
    assert request(unknown, strength=0.5) == request([checkpoint(small_name)], strength=0.5)


@pytest.mark.parametrize(
    ("name", "kind", "sigma_at_half"),
    [("sdxl", "EPS", 1.6156), ("sdxl-v", "V_PREDICTION", 1.6156), ("flux-dev", "FLUX", 0.7595)],
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
            {"type": "UNETLoader", "values": {"unet_name": f"{name}.safetensors"}},
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


def test_unknown_files_give_the_default(comfyui):
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
        answer = request([checkpoint(name)], strength=0.5, scheduler="normal")
        assert answer["model"] is None
        assert answer["report"].startswith("noise level: runs 11 of 20 steps, from sigma 1.62")


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
    assert len(answer["whole"]) <= routes.MOST_POINTS + 1
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
