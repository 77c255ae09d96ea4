"""JSON that was made to break its reader."""

import pytest
from bespoke.training.formats import trigger_words
from bespoke.training.plain_json import read_json


def test_deeply_nested_json_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json("[" * 100_000)
    with pytest.raises(ValueError, match="Expecting"):
        read_json("[1,")
    assert read_json('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    "broken", ["[" * 100_000, '{"a": {"b": Infinity}}', '{"a": {"b": NaN}}', "[]", "7", '{"a": 7}']
)
def test_no_trigger_words_of_broken_metadata(broken):
    assert trigger_words({"ss_tag_frequency": broken}) == ""
