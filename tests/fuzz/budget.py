"""The number of mutations that a fuzz test tries: a few in every test run, BERTJAX_FUZZ of them where that is set.

    BERTJAX_FUZZ=2000 python -m pytest tests/fuzz

The mutations are the same in every run. One that takes longer than `HANG` counts as a hang and fails its test.
"""

from __future__ import annotations

import datetime
import os
import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MUTATIONS = int(os.environ.get("BERTJAX_FUZZ", 60))
HANG = datetime.timedelta(seconds=20)

bounded = settings(
    max_examples=MUTATIONS, derandomize=True, database=None, deadline=HANG, suppress_health_check=list(HealthCheck)
)

# A generator by its seed: drawn choice by choice, two mutations of three would repeat an earlier one.
draws = st.integers(0, 2**64 - 1).map(random.Random)
