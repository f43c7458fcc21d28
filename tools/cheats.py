"""Is an answer to an exercise lying about? `python tools/cheats.py [EXERCISE …]` tries everything that a student finds.

Every callable of the notebook that students get, and of torch, torchvision, numpy, scipy and detr_nb, two levels deep,
is handed in as the answer, behind a function of the student's own. None may pass. What raises an error where the right
answer returns something has failed; the others go through the whole check. A hundred at a time run in a child process,
in an empty folder and with a time limit, so that one that crashes, hangs or changes a setting harms no other.
"""
import argparse
import copy
import importlib
import inspect
import os
import pkgutil
import select
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator

import course
from variants import TooLong, limited, run

LIBRARIES = "torch", "torchvision", "numpy", "scipy", "detr_nb"
BATCH = 100


def members(name: str, value: object, levels: int) -> Iterator[tuple[str, object]]:
    "Public callables of a module or class under the names by which a student would call them."
    for attribute in dir(value):
        if attribute.startswith("_"): continue
        try: found = getattr(value, attribute)
        except Exception: continue  # a property that wants something else first
        path = f"{name}.{attribute}"
        if callable(found): yield path, found
        inside = inspect.ismodule(found) or inspect.isclass(found)
        if levels > 1 and inside: yield from members(path, found, levels - 1)


def candidates(notebook: dict) -> dict[str, str]:
    "What can be called: the expression for it → the statement that imports it. The same thing under two names is one."
    found: dict[int, tuple[str, str, object]] = {}
    for name, value in notebook.items():
        if name.startswith("__"): continue
        if callable(value): found.setdefault(id(value), (name, "", value))
        if inspect.ismodule(value) or inspect.isclass(value):
            for path, thing in members(name, value, 1): found.setdefault(id(thing), (path, "", thing))
    for library in LIBRARIES:
        package = importlib.import_module(library)
        parts = [info.name for info in pkgutil.iter_modules(package.__path__)]
        below = [part for part in parts if part[0] != "_" and part != "conftest"]
        for name in [library, *(f"{library}.{part}" for part in below)]:
            try: module = importlib.import_module(name)
            except Exception: continue  # wants a package that is not here
            for path, thing in members(name, module, 2):
                found.setdefault(id(thing), (path, f"import {name}", thing))
    return {path: statement for path, statement, _ in found.values()}


def first_call(exercise: course.Exercise, start: dict) -> tuple[tuple[tuple, dict] | None, float]:
    """The arguments with which a check calls the answer first, and how many seconds a cheat gets.

    The arguments are None if the right answer raises an error there. A cheat gets three times as long as the right
    answer's whole check takes, and at least a second.
    """
    calls: list = []
    names = run(exercise.solution, dict(start))
    right = names[exercise.name]

    def spied(args, kwargs):
        call = None
        if not calls:
            try: call = copy.deepcopy((args, kwargs))
            except RuntimeError: pass  # what is only traced cannot be copied
        try: result = right(*args, **kwargs)
        except Exception:
            calls.append(None)
            raise
        calls.append(call)
        return result

    spy = f"def {exercise.name}(*args, **kwargs): return spied(args, kwargs)"
    began = time.perf_counter()
    run(f"{spy}\n\n{exercise.test}", names | {"spied": spied})
    return calls[0], max(1.0, 3 * (time.perf_counter() - began))


def cheat(exercise: course.Exercise, path: str, statement: str) -> str:
    "An answer that calls somebody else's."
    return f"{statement}\n\ndef {exercise.name}(*args, **kwargs):\n    return {path}(*args, **kwargs)\n"


def find(path: str, statement: str, start: dict) -> object:
    "The thing that an expression names."
    name = statement.removeprefix("import ")
    value = importlib.import_module(name) if name else start[path.split(".")[0]]
    for attribute in path.removeprefix(name).split(".")[1:]: value = getattr(value, attribute)
    return value


def takes(
    exercise: course.Exercise, start: dict, call: tuple | None, seconds: float, path: str, statement: str
) -> bool:
    "Whether a cheat passes."
    try:
        with limited(seconds):
            if call is not None:
                args, kwargs = copy.deepcopy(call)
                find(path, statement, start)(*args, **kwargs)
            names = run(cheat(exercise, path, statement), dict(start))
            run(f"{exercise.check}\n\ncheck_{exercise.name}({exercise.name})", names)
    except (Exception, SystemExit, KeyboardInterrupt, TooLong): return False
    return True


def search(
    exercise: course.Exercise, start: dict, things: list[tuple[str, str]], call: tuple | None, seconds: float
) -> list[str]:
    "The cheats that pass. One at which the child dies or hangs has not passed; another child goes on behind it."
    passed, done = [], 0
    while done < len(things):
        read, write = os.pipe()
        with tempfile.TemporaryDirectory() as folder:
            pid = os.fork()
            if pid == 0:
                os.close(read)
                os.chdir(folder)
                for number in (0, 1, 2): os.dup2(os.open(os.devnull, os.O_RDWR), number)
                for path, statement in things[done : done + BATCH]:
                    os.write(write, b"y" if takes(exercise, start, call, seconds, path, statement) else b"n")
                os._exit(0)
            os.close(write)
            batch, said = min(BATCH, len(things) - done), b""
            while len(said) < batch and select.select([read], [], [], 2 * seconds)[0]:
                answer = os.read(read, BATCH)
                if not answer: break
                said += answer
            os.close(read)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        passed += [path for (path, _), answer in zip(things[done:], said.decode()) if answer == "y"]
        done += len(said) + (len(said) < batch)
    return passed


def main() -> int:
    "Search for the exercises that are named, or all."
    from tqdm.auto import tqdm
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exercises", nargs="*")
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())  # its own is shared with children, and one of them may be killed while it holds it
    wanted, passed, tried = parser.parse_args().exercises, 0, 0
    warnings.simplefilter("ignore")
    for path in course.chapters():
        exercises = [e for e in course.read_chapter(path)[0] if not wanted or e.answer in wanted]
        if not exercises: continue
        start = run(course.setup_code(path), {"__name__": "__main__"})
        things = list(candidates(start).items())
        for exercise in exercises:
            call, seconds = first_call(exercise, start)
            batches = tqdm(range(0, len(things), 10 * BATCH), exercise.answer, leave=False)
            found = []
            for i in batches: found += search(exercise, start, things[i : i + 10 * BATCH], call, seconds)
            passed, tried = passed + len(found), tried + len(things)
            told = ", ".join(found) or "none passes"
            print(f"{path.stem} {exercise.answer}: {len(things)} tried, {seconds:.1f} s each, {told}", flush=True)
    print(f"{tried} cheats tried, {passed} pass")
    return int(passed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
