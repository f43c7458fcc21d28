"""Many generated cases in a pool of workers, each with a limit of time and memory: `python tests/faults/soak.py [CASES]`.

A worker is started anew only after a crash or a time-out. Prints the counts of every kind, and what was not right or
clear; the exit code is then 1."""
import argparse
import resource
import sys
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
CHUNK, BYTES = 100, 6 * 2**30


def chunk(kind: str, number: int, count: int) -> tuple[str, Counter, list[str]]:
    "Some cases of a kind; the number seeds them."
    import signal

    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis.errors import HypothesisWarning

    from cases import KINDS, judge

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    warnings.simplefilter("ignore", HypothesisWarning)
    counts, worst = Counter(), []

    def late(*_): raise TimeoutError
    signal.signal(signal.SIGALRM, late)

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(KINDS[kind])
    def collect(case):
        signal.alarm(10)
        try: verdict, why = judge(case)
        except TimeoutError: verdict, why = "hang", "over 10 seconds"
        finally: signal.alarm(0)
        counts[verdict] += 1
        if verdict not in ("right", "clear"): worst.append(f"{kind} {number}: {verdict}: {case.about}: {why}")

    collect()
    return kind, counts, worst


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="?", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    from tqdm.auto import tqdm

    from cases import KINDS
    kinds = [kind for kind in KINDS if kind != "tables"]  # which have few
    rest = {(kind, number) for kind in kinds for number in range(-(-arguments.cases // len(kinds) // CHUNK))}
    rest |= {("tables", 0)}
    totals, worst = defaultdict(Counter), []
    bar = tqdm(total=len(rest), desc=f"soak, {CHUNK} cases each")
    while rest:
        with ProcessPoolExecutor(arguments.workers) as pool:
            jobs = {pool.submit(chunk, kind, number, CHUNK): (kind, number) for kind, number in sorted(rest)}
            try:
                for job in as_completed(jobs):
                    kind, counts, found = job.result()
                    totals[kind] += counts
                    worst += found
                    rest.discard(jobs[job])
                    bar.update()
            except BrokenProcessPool:  # somewhere among those that were running
                lost = sorted(rest)[0]
                totals[lost[0]]["crash"] += 1
                worst.append(f"{lost[0]} {lost[1]}: a worker died in one of these {CHUNK} cases, or in one that ran beside it")
                rest.discard(lost)
    names = ("right", "clear", "unclear", "silent", "crash", "hang")
    print(f"{'':16}" + "".join(f"{name:>9}" for name in names))
    for kind, counts in totals.items(): print(f"{kind:16}" + "".join(f"{counts[name]:9}" for name in names))
    print(f"{'all':16}" + "".join(f"{sum(c[name] for c in totals.values()):9}" for name in names))
    print("\n".join(worst[:40]))
    return int(bool(worst))


if __name__ == "__main__":
    raise SystemExit(main())
