"""Caption variants: what is a tag, what stays, and how often each order and each tag comes.

The oracle is arithmetic: k free tags have k! orders, all equally likely; a tag that is left out with probability p is
there in 1 - p of the draws, independently of the others.
"""

import itertools
import json
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from bespoke.nodes.images.folder import fingerprint, mirrored
from bespoke.nodes.images.variants.variants import VariantsRequest, replacements, with_variants
from bespoke.training.caption_variants import (
    CaptionVariants,
    fixed_variants,
    parts_of,
    plain_tag,
    split_tags,
    variants_of,
    vary,
)
from bespoke.training.captions import LITERAL, PROMPT, has_weights
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet, prompts_of
from bespoke.training.distributed import World
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet, TrainingImage
from bespoke.training.randomness import generator
from bespoke.training.record import tag_frequency
from bespoke.training.timesteps import UniformTimesteps
from bespoke.training.validation import validation_batches

CPU = torch.device("cpu")
LIVE = CaptionVariants(count=0)


def draws(text, rule, count, trigger="", syntax=LITERAL):
    return [vary(text, rule, trigger, syntax, generator(1, number)) for number in range(count)]


def chi_square(counts, expected):
    assert sum(counts.values()) == pytest.approx(sum(expected.values()))
    assert set(counts) <= set(expected)
    return sum((counts[key] - of) ** 2 / of for key, of in expected.items())


# --- tags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "separator", "syntax", "tags"),
    [
        ("sks, red hat,blue coat ,, ", ",", LITERAL, ["sks", "red hat", "blue coat"]),
        ("", ",", LITERAL, []),
        (
            "saber (fate), a cat (small, grey), sitting",
            ",",
            LITERAL,
            ["saber (fate)", "a cat (small, grey)", "sitting"],
        ),
        (r"saber \(fate, stay\), red", ",", LITERAL, [r"saber \(fate, stay\)", "red"]),
        ("(red hat, (blue coat:1.2):0.9), sky", ",", PROMPT, ["(red hat, (blue coat:1.2):0.9)", "sky"]),
        (r"(red, a\), b:1.1), sky", ",", PROMPT, [r"(red, a\), b:1.1)", "sky"]),
        ("[red, blue], {a, b}", ",", PROMPT, ["[red, blue]", "{a, b}"]),
        (":(, red, :)", ",", LITERAL, [":(", "red", ":)"]),
        (r"\(^o^)/, red", ",", LITERAL, [r"\(^o^)/", "red"]),
        ("(red, blue", ",", PROMPT, ["(red", "blue"]),
        ("A cat sits. It is grey, and old. Rain.", ". ", LITERAL, ["A cat sits", "It is grey, and old", "Rain"]),
        ("red\nblue, green\n", "\n", LITERAL, ["red", "blue, green"]),
        ("red | blue", "|", LITERAL, ["red", "blue"]),
    ],
)
def test_tags_by_hand(text, separator, syntax, tags):
    assert split_tags(text, separator, syntax) == tags


@pytest.mark.parametrize(
    ("separator", "text"), [(";", "a; b; c"), (". ", "a. b. c"), ("\n", "a\nb\nc"), ("|", "a| b| c")]
)
def test_tags_are_joined_by_their_own_separator(separator, text):
    """kohya's sd-scripts wrote ", " whatever the separator was (its issue 1304)."""
    rule = CaptionVariants(separator, keep_first=0)
    assert sorted(variants_of(text, rule, "", LITERAL)) == sorted(
        rule.join(order) for order in itertools.permutations("abc")
    )


# --- distribution ---------------------------------------------------------------------------------------------------


def test_every_order_of_the_free_tags_is_equally_likely():
    """Of 5 tags 2 stay; the other 3 have 6 orders. Chi-square of 5 degrees of freedom is below 20.5 in 999 of 1000."""
    counts = Counter(draws("sks, a, b, c, d", replace(LIVE, keep_first=2), 6000))
    expected = {", ".join(("sks", "a", *order)): 1000 for order in itertools.permutations("bcd")}
    value = chi_square(counts, expected)
    print(f"\n6 orders, 6000 draws: chi-square {value:.1f}")
    assert value < 20.5


def test_each_tag_is_left_out_by_itself_with_the_probability():
    """Of 3 tags that may go, each subset S is left with p^(3 - |S|) (1 - p)^|S|: 8 subsets, 7 degrees of freedom."""
    rule = CaptionVariants(shuffle=False, keep_first=1, drop_tags=0.3, keep_tags=("K_x",), count=0)
    counts = Counter(draws("sks, a, k X, b, c", rule, 8000))
    expected = {}
    for number in range(4):
        for left in itertools.combinations("abc", number):
            tags = [tag for tag in ("sks", "a", "k X", "b", "c") if tag in ("sks", "k X", *left)]
            expected[", ".join(tags)] = 8000 * 0.7**number * 0.3 ** (3 - number)
    value = chi_square(counts, expected)
    print(f"\n8 subsets, 8000 draws: chi-square {value:.1f}")
    assert value < 24.3  # 999 of 1000


@pytest.mark.parametrize("shuffle", [True, False])
def test_only_what_is_kept_is_left_at_the_probability_one(shuffle):
    rule = CaptionVariants(shuffle=shuffle, keep_first=1, drop_tags=1.0, keep_tags=("red hat",), count=0)
    assert set(draws("sks, a, (Red_Hat:1.2), b", rule, 20, "sks", PROMPT)) == {"sks, (Red_Hat:1.2)"}


# --- the trigger ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_first", [0, 1, 2])
@pytest.mark.parametrize(
    ("text", "trigger", "start"),
    [
        ("sks, a, b, c", "sks", "sks"),
        ("a photo of SKS dog, a, b, c", "sks", "a photo of SKS dog"),
        ("sks, the first, a, b, c", "sks, the first", "sks, the first"),
        ("a {word} here, a, b, c", "", "a {word} here"),
    ],
)
def test_the_trigger_stays_first_and_is_never_left_out(text, trigger, start, keep_first):
    rule = CaptionVariants(keep_first=keep_first, drop_tags=0.9, count=0)
    made = draws(text, rule, 200, trigger)
    assert all(variant == start or variant.startswith(f"{start}, ") for variant in made)
    if keep_first < 2:
        assert start in made


def test_no_tag_that_says_the_trigger_is_left_out():
    rule = CaptionVariants(shuffle=False, drop_tags=1.0, count=0)
    assert set(draws("sks, a, a sks dog, b", rule, 10, "sks")) == {"sks, a sks dog"}


def test_a_trigger_further_back_comes_before_the_shuffled_tags():
    rule = CaptionVariants(keep_first=1, drop_tags=0.5, count=0)
    assert all(variant.startswith("a, sks") for variant in draws("a, b, sks, c", rule, 100, "sks"))
    made = variants_of("a, b, sks, c", replace(rule, drop_tags=0.0, count=8), "sks", LITERAL)
    assert made[0] == "a, b, sks, c"  # as it was written
    assert set(made[1:]) == {"a, sks, b, c", "a, sks, c, b"}


# --- sentences and empty captions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "free", "sentence"),
    [
        ("sks, a girl in a red hat, standing in a field.", [], "a girl in a red hat, standing in a field."),
        (
            "sks, red hat, sky. She stands in a field, looking away.",
            ["red hat", "sky"],
            "She stands in a field, looking away.",
        ),
        ("sks, red hat, sky. she stands in a field, away.", ["red hat"], "sky. she stands in a field, away."),
        ("sks, dr. stone, red hat", ["dr. stone", "red hat"], ""),
        ("sks, red hat, smiling.", ["red hat", "smiling."], ""),
        ("sks, a girl in a red hat, sky", ["a girl in a red hat", "sky"], ""),
    ],
)
def test_sentences_are_kept_whole(text, free, sentence):
    parts = parts_of(text, CaptionVariants(), "sks", LITERAL)
    assert parts.head == ("sks",)
    assert (list(parts.free), parts.sentence) == (free, sentence)
    made = draws(text, replace(LIVE, drop_tags=0.5), 50, "sks")
    assert all(variant.endswith(sentence) for variant in made)


def test_tags_before_sentences_end_as_they_did():
    """Two tags before a sentence have two orders, of which one is the caption itself."""
    made = variants_of("sks, hat, sky. She stands in a field, alone.", CaptionVariants(), "sks", LITERAL)
    assert made == (
        "sks, hat, sky. She stands in a field, alone.",
        "sks, sky, hat. She stands in a field, alone.",
    )


def test_sentences_are_shuffled_where_they_are_the_tags():
    rule = CaptionVariants(". ", keep_first=0)
    made = variants_of("A cat sits. It is grey, and old.", rule, "", LITERAL)
    assert made == ("A cat sits. It is grey, and old.", "It is grey, and old. A cat sits")


def test_an_empty_caption_has_one_variant():
    assert variants_of("", CaptionVariants(drop_tags=0.5), "", LITERAL) == ("",)
    assert set(draws("", LIVE, 5)) == {""}


# --- fixed variants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "different"),
    [("sks, a, b", 8, 2), ("sks, a,b", 8, 2), ("sks, a, b, c", 8, 6), ("sks, a, b, c, d", 8, 8), ("sks, a", 8, 1),
     ("sks, a, a, b", 8, 3), ("sks, a, b, c", 1, 1), ("sks, a, b, c, d", 24, 24)],
)  # fmt: skip
def test_fixed_variants_are_different_and_the_first_is_the_caption(text, count, different):
    """2 tags have 2 orders, 3 have 6, 4 have 24; a, a, b have 3."""
    made = variants_of(text, CaptionVariants(count=count), "sks", LITERAL)
    assert made[0] == text
    assert len(made) == len(set(made)) == different


def test_variants_with_tags_left_out_are_that_many_draws():
    """Draws may be equal: without the repeats, what is rarely left out would be left out more often."""
    rule = CaptionVariants(shuffle=False, drop_tags=0.25, count=64)
    made = [variant for number in range(200) for variant in variants_of(f"s{number}, a, b", rule, "", LITERAL)[1:]]
    assert len(made) == 200 * 63
    share = sum("a" in variant.split(", ") for variant in made) / len(made)
    print(f"\na tag that is left out with 0.25 is in {share:.4f} of {len(made)} variants")
    assert share == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / len(made)) ** 0.5)


def test_every_caption_of_a_picture_is_drawn_equally_often():
    """One caption has 2 orders, one 6, one 24 of which there are 8, one is a word: each has lcm(2, 6, 8) entries."""
    made = Counter(fixed_variants(["a, b", "c, d, e", "f", "g, h, i, j"], CaptionVariants(keep_first=0), "", LITERAL))
    expected = {"a, b": 12, "b, a": 12, "f": 24} | {", ".join(o): 4 for o in itertools.permutations("cde")}
    others = {text: number for text, number in made.items() if text not in expected}
    assert made == expected | others
    assert sorted(others.values()) == [3] * 8


# --- a training set -------------------------------------------------------------------------------------------------


def picture(name, caption, **more):
    return TrainingImage(name, torch.zeros(64, 64, 3, dtype=torch.uint8), caption, **more)


def image_set(*items):
    return ImageSet(items, fingerprint=fingerprint(items))


def drawn(items, config, steps, positions=None):
    """[(index, prompt)] of the samples of some steps."""
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * len(items), [None] * len(items), [item.weight for item in items])
    out = []
    for micro in steps:
        batch = data.batch(config, micro, CPU, UniformTimesteps(), sample_positions=positions)
        out += zip(batch.indices, prompts_of(batch, items), strict=True)
    return out


CONFIG = TrainConfig(steps=48, learning_rate=1e-3, seed=3, batch_size=4, caption_dropout=0.3)


def test_a_training_takes_the_variants_by_turns_and_validation_the_caption():
    one = picture("1.png", "sks, a, b, c, d", trigger="sks", variants=CaptionVariants())
    images = [one, picture("2.png", "sks, e", trigger="sks", variants=CaptionVariants()), mirrored(one)]
    said = Counter(drawn(images, replace(CONFIG, batch_size=3), range(64)))
    assert {said[0, text] for text in one.texts} == {8}  # 64 draws of each picture, 8 variants
    assert {said[2, text] for text in one.texts} == {8}  # the mirrored copy has the same variants
    assert said[1, "sks, e"] == 64
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * 3, [None] * 3)
    held_out = validation_batches(data, [0, 1], CPU)
    assert [set(prompts_of(batch, images)) for batch in held_out] == [{"sks, a, b, c, d"}, {"sks, e"}]


@pytest.mark.parametrize("count", [0, 8])
def test_draws_are_a_function_of_seed_step_and_position(count):
    """From step 20 on alone, as a resumed run, and in two processes: the same prompts."""
    rule = CaptionVariants(drop_tags=0.2, count=count)
    images = [picture(f"{n}.png", f"sks, a{n}, b, c, d", trigger="sks", variants=rule) for n in range(5)]
    whole = drawn(images, CONFIG, range(48))
    assert drawn(images, CONFIG, range(20, 48)) == whole[80:]
    shares = [World(rank, 2).share(4) for rank in range(2)]
    parts = [drawn(images, CONFIG, range(48), share) for share in shares]
    assert [one for step in range(48) for part in parts for one in part[2 * step : 2 * step + 2]] == whole
    assert drawn(images, replace(CONFIG, seed=4), range(48)) != whole
    different = {prompt for index, prompt in whole if index == 0}
    assert len(different) > 20 if count == 0 else len(different) <= 8


def test_a_dropped_caption_stays_dropped():
    images = [picture("1.png", "sks, a, b", variants=LIVE)]
    data = LatentSet([torch.zeros(1, 4, 8, 8)], [None])
    dropped = [i for m in range(100) for i in data.batch(CONFIG, m, CPU, UniformTimesteps()).caption_indices]
    assert 0.2 < dropped.count(-1) / len(dropped) < 0.4
    assert len(prompts_of(data.batch(CONFIG, 0, CPU, UniformTimesteps()), images)) == 4


def test_the_number_of_encoded_prompts_is_known():
    """12 pictures with 8 variants, each mirrored and repeated: 96 prompts, not 384. Tags count once a picture."""
    items = [picture(f"{n}.png", f"sks, a{n}, b, c, d", trigger="sks") for n in range(12)]
    images = image_set(*(copy for item in items * 2 for copy in (item, mirrored(item))))
    out, preview = with_variants(images, VariantsRequest())
    assert len({prompt for item in out.items for prompt in item.prompts}) == 96
    assert "12 pictures with 12 different captions: 96 prompts to encode" in preview
    assert tag_frequency(c for item in out.items for c in item.captions)["b"] == len(out.items)


# --- the node's work ------------------------------------------------------------------------------------------------


def test_captions_are_edited_and_what_is_added_stays_in_its_place():
    images = image_set(
        picture("1.png", "sks, red_hat, cat, catalogue, sky", trigger="sks"), picture("2.png", "", trigger="sks")
    )
    request = VariantsRequest(
        prepend="photo, sharp", append="8k", replace='cat -> dog\n\n"_" -> " "\nSky ->', keep_first=2
    )
    out, preview = with_variants(images, request)
    assert [item.caption for item in out.items] == [
        "sks, photo, sharp, red hat, dog, catalogue, 8k",
        "photo, sharp, 8k",
    ]
    assert set(out.items[0].texts) == {
        "sks, photo, sharp, red hat, dog, catalogue, 8k",
        "sks, photo, sharp, red hat, catalogue, dog, 8k",
    }
    assert out.items[1].texts == ("photo, sharp, 8k",)
    assert "Nothing to vary: 2.png" in preview
    assert "  2. sks, photo, sharp, red hat, catalogue, dog, 8k" in preview


def test_what_is_prepended_comes_behind_the_word_that_is_learned():
    out, _ = with_variants(image_set(picture("1.png", "a {word}, b, c")), VariantsRequest(prepend="p", keep_first=0))
    assert set(out.items[0].texts) == {"a {word}, p, b, c", "a {word}, p, c, b"}


def test_each_of_several_captions_has_its_variants():
    images = image_set(picture("1.png", "a, b", more_captions=("c, d, e", "f")))
    out, _ = with_variants(images, VariantsRequest(keep_first=0, variants=6))
    assert out.items[0].captions == ("a, b", "c, d, e", "f")
    assert len(set(out.items[0].prompts)) == 2 + 6 + 1


def test_the_fingerprint_changes_with_what_is_drawn_and_with_nothing_else():
    images = image_set(picture("1.png", "sks, a, b, c"))
    same, _ = with_variants(images, VariantsRequest(shuffle=False))
    assert same.fingerprint == images.fingerprint == fingerprint(same.items)
    assert with_variants(images, VariantsRequest(variants=1))[0].fingerprint == images.fingerprint
    requests = [
        VariantsRequest(), VariantsRequest(variants=0), VariantsRequest(drop_tags=0.1), VariantsRequest(keep_first=2),
        VariantsRequest(append="x"), VariantsRequest(variants=0, drop_tags=0.1),
    ]  # fmt: skip
    prints = [with_variants(images, request)[0].fingerprint for request in requests]
    assert len({*prints, images.fingerprint}) == len(requests) + 1


def test_a_second_node_edits_and_only_one_varies():
    images = image_set(picture("1.png", "sks, a, b", trigger="sks"))
    once, _ = with_variants(images, VariantsRequest(append="x", prepend="p"))
    kept, _ = with_variants(image_set(picture("1.png", "sks, red hat, b")), VariantsRequest(keep_tags="red hat"))
    kept, _ = with_variants(kept, VariantsRequest(shuffle=False, replace="red hat -> cap"))
    assert "cap" in kept.items[0].variants.keep_tags
    twice, _ = with_variants(once, VariantsRequest(shuffle=False, append="y", prepend="q", replace="x -> z"))
    assert set(twice.items[0].texts) == {"sks, q, p, a, b, z, y", "sks, q, p, b, a, z, y"}
    with pytest.raises(InputError, match=r"'1.png' comes from another Caption.*shuffle off and drop_tags 0"):
        with_variants(once, VariantsRequest())
    with pytest.raises(InputError, match=r"separator is ';', and that of the Caption Variants node before is ','"):
        with_variants(once, VariantsRequest(shuffle=False, separator=";"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(separator=""), "separator is empty; give what stands"),
        (dict(keep_first=-1), "keep_first is -1; give a whole number from 0"),
        (dict(variants=65), "variants is 65; give a whole number from 0 to 64"),
        (dict(variants=True), "variants is True"),
        (dict(drop_tags=1.5), "drop_tags is 1.5; give a probability from 0 to 1"),
        (dict(drop_tags=float("nan")), "drop_tags is nan"),
        (dict(replace="a -> b\nno arrow\n -> c"), r"line 2 is 'no arrow'; line 3 is '-> c'"),
        (dict(replace="sks -> cat"), "replace takes the trigger 'sks' out of the caption 'sks, a, b' of '1.png'"),
    ],
)
def test_wrong_input_is_named(settings, text):
    with pytest.raises(InputError, match=text):
        with_variants(image_set(picture("1.png", "sks, a, b", trigger="sks")), VariantsRequest(**settings))


def test_what_does_nothing_is_named():
    images = image_set(picture("1.png", "sks, red hat, a, b", trigger="sks"), picture("2.png", "one line of prose"))
    _, preview = with_variants(images, VariantsRequest(keep_tags="Red_Hat, blu hat", replace="dog -> cat\na -> c"))
    assert "Replaced nothing: dog -> cat; no caption holds it." in preview
    assert "In keep_tags but no tag of any caption: blu hat." in preview
    assert "Nothing to vary: 2.png" in preview
    assert "Fewer than 8 different variants: 1.png" in preview
    assert "They are not varied" in with_variants(images, VariantsRequest(variants=1))[1]
    assert "A new variant is made at each draw" in with_variants(images, VariantsRequest(variants=0))[1]


def test_replacements_by_hand():
    assert replacements('a -> b\n"_"->" "\n\n1girl ->\na -> b -> c') == [
        ("a", "b"), ("_", " "), ("1girl", ""), ("a", "b -> c"),
    ]  # fmt: skip


def test_a_literal_caption_is_varied_before_its_brackets_are_escaped():
    item = picture("1.png", "sks, saber (fate), a", trigger="sks", variants=CaptionVariants())
    assert set(item.prompts) == {r"sks, saber \(fate\), a", r"sks, a, saber \(fate\)"}
    assert json.loads(json.dumps(item.prompts)) == list(item.prompts)


def test_a_caption_of_100_kb_is_split_in_seconds():
    """Brackets of any number and order: the time is in proportion to the length, not to its square (20 s and more)."""
    begin = time.monotonic()
    assert split_tags("(a), " * 20_000, ",", PROMPT) == ["(a)"] * 20_000
    for brackets in ("(" * 50_000 + "]" * 50_000, "([" * 25_000 + ")]" * 25_000, "(, " * 33_000):
        assert "".join(split_tags(brackets, ",", PROMPT)) == brackets.replace(",", "").replace(" ", "")
    assert plain_tag("(" * 100_000 + "A") == "(" * 100_000 + "a"
    assert plain_tag(f"(a:{'1' * 50_000}.)") == f"a:{'1' * 50_000}."
    assert not has_weights("(:" + "1" * 100_000)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("weighted", "is_one"),
    [
        ("(a:1)", True),
        ("(a:-.5)", True),
        ("(a: 1.25 )", True),
        ("(a:1.)", False),
        ("(a:.)", False),
        ("(a:1.2.3)", False),
    ],
)
def test_what_is_a_weight(weighted, is_one):
    """A number as kohya's and ComfyUI's prompts have it."""
    assert has_weights(weighted) is is_one
    assert (plain_tag(weighted) == "a") is is_one


def test_of_several_triggers_none_is_left_out():
    """One a line, as the words of a caption are: each is in every draw, the free tags in none."""
    rule = replace(LIVE, shuffle=True, drop_tags=1.0)
    text, draw = "{cat}, a, {dog}, b", generator(0, "several")
    assert {vary(text, rule, "{cat}\n{dog}", LITERAL, draw) for _ in range(20)} == {"{cat}, {dog}"}
