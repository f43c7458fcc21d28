"Comparisons with transformers do the same work, and say what they should. Never how long it took."
import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from detr_nb import bench
from detr_nb.bench import CASES, ON_GPU, Comparison, Setting, below_floor, draw_bench, format_row, measure, run_bench, speedup
from detr_nb.cli import app
from detr_nb.speed import take_turns

pytest.importorskip("transformers")
SMALL = Setting(small=True)
APART = {  # case → how far apart results of float32 may be
    "detection": 1e-5, "exported": 1e-5, "masks": 1e-4, "panoptic": 1e-3, "loss": 1e-5, "training": 1e-5,
    "processor": 1e-5, "post": 0, "evaluation": 0,
}
COARSE = "bf16", "bfloat16", "int8"


def test_speedup_is_the_median_of_paired_ratios():
    "Against its definition; a machine that slows down while measuring changes nothing."
    rng = np.random.default_rng(0)
    old, new = rng.random(15) + 1, rng.random(15) + 0.5
    middle, low, high = speedup(old, new)
    assert middle == np.median(old / new) and low <= middle <= high
    slower = np.linspace(1, 30, 15)
    assert speedup(old * slower, new * slower) == pytest.approx((middle, low, high), rel=1e-12)
    assert speedup(old * 3, new)[0] == pytest.approx(3 * middle, rel=1e-12)


def test_range_of_a_speedup_covers_the_truth():
    "Of 200 measurements with known ratio 2 the range holds it in about 95 %."
    rng = np.random.default_rng(1)
    ranges = [speedup(2 * rng.lognormal(0, 0.2, 25), rng.lognormal(0, 0.2, 25)) for _ in range(200)]
    covered = np.mean([low <= 2 <= high for _, low, high in ranges])
    assert 0.88 <= covered <= 0.995


def test_turns_and_the_round_that_is_not_counted():
    calls = []
    found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=30)
    rounds = ["".join(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert len(rounds) == 31 and set(rounds) == {"ab", "ba"}, "each round has both, in an order of its own"
    assert 5 < rounds.count("ab") < 26 and {name: len(own) for name, own in found.items()} == {"a": 30, "b": 30}
    assert all(second >= 0 for own in found.values() for second in own) and list(found) == ["a", "b"]


def test_a_place_in_the_round_is_nobodys_advantage(monkeypatch):
    "Two equal cases on a machine whose second call is faster: with the old one always first the new one would win."
    calls = []
    monkeypatch.setattr("detr_nb.speed.seconds_of", lambda case: 1.0 if calls.append(case) or len(calls) % 2 else 0.8)
    found = take_turns({"old": lambda: "old", "new": lambda: "new"}, rounds=40)
    _, low, high = speedup(found["old"], found["new"])
    assert low < 1 < high


def test_rows_of_a_comparison(monkeypatch):
    seconds = {"old": [4.0, 4.0, 8.0], "new": [2.0, 1.0, 2.0], "newer": [1.0, 1.0, 1.0]}
    monkeypatch.setattr("detr_nb.speed.take_turns", lambda run, rounds, device: seconds)
    comparison = Comparison(
        "case", dict.fromkeys(seconds, lambda: None), {"new": 5}, {"new": 0.25}, also={("new", "newer"): 1.5}
    )
    rows = measure(comparison, 3)
    assert [(row["what"], row["against"]) for row in rows] == [
        ("old", "old"), ("new", "old"), ("newer", "old"), ("newer", "new")
    ]
    assert [row["times"] for row in rows] == [1, 4, 4, 2] and [row["floor"] for row in rows] == [None, 5, None, 1.5]
    assert rows[1]["median"] == 2 and (rows[1]["least"], rows[1]["most"]) == (1, 2) and rows[1]["apart"] == 0.25
    line = format_row(rows[1])
    assert "new against old" in line and "4.00 ×" in line and "want 5" in line and "differs by 2e-01" in line
    assert below_floor(rows) == ["case: new is 4.00 × old, want 5"]


@pytest.mark.parametrize("case", sorted(APART))
def test_both_sides_do_the_same_work(case):
    "Every candidate in float32 gives what transformers gives; with fewer bits about that."
    rows = run_bench([case], rounds=1, setting=SMALL, say=lambda line: None)
    assert len({row["against"] for row in rows if row["what"] == row["against"]}) >= 1
    apart = {row["what"]: row["apart"] for row in rows if row["apart"] is not None}
    assert apart, "want at least one distance"
    for name, distance in apart.items():
        assert distance <= (0.05 if any(word in name for word in COARSE) else APART[case]), (name, distance)
    assert all(row["times"] > 0 and math.isfinite(row["times"]) and row["median"] > 0 for row in rows)


def test_memory_and_import_are_measured_in_programs_of_their_own():
    rows = run_bench(["memory", "import"], rounds=1, setting=SMALL, say=lambda line: None)
    units = {row["case"].split(",")[0]: row["unit"] for row in rows}
    assert units == {"peak memory": "GB", "import beyond torch": "s"}
    with pytest.raises(RuntimeError, match="a measurement failed.*NameError"): bench.run_python("print(nothing)")


def test_command(tmp_path):
    "Machine and rows as lines, as JSON and as a figure; a ratio below its floor is exit code 1 where it is asked for."
    out = CliRunner().invoke(
        app, ["bench", "loss", "--small", "--rounds", "2", "--threads", "1", "--json", str(tmp_path / "b.json"),
              "--figure", str(tmp_path / "b.png")]
    )
    assert out.exit_code == 0, out.output
    written = json.loads((tmp_path / "b.json").read_text())
    assert "torch" in written["machine"] and [row["what"] for row in written["rows"]] == ["transformers", "ours"]
    assert len(out.stdout.splitlines()) == 3 and (tmp_path / "b.png").stat().st_size > 5000
    again = CliRunner().invoke(app, ["bench", "loss", "--small", "--json", str(tmp_path / "b.json"), "--rounds", "1"])
    assert again.exit_code == 0, "a file that the command wrote itself is written again"
    (tmp_path / "mine.json").write_text("{}")
    refused = CliRunner().invoke(app, ["bench", "loss", "--small", "--json", str(tmp_path / "mine.json")])
    assert isinstance(refused.exception, FileExistsError) and (tmp_path / "mine.json").read_text() == "{}"


def test_check_of_floors(monkeypatch):
    row = {
        "case": "a case", "what": "ours", "against": "transformers", "median": 1.0, "least": 1.0, "most": 1.0, "unit": "s",
        "times": 1.0, "low": 1.0, "high": 1.0, "floor": 2.0, "apart": None,
    }
    monkeypatch.setattr("detr_nb.bench.run_bench", lambda *_: [row])
    out = CliRunner().invoke(app, ["bench", "--check"])
    assert out.exit_code == 1 and "below its floor: a case: ours is 1.00 × transformers, want 2" in out.stderr
    assert CliRunner().invoke(app, ["bench"]).exit_code == 0


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match="'decoding': want cases of processor, post"): run_bench(["decoding"])
    with pytest.raises(ValueError, match="'evaluation': want cases of loss, training.* on cuda"):
        run_bench(["evaluation"], setting=Setting("cuda"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU here"): run_bench(["loss"], setting=Setting("cuda"))
    assert CliRunner().invoke(app, ["bench", "--device", "tpu"]).exit_code == 2
    assert set(ON_GPU) < set(CASES)


def test_figure_leaves_out_what_has_no_ratio():
    base = {"case": "c", "against": "a", "median": 1.0, "least": 1.0, "most": 1.0, "unit": "s", "apart": None}
    rows = [
        {**base, "what": "a", "times": 1.0, "low": 1.0, "high": 1.0, "floor": None},
        {**base, "what": "b", "times": 2.0, "low": 1.5, "high": 3.0, "floor": 1.2},
        {**base, "what": "c", "times": None, "low": None, "high": None, "floor": None},
    ]
    ax = draw_bench(rows)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c: b"]
