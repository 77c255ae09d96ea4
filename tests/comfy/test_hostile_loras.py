"""Damaged and malicious LoRA files: a clear error for each, no crash, no code is run, the model does not change."""

import json
import logging
import os
import pickle
import struct

import mutate
import pytest
import safetensors.torch
import tiny
import torch
from helpers import weights_hash

FEW, MANY = 250, 10_000
AT = "diffusion_model.input_blocks.1.1.transformer_blocks.0."


@pytest.fixture(scope="module")
def model(comfyui):
    return tiny.patcher()


@pytest.fixture(scope="module")
def clip(comfyui):
    return tiny.clip()


@pytest.fixture(scope="module")
def folder(comfyui):
    path = comfyui / "models" / "loras" / "hostile"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def unchanged(model, clip):
    """unchanged(): asserts that the model and the text encoder have not changed."""
    base, text = tiny.predict(model), tiny.encode(clip)  # this also loads them without patches
    before = [weights_hash(m) for m in (model.model, clip.cond_stage_model)]

    def check():
        assert torch.equal(tiny.predict(model), base)
        assert torch.equal(tiny.encode(clip), text)
        assert [weights_hash(m) for m in (model.model, clip.cond_stage_model)] == before
        assert not model.patches
        assert not model.injections

    return check


def good():
    """A small file with every kind of adapter."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    w, c = tiny.WIDTH, tiny.CONTEXT
    return {
        f"{AT}attn1.to_q.lora_up.weight": randn(w, 2),
        f"{AT}attn1.to_q.lora_down.weight": randn(2, w),
        f"{AT}attn1.to_q.alpha": torch.tensor(1.0),
        f"{AT}attn2.to_k.lora_up.weight": randn(w, 2),
        f"{AT}attn2.to_k.lora_down.weight": randn(2, c),
        f"{AT}attn2.to_k.dora_scale": 1 + randn(w, 1),
        f"{AT}attn2.to_v.hada_w1_a": randn(w, 2),
        f"{AT}attn2.to_v.hada_w1_b": randn(2, c),
        f"{AT}attn2.to_v.hada_w2_a": randn(w, 2),
        f"{AT}attn2.to_v.hada_w2_b": randn(2, c),
        f"{AT}attn2.to_q.lokr_w1": randn(4, 4),
        f"{AT}attn2.to_q.lokr_w2_a": randn(w // 4, 2),
        f"{AT}attn2.to_q.lokr_w2_b": randn(2, w // 4),
        f"{AT}attn2.to_out.0.oft_blocks": randn(4, w // 4, w // 4),
        f"{AT}attn2.to_out.0.rescale": 1 + randn(w, 1),
        f"{AT}attn1.to_v.diff": randn(w, w),
        f"{AT}attn1.to_out.0.diff": randn(w, w),
        f"{AT}attn1.to_out.0.diff_b": randn(w),
        "diffusion_model.input_blocks.2.0.in_layers.2.lora_up.weight": randn(w, 2, 1, 1),
        "diffusion_model.input_blocks.2.0.in_layers.2.lora_down.weight": randn(2, w, 3, 3),
        "diffusion_model.input_blocks.1.0.in_layers.2.lora_up.weight": randn(w, 2, 1, 1),
        "diffusion_model.input_blocks.1.0.in_layers.2.lora_down.weight": randn(2, w, 1, 1),
        "diffusion_model.input_blocks.1.0.in_layers.2.lora_mid.weight": randn(2, 2, 3, 3),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": randn(c, 2),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": randn(2, c),
        f"{AT}ff.net.2.a1.weight": randn(4 * w, 2),
        f"{AT}ff.net.2.a2.weight": randn(2, 4 * w),
        f"{AT}ff.net.2.b1.weight": randn(w, 2),
        f"{AT}ff.net.2.b2.weight": randn(2, 4 * w),
    }


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write(path, header, body=b"", text=None):
    path.write_bytes(mutate.join(header, body, text))


def hostile_files(folder, canary):
    """{file: words of the error}."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    up, down = f"{AT}attn1.to_q.lora_up.weight", f"{AT}attn1.to_q.lora_down.weight"
    fine = safetensors.torch.save(good())
    for name in ("pickle.pt", "pickle.ckpt", "pickle.bin", "pickle.safetensors"):
        (folder / name).write_bytes(pickle.dumps({"a": Canary(canary)}))
    torch.save({"a": Canary(canary)}, folder / "zip.safetensors")
    with (folder / "header.safetensors").open("wb") as file:  # a header of 100 MB, in a sparse file
        file.write(struct.pack("<Q", 100_000_000) + b"{")
        file.truncate(100_000_100)
    (folder / "says-more.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "short.safetensors").write_bytes(b"\x08")
    write(folder / "no-tensor.safetensors", {"__metadata__": {"a": "b"}})
    write(folder / "overlap.safetensors", {up: entry, down: {**entry, "data_offsets": [8, 24]}}, bytes(24))
    write(folder / "same-bytes.safetensors", {up: entry, down: entry}, bytes(16))
    write(
        folder / "beyond.safetensors", {up: {**entry, "data_offsets": [0, 2**40], "shape": [2**19, 2**19]}}, bytes(16)
    )
    write(folder / "backwards.safetensors", {up: {**entry, "data_offsets": [16, 0]}}, bytes(16))
    write(folder / "huge-shape.safetensors", {up: {**entry, "shape": [2**62, 2**62]}}, bytes(16))
    write(folder / "nested.safetensors", {}, text="[" * 100_000)
    (folder / "cut.safetensors").write_bytes(fine[:-100])
    files = dict.fromkeys(
        ("pickle.pt", "pickle.ckpt", "pickle.bin"), "can run code when it is opened; only .safetensors"
    )
    files |= dict.fromkeys(
        ("header.safetensors", "says-more.safetensors", "pickle.safetensors", "zip.safetensors", "short.safetensors"),
        "damaged or no LoRA",
    )
    files |= dict.fromkeys(
        ("empty", "overlap", "same-bytes", "beyond", "backwards", "huge-shape", "nested", "cut"), "cannot be read"
    )
    files["no-tensor"] = "holds no tensor"

    def save(name, words, **changes):
        changed = good() | {key.replace("__", "."): value for key, value in changes.items()}
        safetensors.torch.save_file(
            {key: tensor.contiguous() for key, tensor in changed.items() if tensor is not None},
            folder / f"{name}.safetensors",
        )
        files[name] = words

    def put(name, words, **parts):
        save(name, words, **{AT + key.replace("__", "."): value for key, value in parts.items()})

    put("nan", "numbers that are not finite", attn1__to_q__lora_up__weight=torch.full((tiny.WIDTH, 2), float("nan")))
    put("inf", "numbers that are not finite", attn1__to_q__alpha=torch.tensor(float("inf")))
    put(
        "half-inf",
        "numbers that are not finite",
        attn1__to_v__diff=torch.full((tiny.WIDTH, tiny.WIDTH), float("inf")).half(),
    )
    put("no-down", "has .lora_up.weight and no .lora_down.weight", attn1__to_q__lora_down__weight=None)
    put("ranks", "do not fit", attn1__to_q__lora_up__weight=torch.ones(tiny.WIDTH, 3))
    put("narrow", "wire in the base it was trained on", attn1__to_q__lora_down__weight=torch.ones(2, 5))
    put("tall", "wire in the base it was trained on", attn1__to_q__lora_up__weight=torch.ones(3, 2))
    put("diff", "wire in the base it was trained on", attn1__to_v__diff=torch.ones(3, 2))
    put("bias", "wire in the base it was trained on", attn1__to_out__0__diff_b=torch.ones(3))
    put("dora", "wire in the base it was trained on", attn2__to_k__dora_scale=torch.ones(5, 1))
    put("loha", "damaged", attn2__to_v__hada_w2_b=torch.ones(5, tiny.CONTEXT))
    put("lokr", "wire in the base it was trained on", attn2__to_q__lokr_w1=torch.ones(3, 3))
    put("lokr-deep", "cannot be put together", attn2__to_q__lokr_w2_b=torch.ones(2, tiny.WIDTH // 4, 1))
    put(
        "boft-deep",  # more stages than rows that could be mixed
        "cannot be put together",
        attn2__to_out__0__oft_blocks=torch.zeros(9, 4, tiny.WIDTH // 4, tiny.WIDTH // 4),
    )
    put("reshape", "cannot be put together", attn1__to_q__reshape_weight=torch.ones(2, 2))
    put("enormous", "cannot be put together", attn1__to_q__reshape_weight=torch.tensor([2**20, 2**20]))
    put("oft", "wire in the base it was trained on", attn2__to_out__0__oft_blocks=torch.ones(3, 3, 3))
    put("alpha", "alpha of shape", attn1__to_q__alpha=torch.ones(3))
    put("nothing", "shape (0, 2)", attn1__to_q__lora_up__weight=torch.ones(0, 2))
    return {name if "." in name else f"{name}.safetensors": words for name, words in files.items()}


def test_every_hostile_file_is_refused_by_name(run_node, model, clip, folder, unchanged, tmp_path, comfyui):
    canary, wrong = tmp_path / "ran", []
    for name, words in hostile_files(folder, canary).items():
        with pytest.raises(ValueError, match="^Bespoke Inject LoRA: ") as error:
            run_node("BespokeInjectLora", model=model, clip=clip, lora_name=f"hostile/{name}", strength_model=1.0)
        if words not in str(error.value) or name.split(".")[0] not in str(error.value):
            wrong.append((name, words, str(error.value)))
    assert not wrong
    assert not canary.exists()
    for name in ("../../secret.safetensors", "/etc/passwd", "hostile"):
        with pytest.raises(ValueError, match="^Bespoke Inject LoRA: "):
            run_node("BespokeInjectLora", model=model, lora_name=name, strength_model=1.0)
    unchanged()


def test_the_unmutated_file_works(run_node, model, clip, folder, unchanged, caplog):
    """The file that is mutated works, so the mutations are refused for what they change."""
    safetensors.torch.save_file(good(), folder / "good.safetensors")
    base = tiny.predict(model)
    for mode in ("merge", "bypass"):
        moved, new_clip, report, *_ = run_node(
            "BespokeInjectLora",
            model=model,
            clip=clip,
            lora_name="hostile/good.safetensors",
            strength_model=1.0,
            mode=mode,
        )
        assert float((tiny.predict(moved) - base).abs().max()) > 1e-3
        assert not torch.equal(tiny.encode(new_clip), tiny.encode(clip))
        assert "matched nothing" not in report
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    unchanged()


def test_a_lora_may_widen_its_layer(run_node, model, folder, unchanged):
    """As LoRAs that add an input to a model: core enlarges the weight to the size in the file."""
    w = tiny.WIDTH
    lora = {
        f"{AT}attn1.to_q.lora_up.weight": torch.ones(w, 2),
        f"{AT}attn1.to_q.lora_down.weight": torch.ones(2, 2 * w),
        f"{AT}attn1.to_q.reshape_weight": torch.tensor([w, 2 * w]),
    }
    safetensors.torch.save_file(lora, folder / "wide.safetensors")
    wide, *_ = run_node("BespokeInjectLora", model=model, lora_name="hostile/wide.safetensors", strength_model=1.0)
    (key,) = wide.patches
    assert tuple(wide.patch_weight_to_device(key, return_weight=True).shape) == (w, 2 * w)
    unchanged()


def attempt(seed, run_node, node, title, **inputs):
    """A node's outputs, or None where it refuses the file with an error that names the node."""
    try:
        return run_node(node, **inputs)
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"{title}: "), (seed, message)
    return None


def fuzz(seeds, run_node, model, clip, folder, caplog, thorough):
    """(number of files that the loader took, number that it refused)."""
    whole = safetensors.torch.save(good())
    name, path = "hostile/mutated.safetensors", folder / "mutated.safetensors"
    taken, wrong = 0, []
    for seed in seeds:
        path.write_bytes(mutate.mutated(whole, seed))
        caplog.clear()
        inputs = {
            "model": model,
            "clip": clip,
            "lora_name": name,
            "strength_model": 1.0,
            "mode": ("merge", "bypass")[seed % 2],
        }
        out = attempt(seed, run_node, "BespokeInjectLora", "Bespoke Inject LoRA", **inputs)
        if out is None:
            continue
        taken += 1
        # An accepted file has to work: core's adapters only log an error where shapes do not fit.
        run_outputs = thorough or seed % 4 == 0
        if run_outputs:
            tiny.predict(out[0])
            tiny.encode(out[1])
        logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or "MISMATCH" in r.getMessage()]
        wrong += [(seed, "taken", *logged)] if logged else []
        if not run_outputs:
            continue
        run_node("BespokeInspectLora", lora_name=name, model=model)
        lora, *_ = run_node("BespokeLoadLora", lora_name=name)
        attempt(
            seed,
            run_node,
            "BespokeComposeLoras",
            "Bespoke Compose LoRAs",
            loras={"lora0": lora, "lora1": lora},
            rank=seed % 3,
        )
    assert not wrong
    return taken, len(seeds) - taken


def test_mutated_files(run_node, model, clip, folder, unchanged, caplog):
    taken, refused = fuzz(range(FEW), run_node, model, clip, folder, caplog, thorough=False)
    assert min(taken, refused) > FEW // 10
    unchanged()


@pytest.mark.slow
def test_ten_thousand_mutated_files(run_node, model, clip, folder, unchanged, caplog):
    taken, refused = fuzz(range(FEW, FEW + MANY), run_node, model, clip, folder, caplog, thorough=True)
    print(f"\n{MANY} mutated files: {refused} refused with an error, {taken} taken and run")
    assert min(taken, refused) > MANY // 10
    unchanged()


def test_mutations_differ(folder):
    whole = safetensors.torch.save(good())
    files = {mutate.mutated(whole, seed) for seed in range(300)}
    assert len(files) > 250
    assert mutate.mutated(whole, 7) == mutate.mutated(whole, 7)
    header, body = mutate.split(whole)
    assert mutate.split(mutate.join(header, body)) == (header, body)
    assert json.loads(json.dumps(header)) == header
