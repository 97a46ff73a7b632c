"""Features offered and wanted become features negotiated, by pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtnet import Feature, FeatureMissing
from pyvirtnet import negotiate as module
from pyvirtnet.negotiate import (
    ON_REQUEST,
    REQUIRES,
    REQUIRES_ONE,
    SUPPORTED,
    negotiate,
    parse,
    to_bits,
)
from pyvirtnet.testing import FEATURES

V1 = 1 << Feature.VERSION_1
ALL = (1 << 64) - 1
WANTED = SUPPORTED - ON_REQUEST
some_features = st.frozensets(st.sampled_from(sorted(Feature)))


def test_both_sides_have_to_have_a_feature():
    wanted = frozenset({Feature.VERSION_1, Feature.MAC, Feature.MTU})
    features = negotiate(to_bits({Feature.VERSION_1, Feature.MAC, Feature.CSUM}), wanted)
    assert features.offered == {Feature.VERSION_1, Feature.MAC, Feature.CSUM}
    assert features.wanted == wanted
    assert features.negotiated == {Feature.VERSION_1, Feature.MAC}
    assert features.bits == to_bits(features.negotiated)


@pytest.mark.rule("BAS-007", "BAS-009", "BAS-010", "BAS-013", "RSV-001")
@given(st.integers(0, ALL), some_features)
def test_what_is_negotiated(offered, wanted):
    wanted |= {Feature.VERSION_1}
    features = negotiate(offered | V1, wanted)
    assert features.offered_bits == offered | V1
    assert features.offered == {feature for feature in Feature if (offered | V1) >> feature & 1}
    assert features.negotiated <= features.offered & wanted
    assert Feature.VERSION_1 in features.negotiated
    assert features.bits & ~(offered | V1) == 0
    missing = (features.offered & wanted) - features.negotiated
    for one in missing:
        every, some = REQUIRES.get(one, frozenset()), REQUIRES_ONE.get(one)
        assert not every <= features.negotiated or (some and not some & features.negotiated)


@pytest.mark.rule("BAS-008")
def test_prerequisites_fall_in_chains(monkeypatch):
    """5.1.3.1: HOST_ECN needs HOST_TSO4, which needs CSUM."""
    chain = {
        Feature.HOST_ECN: frozenset({Feature.HOST_TSO4}),
        Feature.HOST_TSO4: frozenset({Feature.CSUM}),
    }
    monkeypatch.setattr(module, "REQUIRES", chain)
    wanted = frozenset({Feature.VERSION_1, Feature.CSUM, *chain})
    assert negotiate(ALL, wanted).negotiated == wanted
    assert negotiate(ALL, wanted - {Feature.CSUM}).negotiated == {Feature.VERSION_1}
    without = negotiate(ALL & ~(1 << Feature.HOST_TSO4), wanted)
    assert without.negotiated == {Feature.VERSION_1, Feature.CSUM}


def test_announcements_are_asked_for_in_the_status():
    """5.1.4: without STATUS there is no such field to read."""
    offered = V1 | 1 << Feature.CTRL_VQ | 1 << Feature.GUEST_ANNOUNCE
    assert Feature.GUEST_ANNOUNCE not in negotiate(offered, WANTED).negotiated
    both = negotiate(offered | 1 << Feature.STATUS, WANTED).negotiated
    assert Feature.GUEST_ANNOUNCE in both


@pytest.mark.rule("RSV-002", "LEG-001", "LEG-002")
@pytest.mark.parametrize("offered", [0, ALL & ~V1])
def test_a_legacy_device_is_refused(offered):
    with pytest.raises(FeatureMissing, match=r"VERSION_1(.|\n)*disable-legacy=on"):
        negotiate(offered)


def test_nothing_but_version_1_is_needed():
    assert negotiate(V1).negotiated == {Feature.VERSION_1}


def test_everything_that_is_supported_is_wanted():
    assert negotiate(ALL).negotiated == SUPPORTED


def test_feature_numbers_are_those_of_the_model():
    assert {feature.name.lower(): int(feature) for feature in Feature}.items() <= FEATURES.items()


# ---- switches ------------------------------------------------------------------------------------


def test_no_switches():
    assert parse(()) == WANTED


@pytest.mark.parametrize("name", ["mrg_rxbuf", "MRG_RXBUF", "Mrg_RxBuf"])
def test_switching_a_feature_off_and_on(name):
    without = WANTED - {Feature.MRG_RXBUF}
    assert parse([f"-{name}"]) == without
    assert parse([name]) == parse([f"+{name}"]) == WANTED
    assert parse([f"-{name}", "-mac", "-mac"]) == without - {Feature.MAC}


def test_the_last_switch_of_a_feature_counts():
    assert parse(["-mac", "+mac"]) == WANTED
    assert parse(["mac", "-mac"]) == WANTED - {Feature.MAC}


@pytest.mark.parametrize("feature", sorted(ON_REQUEST))
def test_what_is_wanted_on_request_only(feature):
    assert parse([feature.name]) == parse([f"+{feature.name}"]) == WANTED | {feature}
    assert parse([f"-{feature.name}"]) == WANTED


@pytest.mark.parametrize(
    "switch", ["-no_such", "no_such", "", "-", "--mac", "+-mac", "mrg rxbuf", "15"]
)
def test_a_switch_that_means_nothing(switch):
    with pytest.raises(ValueError, match="there is no virtio-net feature") as caught:
        parse([switch])
    assert repr(switch) in str(caught.value)
    assert "mrg_rxbuf" in str(caught.value)


def test_switches_in_one_text_are_refused():
    """A text is a sequence of letters, which nobody means."""
    with pytest.raises((ValueError, TypeError)):
        parse("-mac")


def test_a_switch_is_a_text():
    with pytest.raises(TypeError, match='switches such as "-mrg_rxbuf", not 15'):
        parse([15])


@pytest.mark.parametrize("switch", ["-version_1", "-VERSION_1"])
def test_version_1_cannot_be_switched_off(switch):
    with pytest.raises(ValueError, match="modern only"):
        parse([switch])


@pytest.mark.parametrize("feature", sorted(set(Feature) - SUPPORTED))
def test_a_feature_that_is_not_supported(feature):
    name = feature.name.lower()
    with pytest.raises(FeatureMissing, match=name):
        parse([name])
    assert parse([f"-{name}"]) == WANTED
