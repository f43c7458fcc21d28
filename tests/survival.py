"""A training that is killed at random moments and gone on with, against one that nobody killed. `python tests/survival.py 200`
kills two hundred times."""
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

TRAIN = ["-m", "detr_nb.cli", "train", "--preset", "scenes", "--model", "scenes", "--steps", "40", "--batch-size", "4",
         "--evaluations", "4", "--ema", "0.9", "--image-size", "64", "--workers", "1", "--augment", "--keep", "2"]
COMPARED = "log.csv", "model/model.safetensors", "best/model.safetensors", "model/config.json", "model/preprocessor_config.json"


def make_data(folder: Path) -> Path:
    from detr_nb import make_scenes
    make_scenes(folder, train=24, val=4)
    return folder


def start(data: Path, out: Path, seed: int, processes: int = 1) -> subprocess.Popen:
    "The command, in a process group of its own; it goes on where there is something to go on from."
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, *TRAIN, "--data", str(data), "--out", str(out), "--seed", str(seed)]
    command += ["--resume"] * (out / "checkpoint.pt").exists()
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )


def finish(running: subprocess.Popen, limit: float = 300) -> str:
    said = running.communicate(timeout=limit)[0]
    assert running.returncode == 0, said[-3000:]
    return said


def contents(out: Path) -> dict[str, bytes]: return {name: (out / name).read_bytes() for name in COMPARED}


def kill(running: subprocess.Popen, after: float) -> bool:
    "SIGKILL for the command and all that it started. Whether it was still running."
    try: running.wait(after)
    except subprocess.TimeoutExpired:  # as when the machine goes out: torchrun gives each process a group of its own
        family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess): process.kill()
        psutil.wait_procs(family, timeout=60)
        running.wait()
        return True
    return False


def survive(data: Path, folder: Path, seed: int, kills: int, processes: int = 1) -> None:
    """Trainings that are killed, `kills` times in all, and gone on with to their end: the bytes of each must be those of
    one that nobody killed."""
    rng, began = random.Random(seed), time.monotonic()
    finish(start(data, folder / f"whole-{seed}", seed, processes))
    took, killed, number, done = time.monotonic() - began, 0, 0, True
    wanted = contents(folder / f"whole-{seed}")
    while killed < kills or not done:
        if done: number, done = number + 1, False
        out = folder / f"killed-{seed}-{number}"
        running = start(data, out, seed, processes)
        if killed < kills and kill(running, rng.uniform(0.25, 0.9) * took):
            killed += 1
            continue
        finish(running)
        found, done = contents(out), True
        different = [name for name in wanted if wanted[name] != found[name]]
        assert not different, f"seed {seed}, training {number}, {killed} kills: {', '.join(different)} differ"
        assert not list(out.glob("**/*.part*")), f"seed {seed}, training {number}: unfinished files were left"


def main(count: int) -> int:
    "Kill `count` times, one process and, for every fifth training, two."
    folder, killed, seed, failures = Path(tempfile.mkdtemp()), 0, 0, 0
    data = make_data(folder / "data")
    while killed < count:
        seed += 1
        kills = min(6, count - killed)
        try: survive(data, folder, seed, kills, 2 if seed % 5 == 0 else 1)
        except AssertionError as error:
            failures += 1
            print(error, flush=True)
        killed += kills
        print(f"{killed} kills in {seed} trainings, {failures} failures", flush=True)
    return failures


if __name__ == "__main__": raise SystemExit(main(int(sys.argv[1])))
