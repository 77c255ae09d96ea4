"""Models whose output is known by a formula, inside ComfyUI's own BaseModel, ModelSampling and ModelPatcher.

`wrap(denoise, kind)` returns a ModelPatcher that samples like any other. Its network gets the model's scaled input and
timestep and returns epsilon, v or velocity such that ComfyUI's denoised latent is `denoise(y, s)` with y = latent + s *
noise. For flow, x = (1 - sigma) latent + sigma noise, so y = x / (1 - sigma) and s = sigma / (1 - sigma).
"""

from __future__ import annotations

import torch

KINDS = ("epsilon", "v", "flow")


class AnalyticNetwork(torch.nn.Module):
    """A network that counts its `calls` and, with `keep_inputs`, keeps (sigma, x) of each call in `inputs`."""

    dtype = torch.float32

    def __init__(self, denoise, kind: str):
        super().__init__()
        self.denoise, self.kind = denoise, kind
        self.calls, self.keep_inputs, self.inputs = 0, False, []

    def forward(self, xc, t, context=None, control=None, transformer_options=None, **others):
        self.calls += 1
        sigma = transformer_options["sigmas"]
        sigma = sigma.repeat(xc.shape[0] // sigma.shape[0]).reshape(-1, *[1] * (xc.ndim - 1))
        if self.kind == "flow":
            x = xc
            signal = (1.0 - sigma).clamp(min=1e-6)
            clean = self.denoise(x / signal, sigma / signal)
        else:
            x = xc * (sigma**2 + 1.0) ** 0.5
            clean = self.denoise(x, sigma)
        if self.keep_inputs:
            self.inputs.append((float(sigma.flatten()[0]), x.clone()))
        if self.kind == "v":
            return (x / (sigma**2 + 1.0) - clean) * (sigma**2 + 1.0) ** 0.5 / sigma
        return (x - clean) / sigma


def wrap(denoise, kind: str = "epsilon", latent_format=None, base=None):
    """A ModelPatcher of an analytic model. `.model.diffusion_model` is the `AnalyticNetwork`."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    types = comfy.model_base.ModelType
    config_class = comfy.supported_models.SD3 if kind == "flow" else comfy.supported_models.SD15
    config = config_class({"disable_unet_model_creation": True, "in_channels": 4})
    config.latent_format = latent_format or comfy.latent_formats.SD15()
    kind_type = {"epsilon": types.EPS, "v": types.V_PREDICTION, "flow": types.FLOW}[kind]
    model = (base or comfy.model_base.BaseModel)(config, kind_type, device=torch.device("cpu"))
    model.diffusion_model = AnalyticNetwork(denoise, kind)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def conditioning():
    return [[torch.zeros(1, 1, 1), {}]]


class Field:
    """Gaussian random fields on a torus of `rows` x `columns` cells with a power spectrum; variance 1 in each cell.

    spectrum: "white", "pink" (k^-1), "natural" (k^-2, as photographs), "steep" (k^-3) or "blobs" (a Gaussian bump of
    correlation length 4 cells, no fine detail at all).
    """

    def __init__(self, rows: int, columns: int, spectrum: str):
        ky, kx = torch.fft.fftfreq(rows)[:, None], torch.fft.fftfreq(columns)[None]
        k = (ky**2 + kx**2).sqrt()
        low = 1.0 / max(rows, columns)
        power = {
            "white": torch.ones_like(k),
            "pink": 1.0 / k.clamp(min=low),
            "natural": 1.0 / k.clamp(min=low) ** 2,
            "steep": 1.0 / k.clamp(min=low) ** 3,
            "blobs": torch.exp(-((2 * torch.pi * k * 4.0) ** 2) / 2) + 1e-6,
        }[spectrum]
        self.power = power / power.mean()  # [rows, columns], so that a cell's variance is 1

    def sample(self, batch: int, channels: int, seed: int) -> torch.Tensor:
        noise = torch.randn(batch, channels, *self.power.shape, generator=torch.Generator().manual_seed(seed))
        return torch.fft.ifft2(torch.fft.fft2(noise) * self.power.sqrt()).real

    def denoise(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The exact posterior mean of the field given y = field + sigma * white noise (the Wiener filter)."""
        gain = self.power / (self.power + sigma.double() ** 2)
        return torch.fft.ifft2(torch.fft.fft2(y.double()) * gain).real.float()
