"""Captions as text: trigger words as whole words, brackets, and what becomes of them in a set."""

import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.captions.sources import FolderWords, captions_of, with_trigger
from bespoke.nodes.images.folder import FolderRequest, fingerprint, read_folder
from bespoke.nodes.images.sheet import describe
from bespoke.nodes.textual_inversion.templates import prompt_for
from bespoke.training.captions import literal, says
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage
from PIL import Image

PIXELS = torch.zeros(64, 64, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("trigger", "caption", "said"),
    [
        # Parts of other words.
        ("art", "a party hat", False),
        ("ink", "a pink cat", False),
        ("ink", "inks", False),
        ("cafe", "cafe\u0301 table", False),  # "café" with a composed accent of its own
        ("sks", "sks2 on a wall", False),
        ("style", "style_2", True),
        ("ink", "INK drawing", True),
        ("INK", "an ink drawing", True),
        ("straße", "STRASSE", True),
        ("caf\u00e9", "a cafe\u0301 table", True),
        # Edges of a caption, punctuation, several words.
        ("art", "art", True),
        ("art", "a cat, art.", True),
        ("art", "modern-art (oil)", True),
        ("sks dog", "a photo of sks  dog running", True),
        ("sks dog", "a photo of sks dogs", False),
        ("sks dog", "sks, dog", False),
        ("my_style", "a my_style house", True),
        ("my_style", "a my style house", False),
        ("style", "a my_style house", True),
        ("[V]", "a photo of [V] dog", True),
        ("<sks>", "a<sks>b", True),
        ("c++", "C++ code", True),
        (":3", "a face :3, happy", True),
        (":3", "at 12:35", False),
        ("saber (fate)", r"1girl, saber \(fate\)", True),
        (r"saber \(fate\)", "1girl, saber (fate)", True),
        ("saber (fate)", "saber (fate/zero)", False),
        # The first occurrence is part of a word, the second is not.
        ("art", "party art", True),
        # Scripts without spaces, and particles that are written onto a word.
        ("猫", "黒猫が座っている", True),
        ("ミク", "初音ミクの絵", True),
        ("고양이", "고양이는 앉아 있다", True),
        ("แมว", "รูปแมวดำ", True),
        ("ohwx", "ohwx猫", True),
        ("ohwx", "xohwx猫", False),
        ("кот", "чёрный Кот", True),
        ("кот", "который", False),
        ("", "anything", False),
    ],
)
def test_a_caption_says_whole_words_in_any_case(trigger, caption, said):
    """By hand: what a reader calls a word of the caption."""
    assert says(caption, trigger) is said


def test_the_trigger_is_put_first_once():
    assert with_trigger("a party hat", "art") == "art, a party hat"
    assert with_trigger("INK drawing", "ink") == "INK drawing"
    assert with_trigger("", "ink") == "ink"
    assert with_trigger("a cat", "") == "a cat"


def test_both_sets_add_the_trigger_alike(tmp_path):
    captions = ["a party hat", "Art of a cat", "a cat"]
    right = ["art, a party hat", "Art of a cat", "art, a cat"]
    for i, caption in enumerate(captions):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    folder = read_folder(FolderRequest(tmp_path, trigger="art"))
    batch = image_set(torch.rand(3, 64, 64, 3), "\n".join(captions), "art")
    assert [item.caption for item in folder.items] == right
    assert [item.caption for item in batch.items] == right


@pytest.mark.parametrize(
    ("template", "right"),
    [
        ("a photo of {name}", "sks, a photo of a red wall"),  # as for the captions of files
        ("a photo of {trigger}", "a photo of sks"),
        ("{trigger}, {name}", "sks, a red wall"),
        ("{trigger}es on a table", "skses on a table"),  # the user has placed it
        ("one SKS on a table", "one SKS on a table"),
        ("", "sks"),
    ],
)
def test_a_template_says_the_trigger(tmp_path, template, right):
    assert captions_of(tmp_path / "a_red-wall.png", "template", template, FolderWords("sks")) == ((right,), False)


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a red circle", "a red circle"),
        ("saber (fate)", r"saber \(fate\)"),
        (r"saber \(fate\)", r"saber \(fate\)"),  # as people write it for prompts: not escaped twice
        (r"saber \(fate), :)", r"saber \(fate\), :\)"),
        (r"C:\art", r"C:\art"),
        ("(red:1.4)", r"\(red:1.4\)"),
        ("((", r"\(\("),
        # Names of embeddings end at spaces only: brackets around them are set apart, their own are kept.
        ("a photo of embedding:my-cat", "a photo of embedding:my-cat"),
        ("a photo (embedding:my-cat)", r"a photo \( embedding:my-cat \)"),
        ("(a photo of embedding:my-cat), red", r"\(a photo of embedding:my-cat \), red"),
        ("a embedding:cat(2), red", r"a embedding:cat\(2\), red"),
        # So does the word of textual inversion.
        ("a {word}, red", "a {word}, red"),
        ("({word}) {word}.", r"\( {word} \) {word} ."),
        ("the-{word}'s hat", "the- {word} 's hat"),
    ],
)
def test_a_literal_caption_as_a_prompt(caption, prompt):
    """By hand from the prompt parser's rule: a backslash makes the bracket after it text."""
    assert literal(caption) == prompt
    assert literal(prompt) == prompt


def test_a_set_is_identified_by_what_the_text_encoder_reads():
    """Captions without brackets keep their number; a literal caption with brackets is another than the prompt."""

    def number(caption, syntax):
        return fingerprint([TrainingImage("a", PIXELS, caption, caption_syntax=syntax)])

    assert number("a red circle", "literal") == number("a red circle", "prompt")
    assert number("saber (fate)", "literal") != number("saber (fate)", "prompt")
    assert number("saber (fate)", "literal") == number(r"saber \(fate\)", "prompt")
    # The number of version 0.1, which hashed the caption as it was written: SHA-256 of shape, caption and size, then
    # the pixels.
    import hashlib

    text = "(64, 64, 3)\0saber (fate)\0None(0, 0)"
    assert number("saber (fate)", "prompt") == hashlib.sha256(text.encode() + bytes(64 * 64 * 3)).hexdigest()


def test_reports_name_captions_with_a_choice(tmp_path):
    """sd-scripts draws one of {red|blue} with enable_wildcard and else takes it as text, as it is taken here: whoever
    trained with that option has to know.
    """
    captions = ["a {red|blue} hat", "a {word}, a {b} | c", "a hat"]
    for i, caption in enumerate(captions):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    images = read_folder(FolderRequest(tmp_path))
    assert [item.caption for item in images.items] == captions
    assert "Captions with a choice such as {red|blue}, which is read as text and not drawn from: 0.png." in (
        describe(images)
    )
    (tmp_path / "0.txt").write_text("a hat")
    assert "choice" not in describe(read_folder(FolderRequest(tmp_path)))


def test_reports_count_captions_with_brackets(tmp_path):
    for i, caption in enumerate(["saber (fate)", "a (red:1.4) circle", "a circle", r"saber \(fate\)"]):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    text = describe(read_folder(FolderRequest(tmp_path, flip=True, repeats=2)))
    assert "3 of 4 captions hold brackets, which are read as text. 1 of them with a number, as in (red:1.4): if" in text
    text = describe(read_folder(FolderRequest(tmp_path, caption_syntax="prompt")))
    assert "2 of 4 captions hold brackets, which are read as emphasis" in text
    text = describe(read_folder(FolderRequest(tmp_path, captions="template", template="a circle")))
    assert "brackets" not in text
    text = describe(image_set(torch.rand(1, 64, 64, 3), "a circle", "saber (fate)"))
    assert r"Trigger word: saber (fate). In prompts write saber \(fate\)." in text


def test_the_word_of_textual_inversion_stands_in_brackets():
    item = TrainingImage("a", PIXELS, "a drawing ({word}), saber (fate)")
    prompt = prompt_for("captions", item.prompt, "embedding:w", 0, 0, 0)
    assert prompt == r"a drawing \( embedding:w \), saber \(fate\)"


def test_the_place_of_a_trigger_is_filled_on_a_wire_as_in_a_file(tmp_path):
    """Core's loaders hand on the texts of ai-toolkit's files with [trigger] in them. Oracle: Image Folder on them."""
    for name, text in (("a", "a [trigger] cat, [trigger]"), ("b", "plain"), ("c", "x [trigger]\ny")):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    texts = [(tmp_path / f"{name}.txt").read_text() for name in "abc"]
    for trigger in ("zor", ""):
        files = read_folder(FolderRequest(tmp_path, trigger=trigger, resolution=64))
        wired = image_set([torch.zeros(1, 64, 64, 3)] * 3, texts, trigger)
        assert [item.caption for item in wired.items] == [item.caption for item in files.items]


def test_the_text_of_one_picture_is_one_caption():
    """As the text of each of several is: captioners write paragraphs. By hand."""
    (item,) = image_set([torch.zeros(1, 64, 64, 3)], ["A cat.\n\nIt sits.\n"], "zor").items
    assert item.caption == "zor, A cat. It sits."


def test_an_unknown_syntax_is_refused(tmp_path):
    with pytest.raises(InputError, match="caption_syntax is 'tags'; choose one of literal, prompt"):
        FolderRequest(tmp_path, caption_syntax="tags")
    with pytest.raises(InputError, match="caption_syntax is 'tags'"):
        image_set(torch.rand(1, 64, 64, 3), "", caption_syntax="tags")
