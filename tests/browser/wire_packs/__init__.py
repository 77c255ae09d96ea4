"""Stand-ins for nodes of other packs that carry models and numbers in ways that the page cannot follow.

A pack for the tests of the strength dial. Each node does what its kind does in the packs: a pipe, a context, a switch,
a loader, a node that changes the noise levels, arithmetic. `web/` has the nodes that exist in the page only.
"""

import folder_paths
import nodes


class AnyType(str):
    """A type that every other fits."""

    def __ne__(self, other):
        return False


ANY = AnyType("*")


class Node:
    CATEGORY = "wire packs"
    FUNCTION = "run"


def shifted(model):
    """The model as a flow with shift 3."""
    return nodes.NODE_CLASS_MAPPINGS["ModelSamplingSD3"]().patch(model, 3.0)[0]


class Loader(Node):
    """A loader that sets the noise levels too."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": (folder_paths.get_filename_list("checkpoints"),)}}

    def run(self, ckpt_name):
        model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(ckpt_name)
        return shifted(model), clip, vae


class Shift(Node):
    """A node that changes the noise levels in its own way."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "amount": ("FLOAT", {"default": 1.0})}}

    def run(self, model, amount):
        return (shifted(model),)


class ToPipe(Node):
    RETURN_TYPES = ("BASIC_PIPE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}, "optional": {"clip": ("CLIP",)}}

    def run(self, model, clip=None):
        return ((model, clip),)


class FromPipe(Node):
    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"basic_pipe": ("BASIC_PIPE",)}}

    def run(self, basic_pipe):
        return basic_pipe


class Context(Node):
    """A bundle whose own model input goes before the bundle's."""

    RETURN_TYPES = ("RGTHREE_CONTEXT", "MODEL", "INT")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "optional": {"base_ctx": ("RGTHREE_CONTEXT",), "model": ("MODEL",), "steps": ("INT", {"forceInput": True})}
        }

    def run(self, base_ctx=None, model=None, steps=None):
        base = base_ctx or (None, None)
        context = (base[0] if model is None else model, base[1] if steps is None else steps)
        return context, *context


class Switch(Node):
    """The first of the inputs that is there."""

    RETURN_TYPES = (ANY,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"optional": {"any_01": (ANY,), "any_02": (ANY,)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def run(self, any_01=None, any_02=None):
        return (any_02 if any_01 is None else any_01,)


class Sum(Node):
    """Arithmetic, whose first widget is not its result."""

    RETURN_TYPES = ("INT", "FLOAT")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"a": ("FLOAT", {"default": 0.0, "step": 0.01}), "b": ("FLOAT", {"default": 0.0, "step": 0.01})}
        }

    def run(self, a, b):
        return int(a + b), a + b


class Everywhere(Node):
    """Its input goes to every open input of the type; the page links them when it makes the prompt."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"optional": {"anything": (ANY,)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def run(self, anything=None):
        return ()


NODE_CLASS_MAPPINGS = {
    "WireLoader": Loader,
    "WireShift": Shift,
    "ToBasicPipe": ToPipe,
    "FromBasicPipe": FromPipe,
    "Context (rgthree)": Context,
    "Any Switch (rgthree)": Switch,
    "WireSum": Sum,
    "Anything Everywhere": Everywhere,
}
WEB_DIRECTORY = "web"
