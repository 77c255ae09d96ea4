"""Sample prompts, one a line, with kohya's options. The oracle is kohya's help of --sample_prompts: --n is the negative
prompt, --w and --h the size, --d the seed, --l the guidance scale, --s the steps."""

import pytest
from bespoke.training.errors import InputError
from bespoke.training.sample_prompts import MOST_PROMPTS, SamplePrompt, parse_sample_prompts, prompt_alone, texts_of


def test_a_line_without_options_is_the_prompt_as_it_was():
    for text in ("", "a red car", "a -- b", "(a:1.2) #1, 5--8 --", "well--known", "a\tb -w 5", "-- n x"):
        assert parse_sample_prompts(f"  {text} ") == [SamplePrompt(text.strip())]


def test_lines_are_prompts_and_options_follow_them():
    text = "a car --n blurry, low quality --w 768 --h 512 --d 42\n\n  a cat --l 5.5 --s 30\n--d 18446744073709551615 "
    text += "--n x"
    assert parse_sample_prompts(text) == [
        SamplePrompt("a car", "blurry, low quality", 768, 512, 42),
        SamplePrompt("a cat", cfg=5.5, steps=30),
        SamplePrompt("", "x", seed=2**64 - 1),
    ]


def test_lines_end_where_the_page_ends_them():
    """A text box has line feeds, a text over the API may have others; U+2028 and a form feed stand within a prompt."""
    found = parse_sample_prompts("a\r\n\r\nb --d 1\rc\u2028d\x0ce\n \t\n")
    assert found == [SamplePrompt("a"), SamplePrompt("b", seed=1), SamplePrompt("c\u2028d\x0ce")]


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("a car --w 512 --x", "a car"),
        ("--n blurry", ""),
        ("a\t--d 5", "a"),
        ("a --ss euler", "a"),
        ("a --x --d 5", "a --x"),
        ("well--known -- n", "well--known -- n"),
        ("{a|b} --s 3", "{a|b}"),
    ],
)
def test_a_prompt_without_its_options(line, prompt):
    assert prompt_alone(line) == prompt


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --ar 3:2", "line 2 of sample_prompt has --ar, which is not read: known are --n, --w, --h, --d, --l, --s"),
        ("a --ss euler", "the sampler is that of this graph's KSampler; take it out"),
        ("a --w 500", "has --w 500, which is no multiple of 8; write 496"),
        ("a --w 60", "has --w 60; write a whole number from 64 to 2048"),
        ("a --h 4096", "has --h 4096; write a whole number from 64 to 2048"),
        ("a --h 5.5", "has --h 5.5; write a whole number"),
        ("a --w", "has --w ; write a whole number"),
        ("a --n --w 512", "has --n without a text"),
        ("a --d -1", "has --d -1; write a whole number from 0 to 18446744073709551615"),
        ("a --d 18446744073709551616", "write a whole number from 0"),
        ("a --s 0", "has --s 0; write a whole number from 1 to 200"),
        ("a --l nan", "has --l nan; write a number from 0 to 100"),
        ("a --l 100.5", "has --l 100.5; write a number from 0 to 100"),
        ("a --d 1 --d 2", "has --d twice; take one out"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line_and_the_mend(line, message):
    with pytest.raises(InputError, match="line 2 of sample_prompt") as caught:
        parse_sample_prompts(f"a car\n{line}")
    assert message in str(caught.value)


def test_the_number_of_prompts_is_bounded():
    lines = [f"prompt {i}" for i in range(MOST_PROMPTS + 1)]
    assert len(parse_sample_prompts("\n".join(lines[:-1]))) == MOST_PROMPTS
    with pytest.raises(InputError, match=f"has {MOST_PROMPTS + 1} lines.*give {MOST_PROMPTS} at most"):
        parse_sample_prompts("\n".join(lines))
    with pytest.raises(InputError, match="sample_prompt is 5; give a text"):
        parse_sample_prompts(5)


def test_every_text_is_encoded_once():
    prompts = [SamplePrompt("a"), SamplePrompt("", "a"), SamplePrompt("b", "")]
    assert texts_of(prompts, "own") == ["a", "", "own", "b"]
