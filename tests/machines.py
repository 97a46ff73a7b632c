"""How long hypothesis's state machines run, and with which seed.

In the suite they are short and the same each time. PYVIRTNET_EXAMPLES=20000 makes them as long,
with another seed each time, which is printed; PYVIRTNET_SEED=N has that one again.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings

EXAMPLES = os.environ.get("PYVIRTNET_EXAMPLES")
SEED = int(os.environ.get("PYVIRTNET_SEED") or random.SystemRandom().getrandbits(32))


def run_as_test(machine: Any, wanted: int, steps: int) -> Any:
    """The machine's test case, to be collected by pytest; it plays `wanted` examples."""
    chosen = int(EXAMPLES or wanted)
    case = machine.TestCase
    case.settings = settings(
        max_examples=chosen,
        stateful_step_count=steps,
        deadline=None,
        derandomize=EXAMPLES is None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    if EXAMPLES is not None:
        print(f"{machine.__name__}: PYVIRTNET_EXAMPLES={chosen} PYVIRTNET_SEED={SEED}")
        seed(SEED)(machine)
    # A failing machine is shrunk, which takes minutes.
    case.pytestmark = [pytest.mark.timeout(max(1200, chosen))]
    return case
