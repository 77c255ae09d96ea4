"""Starts ComfyUI before these tests are collected, since they import it, and holds what several of their files use."""

import inprocess
import pytest
import tiny

inprocess.start_comfyui()


@pytest.fixture(scope="module")
def sd15(comfyui):
    """(model, clip, vae) of SD1.5's classes, small, with random weights. Tests must not change them."""
    return tiny.patcher(), tiny.clip(), tiny.vae()


@pytest.fixture(scope="module")
def sdxl(comfyui):
    """(model, clip, vae) of SDXL's classes, as `sd15`."""
    return tiny.sdxl()


@pytest.fixture(scope="module")
def sd3(comfyui):
    """(model, clip, vae) of SD3's classes, as `sd15`."""
    return tiny.sd3()


@pytest.fixture(scope="module")
def flux(comfyui):
    """(model, clip, vae) of Flux's classes, as `sd15`."""
    return tiny.flux()


@pytest.fixture(scope="module", autouse=True)
def user_directory(comfyui, tmp_path_factory):
    """A user directory for each file of tests: a run of one is not gone on with by another."""
    import folder_paths

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path_factory.mktemp("user")))
    yield
    folder_paths.set_user_directory(before)


@pytest.fixture
def models(request):
    """The fixture that an indirect parameter names: `parametrize("models", ["sd15", "sdxl"], indirect=True)`."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def queue(comfyui, sd15):
    """Runs prompts on the small SD1.5. Node classes that are added for a prompt are taken away afterwards."""
    import nodes
    import prompts

    prompts.Models.models = sd15
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    yield prompts.Queue()
    nodes.NODE_CLASS_MAPPINGS.clear()
    nodes.NODE_CLASS_MAPPINGS.update(before)


@pytest.fixture
def runs(comfyui, tmp_path):
    """The folder of runs in a user directory of the test's own. It does not exist before a run is saved."""
    import folder_paths
    from bespoke.nodes.bridge.runs.store import runs_folder

    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path))
    yield runs_folder()
    folder_paths.set_user_directory(before)


@pytest.fixture
def at_step(comfyui, monkeypatch):
    """at_step(n, action, training=1): call `action` once, after step n of a training.

    training: which training from this call on, counted from 1; a new one begins where the steps go back.
    """
    from bespoke.nodes.bridge.runs.events import RunDisplay

    own = RunDisplay.step  # called for every step; the progress bar is moved at most some times a second

    def arm(step, action, training=1):
        current, last = 1, 0

        def watch(self, values):
            nonlocal current, last
            own(self, values)
            current, last = current + (values["step"] < last), values["step"]
            if current == training and last == step:
                monkeypatch.setattr(RunDisplay, "step", own)
                action()

        monkeypatch.setattr(RunDisplay, "step", watch)

    return arm
