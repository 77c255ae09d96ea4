"""Names, prompt templates and vectors of a new word."""

import pytest
import torch
from bespoke.nodes.bridge.training_model.spelling import spelling
from bespoke.nodes.textual_inversion.names import check_name
from bespoke.nodes.textual_inversion.templates import (
    NEGATIVE,
    OBJECT,
    STYLE,
    WORD,
    called_by_words,
    check_captions,
    check_taught,
    prompt_for,
)
from bespoke.nodes.textual_inversion.words import full_name, named_by, on_wire, parse_words, say_words, words_of
from bespoke.training.embedding import PseudoWord, Vocabulary, nearest_words, start_vectors
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet, TrainingImage


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


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_a_vocabulary_is_read_in_parts(monkeypatch, scale):
    """Rows, lengths, cosines and the median, by torch on the whole table times the scale."""
    monkeypatch.setattr(Vocabulary, "_ROWS", 7)
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    words, whole = Vocabulary(table, scale), table * scale
    assert torch.equal(words[[3, 40]], whole[[3, 40]])
    assert torch.allclose(words.lengths, whole.norm(dim=-1))
    assert words.median == pytest.approx(float(whole.norm(dim=-1).median()))
    vector = torch.randn(6, generator=torch.Generator().manual_seed(1))
    right = torch.nn.functional.cosine_similarity(whole, vector[None])
    assert torch.allclose(words.cosines(vector), right, atol=1e-6)
    assert nearest_words(vector, words, 3)[0][0] == int(right.argmax())


def test_several_words():
    """Each line its own start and count; what it leaves out is that of the widgets."""
    words = parse_words("cat : a cat : 4\n\n dog\nred-one : a red thing\nfish : : 2", "toy", 1)
    assert [(word.name, word.init_text, word.vectors) for word in words] == [
        ("cat", "a cat", 4),
        ("dog", "toy", 1),
        ("red-one", "a red thing", 1),
        ("fish", "toy", 2),
    ]
    assert say_words("a {cat} and a {dog}", words) == "a embedding:cat and a embedding:dog"
    assert say_words("a {word}, {cat}", words[:1]) == "a embedding:cat, embedding:cat"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat\ncat", "'cat' twice"),
        ("cat : a cat : many", "'many', which is no count of vectors"),
        ("cat : a cat : 999", "vectors of 'cat' is 999"),
        ("cat : 4", "for 4 vectors write 'cat : : 4'"),
        ("my cat\ndog", "space"),
        ("word\ndog", "for a single word"),
        ("", "empty"),
    ],
)
def test_lines_that_are_no_words_say_why(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_words(text, "toy", 1)


def test_several_words_on_the_wire_and_in_files():
    """{name: {encoder: ...}} from trained tensors, one word as it was; prefixes by hand."""
    cat, dog, word = (torch.full((1, 2), float(i)) for i in range(3))
    both = on_wire({"cat:clip_l": cat, "pets/dog:clip_l": dog})
    assert words_of(both) == {"cat": {"clip_l": cat}, "pets/dog": {"clip_l": dog}}
    assert words_of(on_wire({"clip_l": word, "clip_g": cat})) == {"": {"clip_l": word, "clip_g": cat}}
    assert [full_name(*names) for names in (("my", "cat"), ("my", "pets/dog"), ("", "cat"), ("my", ""))] == [
        "my-cat",
        "my-pets-dog",
        "cat",
        "my",
    ]
    assert named_by("my", {"cat": {"clip_l": cat}}) == {"my": {"clip_l": cat}} == named_by("my", {"clip_l": cat})
    assert list(named_by("my", both)) == ["my-cat", "my-pets/dog".replace("/", "-")]
    with pytest.raises(InputError, match="would both be called my-pets-dog"):
        named_by("my", {"pets/dog": {"clip_l": cat}, "pets-dog": {"clip_l": dog}})
    with pytest.raises(InputError, match="neither one word nor several"):
        words_of({"cat": {"clip_l": cat}, "clip_l": word})


def test_captions_of_several_words():
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8)

    def check(*captions):
        check_captions([TrainingImage(f"{i}.png", pixels, c) for i, c in enumerate(captions)], ["cat", "dog"])

    check("a {cat} here", "a {dog}", "a {cat} and a {dog}")
    for captions, reason in (
        (("a {cat}", "nothing", "a {dog}"), r"1 captions hold none of \{cat\}, \{dog\}: 1.png"),
        (("a {cat}", "two of {cat}"), r"no caption says \{dog\}"),
        (("a {cat} {word}", "a {dog}"), r"a caption says \{word\}, and name lists several words"),
    ):
        with pytest.raises(InputError, match=reason):
            check(*captions)


def test_a_negative_word_stands_behind_what_the_picture_shows():
    assert prompt_for("negative", "a blurred cat", "embedding:x", 0, 0, 0) == "a blurred cat, embedding:x"
    assert prompt_for("negative", "{word} cat", "embedding:x", 0, 0, 0) == "embedding:x cat"
    drawn = {prompt_for("negative", "", "embedding:x", 0, number, 0) for number in range(60)}
    assert drawn == {sentence.replace(WORD, "embedding:x") for sentence in NEGATIVE}
    assert all(sentence.endswith(WORD) for sentence in NEGATIVE)


class Tokenizer:
    def __init__(self, *pieces):
        self.inv_vocab = dict(enumerate(pieces))


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        # CLIP's end of a word; é is the two bytes of its UTF-8 as the characters of byte-level BPE.
        (("cat</w>", "ca", "cafÃ©</w>", "<|endoftext|>"), ["cat", "ca", "café", "<|endoftext|>"]),
        # SentencePiece, as T5, UMT5, Gemma and Llama 2 have it.
        (("▁cat", "ing", "▁", "</s>", "<0x0A>", "▁▁▁"), ["cat", "…ing", "space", "</s>", "<0x0A>", "3 spaces"]),
        # Byte-level BPE, as Qwen, Llama 3 and Mistral: a space, a line end, a part of a character.
        (
            ("Ġcat", "ing", "Ġ", "Ċ", "Ġå", "<|im_end|>", "ĠcafÃ©"),
            ["cat", "…ing", "space", "\\n", "<20 E5>", "<|im_end|>", "café"],
        ),
        (("cat", "##ing", "[CLS]"), ["cat", "…ing", "[CLS]"]),
    ],
)
def test_tokens_are_spelled_as_they_read(pieces, shown):
    """By hand from each tokenizer's own rule; a number without a piece is named."""
    tokenizer = Tokenizer(*pieces)
    assert [spelling(tokenizer, token) for token in range(len(pieces))] == shown
    assert spelling(tokenizer, 99) == "#99"


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a {cat}.", "a embedding:cat ."),
        ("the {cat}'s hat", "the embedding:cat 's hat"),
        ('a "{cat}"', 'a " embedding:cat "'),
        ("1girl,{cat},solo", "1girl, embedding:cat ,solo"),
        ("{cat}s: two", "embedding:cat s: two"),
        ("{cat}: one", "embedding:cat : one"),
        (r"a \({cat}\)", r"a \( embedding:cat \)"),
        ("a {cat}, ({cat}:1.2)", "a embedding:cat, (embedding:cat:1.2)"),
        ("({cat}) and\n{cat}", "(embedding:cat) and\nembedding:cat"),
    ],
)
def test_a_word_is_said_with_what_ComfyUI_ends_a_name_at(caption, said):
    """By `SDTokenizer.tokenize_with_weights`: a name follows white space or a bracket, and ends at white space."""
    assert say_words(caption, parse_words("cat\ndog", "toy", 1)) == said


def images_that_say(*captions):
    return [TrainingImage(f"{i}.png", torch.zeros(8, 8, 3, dtype=torch.uint8), text) for i, text in enumerate(captions)]


def test_each_word_needs_a_caption_that_is_trained_on():
    """A validation set need not say every word; a set whose pictures of one word are all held out is refused."""
    both, one = images_that_say("a {cat}", "a {dog}"), images_that_say("a {cat}")
    check_captions(one, ["cat", "dog"], all_said=False)
    with pytest.raises(InputError, match=r"no caption says \{dog\}"):
        check_captions(one, ["cat", "dog"])
    check_taught(both, ["cat", "dog"])
    with pytest.raises(InputError, match=r"every picture that says \{dog\} is held out"):
        check_taught(both[:1], ["cat", "dog"])


def test_a_picture_is_called_by_every_word_of_its_captions():
    images = ImageSet(tuple(images_that_say("a {cat} by a {dog}", "a {dog}")))
    assert [item.trigger for item in called_by_words(images, ["cat", "dog"]).items] == ["{cat}\n{dog}", "{dog}"]
    alone = ImageSet(tuple(images_that_say("a {word}")))
    assert [item.trigger for item in called_by_words(alone, []).items] == [WORD]
