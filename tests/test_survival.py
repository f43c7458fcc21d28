"Trainings through the command line that are killed, stopped, or meet another one."
import os
import random
import signal
import subprocess
import time

import pytest
import survival
from survival import contents, finish, start, survive


@pytest.fixture(scope="module")
def data(tmp_path_factory): return survival.make_data(tmp_path_factory.mktemp("survival") / "data")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_runs_end_as_the_whole_one(data, tmp_path, seed):
    "Twenty kills at random moments in all, four a training, each with another seed; the same bytes."
    survive(data, tmp_path, seed, kills=4)


@pytest.mark.slow
def test_killed_runs_of_two_processes_end_as_the_whole_one(data, tmp_path):
    survive(data, tmp_path, seed=11, kills=5, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_resumes_the_same(data, tmp_path, processes):
    "In the middle of an interval of the log: the sums for its next row are kept."
    began = time.monotonic()
    finish(start(data, tmp_path / "whole", 3, processes))
    took = time.monotonic() - began
    out, rng, codes = tmp_path / "stopped", random.Random(3), []
    for _ in range(3):
        running = start(data, out, 3, processes)
        try: running.wait(rng.uniform(0.6, 0.85) * took)
        except subprocess.TimeoutExpired: os.killpg(running.pid, signal.SIGTERM)
        said = running.communicate(timeout=120)[0]
        codes.append(running.returncode)
        if running.returncode == 75:
            assert "stopped at step" in said and "--resume" in said
        if running.returncode == 0: break
    else: finish(start(data, out, 3, processes))
    assert contents(tmp_path / "whole") == contents(out)
    if processes == 1: assert set(codes) <= {75, 0, -signal.SIGTERM}, codes  # before the loop, it ends like any program


def test_sigterm_in_the_loop_has_its_own_exit_code(data, tmp_path):
    "Sent as soon as the first row of the log is there."
    running = start(data, tmp_path / "run", 5)
    log = tmp_path / "run" / "log.csv"
    for _ in range(1200):
        if log.exists() and log.read_text().count("\n") > 2: break
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[0]
    assert running.returncode == 75 and "stopped at step" in said and "saved" in said, said[-2000:]
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_second_training_into_a_folder_is_refused(data, tmp_path):
    first = start(data, tmp_path / "run", 1)
    for _ in range(1200):
        if (tmp_path / "run" / "log.csv").exists(): break
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)
    try:
        second = start(data, tmp_path / "run", 1)
        said = second.communicate(timeout=120)[0]
        assert second.returncode == 2 and "another training is writing there" in said, said[-2000:]
    finally:
        first.send_signal(signal.SIGCONT)
    finish(first)


@pytest.mark.slow
def test_checkpoints_that_are_kept(data, tmp_path):
    finish(start(data, tmp_path / "run", 2))
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint*.pt"))
    assert names == ["checkpoint-30.pt", "checkpoint-40.pt", "checkpoint.pt"]
    assert (tmp_path / "run" / "checkpoint-40.pt").read_bytes() == (tmp_path / "run" / "checkpoint.pt").read_bytes()


def test_the_best_model_is_the_one_with_the_best_ap(data, tmp_path):
    "`best` holds what had the highest AP in the log, and evaluates to it."
    from detr_nb import DetrForObjectDetection, DetrImageProcessor, evaluate
    from detr_nb.datasets import open_split
    from detr_nb.files import read_log
    finish(start(data, tmp_path / "run", 4))
    rows = [row for row in read_log(tmp_path / "run" / "log.csv") if "AP" in row]
    folder = tmp_path / "run" / "best"
    model, processor = DetrForObjectDetection.from_pretrained(folder).eval(), DetrImageProcessor.from_pretrained(folder)
    found = evaluate(model, open_split(data, "val"), processor, progress=False)["all"]["AP"]
    assert len(rows) == 4 and found == pytest.approx(max(row["AP"] for row in rows), abs=1e-5)
