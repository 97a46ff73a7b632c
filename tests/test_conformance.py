"""Every rule of what is built has a test, no other is said to be held, and the page says so."""

import re

import conformance
import pytest
from conformance import PAGE, README, Rule, faults, marks_in

from pyvirtnet.testing import FEATURES

NO_BIT = {"SUSPEND", "legacy"}
STALE = "bring it up to date: tools/conformance"


@pytest.fixture(scope="module")
def table():
    return conformance.rules()


@pytest.fixture(scope="module")
def tests():
    return conformance.marks()


def test_every_rule_of_what_is_built_has_a_test(table, tests):
    """And no test is marked with an unknown rule, or with one of a feature that is not built."""
    assert faults(table, tests, conformance.supported()) == []


def test_the_page_is_up_to_date(table, tests):
    assert PAGE.read_text() == conformance.page(table, tests, conformance.supported()), STALE


def test_the_readme_has_the_count(table):
    assert conformance.summary(table, conformance.supported()) in README.read_text(), STALE


def test_the_table_is_well_formed(table):
    names = [rule.name for rule in table]
    assert len(set(names)) == len(names)
    assert {name[:3] for name in names} == set(conformance.AREAS)
    needs = {one for rule in table for need in rule.needs.split() for one in need.split("|")}
    assert {need for need in needs if need.lower() not in FEATURES} == NO_BIT
    for rule in table:
        assert rule.strength in ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY")
        assert re.fullmatch(r"\d+(\.\d+)*( \(1\.4\))?", rule.section), rule
        assert rule.text
        assert "|" not in rule.text


def test_marks_are_read_as_pytest_reads_them(request, tests):
    """Of the tests that were collected beside this one."""
    for item in request.session.items:
        path = item.path.relative_to(conformance.TESTS)
        cls = f"{item.cls.__name__}::" if item.cls else ""
        test = f"{path}::{cls}{item.originalname}"
        for mark in item.iter_markers("rule"):
            assert mark.args, f"{test} is marked with no rule"
            assert all(test in tests.get(name, ()) for name in mark.args), test


# ---- what the checks find ------------------------------------------------------------------------

TABLE = [
    Rule("ONE-1", "MUST", "1", "", "built"),
    Rule("ONE-2", "MUST NOT", "1", "CSUM", "not built"),
    Rule("ONE-3", "SHOULD", "1", "", "built, and only a wish"),
    Rule("ONE-4", "MUST", "1", "MQ|RSS CTRL_VQ", "built with either of two, and a third"),
]
HELD = {"ONE-1": {"test_a.py::test"}}


@pytest.mark.parametrize(
    ("tests", "built", "found"),
    [
        (HELD, set(), []),
        ({}, set(), ["ONE-1 (MUST, 1) has no test: built"]),
        ({"ONE-1": {"test_model_a.py::test"}}, set(), ["ONE-1 (MUST, 1) has no test: built"]),
        (HELD, {"CSUM"}, ["ONE-2 (MUST NOT, 1) has no test: not built"]),
        (HELD | {"ONE-2": {"test_model_a.py::test"}}, set(), []),
        (HELD | {"ONE-2": {"t.py::t"}}, set(), ["ONE-2 needs CSUM, not built: t.py::t"]),
        (HELD | {"ONE-2": {"t.py::t"}}, {"CSUM"}, []),
        (HELD | {"ONE-9": {"t.py::t"}}, set(), ["ONE-9 is no rule: t.py::t"]),
        (HELD, {"MQ", "RSS"}, []),
        (HELD, {"RSS", "CTRL_VQ"},
         ["ONE-4 (MUST, 1) has no test: built with either of two, and a third"]),
    ],
)  # fmt: skip
def test_faults(tests, built, found):
    assert faults(TABLE, tests, built) == found


MODULE = """
import pytest
CASES = [pytest.param(1, marks=pytest.mark.rule("IN-LIST")), 2]
OTHERS = [pytest.param(1, marks=[pytest.mark.rule("OTHER")])]

@pytest.mark.parametrize("x", [*CASES, pytest.param(3, marks=pytest.mark.rule("IN-PLACE"))])
@pytest.mark.rule("ONE", "TWO")
def test_a(x): ...

@pytest.mark.parametrize("x", OTHERS)
def test_b(x): ...

def test_unmarked(): ...

@pytest.mark.rule("NOT-A-TEST")
def helper(): ...

@pytest.mark.rule("CLASS")
class TestC:
    @pytest.mark.rule("METHOD")
    def test_d(self): ...

    def test_e(self): ...
"""


def test_marks_of_a_module():
    assert marks_in(MODULE) == {
        "test_a": {"ONE", "TWO", "IN-LIST", "IN-PLACE"},
        "test_b": {"OTHER"},
        "TestC::test_d": {"CLASS", "METHOD"},
        "TestC::test_e": {"CLASS"},
    }
    marked = marks_in(f'{MODULE}\npytestmark = [pytest.mark.rule("ALL")]\n')
    assert marked["test_unmarked"] == {"ALL"}
    assert "ALL" in marked["TestC::test_e"]


def test_a_stale_count_is_mended():
    """Wherever the sentence stands, and however its lines are broken."""
    old = conformance.summary(TABLE, set()).replace("\n", " ").replace("each has", "each has\n")
    new = conformance.summary(TABLE, {"CSUM"})
    assert conformance.readme(f"a {old} (b) c", TABLE, {"CSUM"}) == f"a {new} (b) c"
