"""Models that cannot be trained on pictures and prompts, and that no class of the host is untried."""

import host_coverage
import host_films
import pytest
import torch
from bespoke.nodes.bridge.models import check_trainable, refused
from bespoke.training.errors import InputError


def classes():
    import comfy.model_base

    return vars(comfy.model_base)


@pytest.mark.parametrize("name", list(refused.REASONS))
def test_a_class_is_refused_by_name(comfyui, name):
    """Without its network, which therefore nothing reads: the refusal comes before anything is encoded."""
    kind = classes().get(name)
    if kind is None:
        pytest.skip(f"this ComfyUI has no {name}")
    below = [one for one in classes().values() if isinstance(one, type) and issubclass(one, kind)]
    assert below
    for one in below:
        base = torch.nn.Module.__new__(one)
        with pytest.raises(InputError, match=rf"\({one.__name__}\) cannot be trained here: it "):
            check_trainable(base)


@pytest.mark.parametrize("name", ["CosmosVideo", "CosmosPredict2", "CogVideoX", "WAN21"])
def test_image_to_video_is_refused_where_one_class_is_both(comfyui, name):
    base = torch.nn.Module.__new__(classes()[name])
    torch.nn.Module.__init__(base)
    base.image_to_video = True
    with pytest.raises(InputError, match="it continues a picture that it is given"):
        check_trainable(base)


@pytest.mark.parametrize("name", [name for name, row in host_films.ROWS.items() if row.reason])
def test_a_row_with_a_reason_is_refused_with_it(comfyui, name):
    """By its channels: core gives these the class of Wan's text to video."""
    if host_films.config_class(name) is None:
        pytest.skip("not in this ComfyUI")
    with pytest.raises(InputError, match=host_films.ROWS[name].reason):
        check_trainable(host_films.made(name)[0].model)


def test_a_row_without_a_reason_is_not_refused(comfyui):
    for name, row in host_films.ROWS.items():
        if not row.reason and host_films.config_class(name) is not None:
            assert refused.reason_against(host_films.made(name)[0].model) == "", name


def test_every_reason_says_what_to_do_instead():
    for name, reason in refused.REASONS.items():
        assert "; train" in reason or "; wire" in reason or "; to train" in reason, name
        assert not reason.endswith("."), name  # it is the end of a message


def test_no_class_of_the_host_is_untried(comfyui, capsys):
    """The oracle is ComfyUI's own list of the classes that it loads."""
    table = host_coverage.table()
    with capsys.disabled():
        print(host_coverage.report(table))
    assert not [config for config, row in table.items() if not row.names and not row.reason]
