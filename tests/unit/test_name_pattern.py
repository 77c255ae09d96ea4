"""Patterns of a file's metadata: as Python's `re` matches them, in linear time."""

import random
import re
import time

import pytest
from bespoke.nodes.lora.name_pattern import MOST_DEPTH, NamePattern, PatternError


def random_pattern(draw, depth=0):
    pick = draw.random()
    if depth > 3 or pick < 0.4:
        return draw.choice(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", "1", "_"])
    if pick < 0.6:
        return random_pattern(draw, depth + 1) + random_pattern(draw, depth + 1)
    if pick < 0.75:
        return f"({random_pattern(draw, depth + 1)}|{random_pattern(draw, depth + 1)})"
    if pick < 0.9:
        times = draw.choice(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{,2}", "*?"])
        return f"(?:{random_pattern(draw, depth + 1)}){times}"
    return random_pattern(draw, depth + 1) + "$" if pick < 0.95 else "^" + random_pattern(draw, depth + 1)


def test_patterns_match_as_pefts_rule_does():
    """The oracle is PEFT 0.21's rule by Python's `re`: `re.match(rf"(.*\\.)?({key})$", name)`."""
    draw = random.Random(0)
    matched = 0
    for _ in range(1500):
        key = random_pattern(draw)
        pattern = NamePattern(key)
        for _ in range(6):
            name = "".join(draw.choice("ab.1_") for _ in range(draw.randrange(8)))
            expected = re.match(rf"(.*\.)?({key})$", name) is not None
            matched += expected
            assert pattern.matches(name) == expected, (key, name)
    assert matched > 500


@pytest.mark.parametrize(
    "key",
    ["(", "a)|(b", "*a", "a**", "a++", "(?=a)", "(?P<x>a)", "[a", r"\1", "a{3000}", "a{99999}", "((a{100}){100})"],
)
def test_what_is_not_read(key):
    with pytest.raises(PatternError):
        NamePattern(key)


def test_hostile_patterns_take_linear_time():
    """`(a+)+b` on 40 letters would keep Python's `re` busy for hours."""
    before = time.perf_counter()
    assert not NamePattern("(a+)+b").matches("a" * 2000)
    assert not NamePattern("(a|a)*" * 20 + "b").matches("a" * 500)
    with pytest.raises(PatternError, match="nested"):
        NamePattern("(" * (MOST_DEPTH + 1) + "a" + ")" * (MOST_DEPTH + 1))
    with pytest.raises(PatternError, match="nested"):
        NamePattern("(" * 100_000)
    assert time.perf_counter() - before < 5
