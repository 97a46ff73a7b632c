"""Tests that run in the guest; the host replays them (see conftest.py)."""
