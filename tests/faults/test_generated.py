"""About 2,000 generated cases, the same ones in every run: each is right or clearly refused."""
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parent))
from cases import KINDS, WEIGHTS_OF_KINDS, judge

CASES = 280  # of a kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cases(kind):
    counts, worst = Counter(), []

    @settings(
        max_examples=round(CASES * WEIGHTS_OF_KINDS.get(kind, 1)), derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[kind])
    def collect(case):
        verdict, why = judge(case)
        counts[verdict] += 1
        if verdict in ("unclear", "silent"): worst.append(f"{verdict}: {case.about}: {why}")

    collect()
    print(kind, dict(counts))
    assert sum(counts.values()) >= 30  # a table has few cells
    assert not worst, "\n".join(worst[:10])
    assert counts["right"] > 0 and counts["clear"] > 0
