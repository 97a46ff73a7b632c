"""The tests that docs/safety.md names exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/safety.md"


def named():
    """(file, test) of each reference; one without a file has that of the one before."""
    file = ""
    for name, test in re.findall(r"`(test_\w+\.py)?::(test_\w+)`", PAGE.read_text()):
        file = name or file
        yield file, test


def test_every_test_that_is_named_is_there():
    assert len(set(named())) > 40
    for file, test in named():
        assert f"def {test}(" in (TESTS / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("number", range(1, 13))
def test_each_of_the_twelve_has_its_row(number):
    (row,) = re.findall(rf"^\| C{number} \|.*$", PAGE.read_text(), re.MULTILINE)
    assert "::test_" in row
