"The same numbers on one, two and four processes, and on two machines."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_processes
from scaling_cases import CASES, run_all

SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from scaling_cases import run_all
    run_all(Path(sys.argv[1]))
"""
TESTS = str(Path(__file__).parent)
ATOL = 1e-5  # the largest difference of losses (of about 20, as a share), clipped gradients and weights


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "A folder with what one, two and four processes found."
    folder = tmp_path_factory.mktemp("scaling")
    threads = torch.get_num_threads()
    run_all(folder)
    torch.set_num_threads(threads)
    for count in (2, 4): run_processes(SCRIPT.format(tests=TESTS), folder, folder, count=count)
    return folder


def load(folder, name): return torch.load(folder / f"{name}.pt", weights_only=True)


def largest(one: dict, other: dict) -> float:
    assert one.keys() == other.keys() and one
    for name in one: assert one[name].shape == other[name].shape and one[name].dtype == other[name].dtype
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one(results, name, count):
    one, several = load(results, f"{name}-1"), load(results, f"{name}-{count}")
    assert len(one["losses"]) == len(several["losses"]) == 20
    for a, b in zip(one["losses"], several["losses"]):
        assert a.keys() == b.keys() and {"loss_ce", "loss_bbox", "loss_giou"} <= a.keys()
        for part in a.keys() - {"grad_norm"}: assert abs(a[part] - b[part]) <= ATOL * max(1, abs(a[part])), (part, a[part], b[part])
    assert one["losses"][0]["grad_norm"] == pytest.approx(several["losses"][0]["grad_norm"], rel=ATOL)
    assert largest(one["gradients"], several["gradients"]) < ATOL
    assert largest(one["weights"], several["weights"]) < ATOL
    assert max(float(v.abs().max()) for v in one["gradients"].values() if v.numel()) > 1000 * ATOL  # or the limit would mean nothing


@pytest.mark.slow
def test_one_process_had_nothing_to_find(results):
    "At one step, the share of the last of four processes has no object, and only that."
    assert load(results, "boxes-4")["empty"] == [0, 0, 0, 1] and load(results, "boxes-1")["empty"] == [0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_divisors_are_the_mean_of_all_processes(results, count):
    found = [load(results, f"divisors-{count}-{rank}") for rank in range(count)]
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0]))
    objects = sum(rank + 1 + 0 + 40 for rank in range(count)) / count
    matched = sum(min(n, 25) for rank in range(count) for n in (rank + 1, 0, 40)) / count
    torch.testing.assert_close(found[0][0], torch.tensor(objects), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][1], torch.tensor(matched + 0.1 * (3 * 25 - matched)), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_gives_one_process_numbers(results, count):
    "Exactly, on every process, whether images were shared out or a sampler has repeated some."
    whole, counted = load(results, "evaluation-1-0")
    assert whole["AP"] > 0.5 and whole == counted
    for rank in range(count):
        assert load(results, f"evaluation-{count}-{rank}") == [whole, whole]


NODE = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=detr"]
MEET = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from pathlib import Path
from scaling_cases import run_case
run_case("boxes", Path({folder!r}))
dist.barrier()
dist.destroy_process_group()
"""


def can_make_networks() -> bool:
    if os.geteuid() or not shutil.which("ip"): return False
    made = subprocess.run(["ip", "netns", "add", "detr-nb-probe"], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "delete", "detr-nb-probe"], capture_output=True)
    return made


@pytest.mark.slow
@pytest.mark.skipif(not can_make_networks(), reason="network namespaces cannot be made here")
def test_two_machines_train_as_one(results, tmp_path):
    "Two hosts, each with a network of its own, joined by one cable; they meet where `--rdzv_endpoint` says."
    script = tmp_path / "meet.py"
    script.write_text(MEET.format(tests=TESTS, folder=str(tmp_path)))
    tag = f"d{os.getpid() % 100000}"
    hosts = [f"{tag}a", f"{tag}b"]
    commands = [["ip", "netns", "add", host] for host in hosts]
    commands.append(["ip", "link", "add", hosts[0], "netns", hosts[0], "type", "veth", "peer", "name", hosts[1], "netns", hosts[1]])
    for i, host in enumerate(hosts):
        inside = ["ip", "-n", host]
        commands += [[*inside, "addr", "add", f"10.77.0.{i + 1}/24", "dev", host], [*inside, "link", "set", host, "up"], [*inside, "link", "set", "lo", "up"]]
    running = []
    try:
        for command in commands: subprocess.run(command, check=True, capture_output=True)
        for i, host in enumerate(hosts):
            settings = os.environ | {"GLOO_SOCKET_IFNAME": host, "TP_SOCKET_IFNAME": host}
            place = ["ip", "netns", "exec", host, *NODE, "--rdzv_endpoint=10.77.0.1:29511", f"--rdzv_conf=is_host={1 - i}", f"--local_addr=10.77.0.{i + 1}", str(script)]
            running.append(subprocess.Popen(place, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        said = [process.communicate(timeout=300)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], "\n…\n".join(text[-2000:] for text in said)
    finally:
        for process in running: process.kill()
        for host in hosts: subprocess.run(["ip", "netns", "delete", host], capture_output=True)
    one, two = load(results, "boxes-1"), load(tmp_path, "boxes-2")
    assert largest(one["weights"], two["weights"]) < ATOL
    assert [row["loss"] for row in one["losses"]] == pytest.approx([row["loss"] for row in two["losses"]], rel=ATOL)
