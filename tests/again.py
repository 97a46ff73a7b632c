"""Tests of one module once more in another, which has its own way to make ports."""

from types import FunctionType

import pytest

# What is about the words of a plain split ring, about completion that IN_ORDER forbids, or about
# one format in itself
OF_ONE_FORMAT = {
    "test_waiting_is_woken_by_the_interrupt",
    "test_transmitting_asks_for_no_interrupt",
    "test_indices_wrap",
    "test_random_merges",
    "test_impossible_tx_bursts",
    "test_indices_wrap_under_shuffled_completion",
    "test_chains_complete_in_any_order",
    "test_a_chain_that_finds_no_room_is_not_taken_in_part",
    "test_what_a_frame_may_be",
    "test_one_bad_frame_and_nothing_is_sent",
    "test_mtu",
}


def again(test):
    """The same test for this module: the rules it is marked with are held where it stands."""
    copy = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__)
    marks = (mark for mark in getattr(test, "pytestmark", ()) if mark.name != "rule")
    copy.pytestmark = [_fewer(mark) for mark in marks]
    return copy


def _fewer(mark):
    """Two random lives in each format are enough: there are many formats."""
    if mark.name == "parametrize" and mark.args[0] == "seed":
        return pytest.mark.parametrize("seed", mark.args[1][:2]).mark
    return mark
