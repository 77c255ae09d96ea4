"""Patterns with `*`."""

import random
import re

import pytest
from bespoke.training.errors import InputError
from bespoke.training.layer_names.glob import MAX_PATTERN, check_pattern, glob_matches


def test_2000_patterns_match_as_an_expression_does():
    """Against `re`, with `.*` for each star."""
    draw, matches = random.Random(0), 0
    for _ in range(2000):
        text = "".join(draw.choices("ab.", k=draw.randrange(8)))
        pattern = "".join(draw.choices("ab.*", k=draw.randrange(6)))
        expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text) is not None
        assert glob_matches(pattern, text) == expected, (pattern, text)
        matches += expected
    assert matches > 100


def test_2000_stars_come_to_an_end():
    """An expression with as many `.*` would not."""
    text = "a" * 3000
    assert glob_matches("*a" * 2000, text)
    assert not glob_matches("*a" * 2000 + "x", text)


def test_a_longer_text_of_patterns_is_refused():
    check_pattern("blocks", "x" * MAX_PATTERN)
    with pytest.raises(InputError, match=r"blocks has 10,001 characters; write at most 10,000"):
        check_pattern("blocks", "x" * (MAX_PATTERN + 1))
