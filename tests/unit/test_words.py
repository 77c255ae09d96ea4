"""Names, prompt templates and vectors of a new word."""

import pytest
import torch
from bespoke.nodes.textual_inversion.names import check_name
from bespoke.nodes.textual_inversion.templates import OBJECT, STYLE, WORD, check_captions, prompt_for
from bespoke.training.embedding import PseudoWord, nearest_words, start_vectors
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage


@pytest.mark.parametrize("name", ["my-cat", "cat2", "Katze_3", "sub/cat", "v1.5cat", "日本"])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("my cat", "space"),
        ("123", "weight"),
        ("1.5", "weight"),
        ("1e5", "weight"),
        ("nan", "weight"),
        ("x.", "punctuation"),
        ("x-", "punctuation"),
        ("a(b", "[(]"),
        ("a:b", ":"),
        ("<x", "<"),
        ("x[1]", "[[]"),
        ("a,b", ","),
        ("../x", "out of"),
        ("/x", "out of"),
        ("a/../../x", "out of"),
        ("x.pt", "ending"),
    ],
)
def test_bad_names_say_why(name, reason):
    with pytest.raises(InputError, match=reason):
        check_name(name)


def test_templates_hold_the_word_once_and_never_before_punctuation():
    for sentence in OBJECT + STYLE:
        assert sentence.count(WORD) == 1
        after = sentence.split(WORD)[1]
        assert after == "" or after[0] == " "


def test_captions_need_the_word():
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8)
    check_captions([TrainingImage("a", pixels, "a {word} here")])
    with pytest.raises(InputError, match="b.png"):
        check_captions([TrainingImage("a", pixels, "a {word} here"), TrainingImage("b.png", pixels, "nothing")])
    assert prompt_for("captions", "a {word} here", "embedding:x", 0, 0, 0) == "a embedding:x here"


def test_sentences_vary_and_repeat_with_the_seed():
    first = [prompt_for("object", "", "w", 1, micro, 0) for micro in range(100)]
    assert first == [prompt_for("object", "", "w", 1, micro, 0) for micro in range(100)]
    assert len(set(first)) > 8


def test_start_vectors():
    table = torch.randn(50, 6)
    assert torch.equal(start_vectors(table, [3, 4], 3, "words", 0), table[[3, 4, 3]])
    assert torch.allclose(start_vectors(table, [3, 4], 2, "average", 0), table[[3, 4]].mean(0).expand(2, -1))
    noise = start_vectors(table, [], 2, "noise", 0)
    assert torch.allclose(noise.norm(dim=-1), table.norm(dim=-1).median().expand(2))
    with pytest.raises(InputError, match="init_text"):
        start_vectors(table, [], 1, "words", 0)


def test_norm_limit_only_shortens():
    word = PseudoWord({"clip_l": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}, {"clip_l": 2.0}, torch.device("cpu"))
    word.after_step()
    assert word.vectors["clip_l"].norm(dim=-1).tolist() == pytest.approx([2.0, 0.5])


def test_nearest_words():
    table = torch.eye(4)
    assert nearest_words(torch.tensor([0.0, 1.0, 0.5, 0.0]), table, 2) == [
        (1, pytest.approx(0.894, abs=1e-3)),
        (2, pytest.approx(0.447, abs=1e-3)),
    ]
