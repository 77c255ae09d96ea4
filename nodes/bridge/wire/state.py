"""What is not read of a wire's objects: attributes that change while a model runs and that do not change its result."""

from __future__ import annotations

from collections.abc import Mapping

# Of `torch.nn.Module`. Parameters, buffers, children and hooks are read by themselves.
TORCH_MODULE_STATE = frozenset(
    {
        "training",
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_is_full_backward_hook",
        "_compiled_call_impl",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
    }
)
_CACHE_STATE = frozenset(
    {
        "start_t",
        "end_t",
        "relative_transformation_rate",
        "cumulative_change_rate",
        "initial_step",
        "skip_current_step",
        "first_cond_uuid",
        "x_prev_subsampled",
        "output_prev_subsampled",
        "output_prev_norm",
        "cache_diff",
        "uuid_cache_diffs",
        "uuid_cache_diffs_audio",
        "output_change_rates",
        "approx_output_change_rates",
        "total_steps_skipped",
        "state_metadata",
    }
)
_ENCODED = frozenset({"encoded_image", "encoded_image_size", "temp_data"})
# Of ComfyUI's own classes, by their qualified name.
RUNTIME_STATE: Mapping[str, frozenset[str]] = {
    # comfy.hooks: the place in the schedule, which each run begins anew.
    "HookKeyframeGroup": frozenset(
        {"_current_keyframe", "_current_used_steps", "_current_index", "_current_strength", "_curr_t"}
    ),
    "TransformerOptionsHook": frozenset({"_skip_adding"}),
    # comfy.sd1_clip: the options of the last prompt, which each prompt sets anew, and how a file is loaded.
    "SDClipModel": frozenset({"layer", "layer_idx", "return_projected_pooled", "execution_device", "can_assign_sd"}),
    # This pack's path beside the weights (nodes/lora/injection/): where it is injected now, and the present call.
    "BaseInjection": frozenset({"owner", "undo"}),
    "Region": frozenset({"latent", "text", "before", "cells", "_made"}),
    # comfy.ops: how weights are brought to the device.
    "CastWeightBiasOp": frozenset(
        {"comfy_cast_weights", "prev_comfy_cast_weights", "weight_function", "bias_function", "comfy_patched_weights"}
    ),
    # comfy.weight_adapter.bypass: where it is injected now. Its manager has the names of the layers.
    "BypassForwardHook": frozenset({"original_forward", "module"}),
    # comfy.context_windows: the place in the present run, and its model.
    "IndexListContextHandler": frozenset({"_step", "_model"}),
    # comfy_extras.nodes_flux and nodes_model_patch: what the present run has computed.
    "DiffSynthCnetPatch": _ENCODED,
    "ZImageControlPatch": _ENCODED,
    "SUPIRPatch": frozenset(
        {"cached_features", "adapter_idx", "control_idx", "current_control_idx", "active", "current_scale"}
    ),
    "WanUni3CCnetPatch": frozenset({"prepared_render", "temp_data"}),
    "KV_Attn_Input": frozenset({"cache", "set_cache"}),
    # comfy_extras.nodes_easycache: what it has measured of the present run.
    "EasyCacheHolder": _CACHE_STATE,
    "LazyCacheHolder": _CACHE_STATE,
}
