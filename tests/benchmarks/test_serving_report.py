"""Targets, report and summary, from results whose every figure was set here and every ratio worked out by hand."""

import statistics
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.contenders import CUDA_BFLOAT16, EAGER, OPENVINO, OPENVINO_BFLOAT16, cuda_contenders
from benchmarks.http_requests import sample_images
from benchmarks.processor import Cores
from benchmarks.results import (
    ClosedLoad,
    EngineTurn,
    Entrant,
    Failure,
    Knobs,
    OpenLoad,
    Results,
    ResultsError,
    Start,
    Trial,
    Turn,
    read_results,
    write_results,
)
from benchmarks.targets import ALONE, ARRAYS, FULL, MIDDLE, MODERATE, OVERLOAD, Judged, best_peer, judge

OURS = f"energy-ood, {OPENVINO.label}"
LITSERVE, MOSEC, PLAIN = (f"{name}, {EAGER.label}" for name in ("LitServe", "mosec", "plain FastAPI"))
MOSEC_OPENVINO = f"mosec, {OPENVINO.label}"
CORES = Cores(generator=0.05, server=1.5, others=0.02)
KNOBS = Knobs(batch_size=8, wait_ms=5, workers=1, threads=None)


def closed(images_per_s: float, p50_ms: float = 10.0, p99_ms: float = 30.0, **failures: int) -> ClosedLoad:
    return ClosedLoad(
        images_per_s=images_per_s,
        answered=1000,
        p50_ms=p50_ms,
        p90_ms=20.0,
        p99_ms=p99_ms,
        failures=failures,
        cores=CORES,
    )


def opened(goodput_per_s: float, p99_ms: float, rejected_p99_ms: float | None, **failures: int) -> OpenLoad:
    return OpenLoad(
        offered_per_s=900,
        seconds=8,
        sent=7200,
        goodput_per_s=goodput_per_s,
        answered=2400,
        p50_ms=20.0,
        p99_ms=p99_ms,
        rejected=4800 if rejected_p99_ms else 0,
        rejected_p50_ms=rejected_p99_ms,
        rejected_p99_ms=rejected_p99_ms,
        late_p99_ms=1.2,
        failures=failures,
        cores=Cores(generator=0.25, server=1.7, others=0.0),
    )


def turn(name: str, number: int, loads: dict[str, ClosedLoad], opens: dict[str, OpenLoad] | None = None) -> Turn:
    return Turn(
        entrant=name,
        round=number,
        start=Start(seconds=3.0 + number, memory_mib=500.0),
        closed=loads,
        open=opens or {},
        memory_after_mib=510.0,
    )


def entrant(name: str, *, is_ours: bool = False, knobs: Knobs | None = None) -> Entrant:
    server, _, engine = name.partition(", ")
    return Entrant(name=name, server=server, engine=engine, is_ours=is_ours, knobs=knobs)


@pytest.fixture
def results() -> Results:
    """Three rounds of ours in float32 and four peers; nothing of bfloat16, which failed."""
    ours = {1: (300, 4.0), 2: (330, 5.0), 3: (310, 4.0)}
    mosec = {1: (150, 16.0), 2: (150, 16.0), 3: (160, 16.0)}
    turns = []
    for number, (speed, p50) in ours.items():
        loads = {
            ALONE: closed(200, p50_ms=p50),
            MIDDLE: closed(250, p99_ms=60.0),
            FULL: closed(speed),
            ARRAYS: closed(318),
        }
        opens = {MODERATE: opened(210, 33.0, None), OVERLOAD: opened(240, 3000.0, 12.0)}
        turns.append(turn(OURS, number, loads, opens))
    for number, (speed, p50) in mosec.items():
        turns.append(
            turn(MOSEC, number, {ALONE: closed(60, p50), MIDDLE: closed(140, p99_ms=100.0), FULL: closed(speed)})
        )
        turns.append(turn(MOSEC_OPENVINO, number, {FULL: closed(280)}))
        turns.append(turn(PLAIN, number, {ALONE: closed(66, 15.0), MIDDLE: closed(30, p99_ms=600.0), FULL: closed(28)}))
    # The best of LitServe's rounds is the best of all; its median is not.
    for number, speed in {1: 120, 2: 170, 3: 120}.items():
        turns.append(turn(LITSERVE, number, {FULL: closed(speed)}))
    engines = [
        EngineTurn(
            entrant=OPENVINO.label,
            round=number,
            runtime="openvino-float32-cpu",
            images_per_s={1: 250, 8: 340, 64: 335},
            one_image_ms=3.0,
        )
        for number in ours
    ]
    entrants = [
        entrant(OURS, is_ours=True),
        entrant(f"energy-ood, {OPENVINO_BFLOAT16.label}", is_ours=True),
        entrant(MOSEC, knobs=KNOBS),
        entrant(LITSERVE, knobs=KNOBS),
        entrant(PLAIN),
        entrant(MOSEC_OPENVINO, knobs=KNOBS),
    ]
    return Results(
        conditions={"command": "make bench", "cores": 2, "cpu": "a processor", "date": "2026-11-25T00:00:00", "x": {}},
        entrants=tuple(entrants),
        trials=(
            Trial(entrant=MOSEC, knobs=KNOBS, requests_per_s=151.0),
            Trial(
                entrant=MOSEC, knobs=KNOBS.model_copy(update={"workers": 2}), requests_per_s=None, error="it went wrong"
            ),
        ),
        first_starts={OURS: Start(seconds=12.0, memory_mib=800.0)},
        turns=tuple(turns),
        engines=tuple(engines),
        failures=(Failure(entrant=f"energy-ood, {OPENVINO_BFLOAT16.label}", round=0, error="no | bfloat16"),),
    )


def found(results: Results, part: str) -> Judged:
    (judged,) = [target for target in judge(results) if part in target.text]
    return judged


@pytest.mark.parametrize(
    ("part", "reached", "is_met"),
    [
        ("fp32, 64 connections: requests/s, of the best peer's, eager", {1: 2.0, 2: 2.2, 3: 1.9375}, True),
        (
            "fp32, 64 connections: requests/s, of the best peer's, same",
            {1: 300 / 280, 2: 330 / 280, 3: 310 / 280},
            False,
        ),
        ("fp32, 1 connection: median latency", {1: 4 / 15, 2: 5 / 15, 3: 4 / 15}, True),
        ("fp32, 16 connections: p99 latency", {1: 0.6, 2: 0.6, 3: 0.6}, False),
        ("fp32, JPEG at 64 connections", {1: 100 * 300 / 340, 2: 100 * 330 / 340, 3: 100 * 310 / 340}, True),
        ("fp32, .npy of 64 images", {1: 100 * 318 / 340, 2: 100 * 318 / 340, 3: 100 * 318 / 340}, False),
        ("fp32, 1 connection: queue", {1: 1.0, 2: 2.0, 3: 1.0}, True),
        ("fp32, start to the first answer", {1: 4.0, 2: 5.0, 3: 6.0}, True),
        ("fp32, Poisson at 70 %", {1: 11.0, 2: 11.0, 3: 11.0}, False),
        ("fp32, Poisson at 300 % of capacity: goodput", {1: 80.0, 2: 100 * 240 / 330, 3: 100 * 240 / 310}, True),
        ("fp32, Poisson at 300 % of capacity: p99 of rej", {1: 12.0, 2: 12.0, 3: 12.0}, True),
        ("requests that failed", {1: 0.0, 2: 0.0, 3: 0.0}, True),
    ],
)
def test_targets_are_ratios_of_one_round(results: Results, part: str, reached: dict[int, float], is_met: bool) -> None:
    judged = found(results, part)
    assert judged.reached == pytest.approx(reached)
    assert judged.is_met is is_met


def test_what_was_not_measured_is_not_met_and_not_missed(results: Results) -> None:
    bfloat16 = [target for target in judge(results) if target.text.startswith("bf16")]
    assert len(bfloat16) == 11
    assert {target.is_met for target in bfloat16} == {None}
    assert all(target.row()[-1] == "not measured" for target in bfloat16)


def test_a_load_without_any_answer_is_not_the_fastest(results: Results) -> None:
    unanswered = closed(0.0, p50_ms=0.0).model_copy(update={"answered": 0})
    slow = turn(LITSERVE, 1, {ALONE: unanswered})
    assert (
        found(results.model_copy(update={"turns": (*results.turns, slow)}), "fp32, 1 connection: median").against
        == PLAIN
    )


def test_bounds_of_bfloat16_are_its_own(results: Results) -> None:
    part = "64 connections: requests/s, of the best peer's, eager"
    assert [found(results, f"{name}, {part}").bound for name in ("fp32", "bf16")] == [1.8, 3.3]


def test_the_best_peer_is_the_one_of_the_best_median(results: Results) -> None:
    def speed(load: ClosedLoad) -> float:
        return load.images_per_s

    assert best_peer(results, EAGER.label, FULL, speed, most=True) == MOSEC  # 150 of 150, 150, 160; LitServe 120
    assert best_peer(results, EAGER.label, ALONE, lambda load: load.p50_ms, most=False) == PLAIN
    assert best_peer(results, OPENVINO_BFLOAT16.label, FULL, speed, most=True) is None


@pytest.mark.parametrize(
    ("sense", "at_bound", "beyond"), [("at least", True, True), ("at most", True, False), ("below", False, False)]
)
def test_bounds_hold_at_the_median(sense: str, at_bound: bool, beyond: bool) -> None:
    def judged(*values: float) -> Judged:
        return Judged("x", 2.0, sense, 1, dict(enumerate(values)))

    assert judged(1.0, 2.0, 9.0).is_met is at_bound
    assert judged(1.0, 2.5, 9.0).is_met is beyond
    assert judged(9.0, 1.5, 1.0).is_met is not (sense == "at least")


def test_failed_requests_of_ours_are_counted_and_those_of_peers_are_not(results: Results) -> None:
    ours = turn(OURS, 2, {FULL: closed(1, **{"503": 2})}, {OVERLOAD: opened(1, 1.0, 1.0, lost=3)})
    peers = turn(MOSEC, 2, {FULL: closed(1, timeout=7)})
    judged = found(results.model_copy(update={"turns": (*results.turns, ours, peers)}), "requests that failed")
    assert judged.reached == {1: 0, 2: 5, 3: 0}


@pytest.fixture(scope="module")
def on_a_gpu() -> Results:
    """Every bfloat16 server on a GPU, each of its loads a tenth faster than the one before; the engine alone."""
    ours = [each for each in cuda_contenders(sample_images()) if each.kind is CUDA_BFLOAT16]
    turns = []
    for contender, speed in zip(ours, (2_500, 25_000), strict=True):
        loads = {load.name: closed(speed * 1.1**n) for n, load in enumerate(contender.loads)}
        loads[contender.loads[-1].name] = closed(30 * speed, **{"429": 7, "500": 2})
        start = Start(seconds=5, memory_mib=900)
        turns.append(Turn(entrant=contender.name, round=1, start=start, closed=loads, open={}, memory_after_mib=950))
    engine = EngineTurn(
        entrant=CUDA_BFLOAT16.label, round=1, runtime="graphs", images_per_s={1: 800, 256: 151_000}, one_image_ms=1.2
    )
    return Results(conditions={}, entrants=tuple(each.entrant for each in ours), turns=tuple(turns), engines=(engine,))


def test_a_gpu_is_held_to_its_own_targets_at_the_fastest_load(on_a_gpu: Results) -> None:
    found = {target.text: (target.reached, target.is_met) for target in judge(on_a_gpu)}
    assert found == {
        "bf16, engine alone: images/s": ({1: 151_000}, True),
        "bf16, 1 HTTP worker: requests/s of one JPEG": ({1: pytest.approx(2_500 * 1.21)}, True),
        "bf16, 16 HTTP workers: requests/s of one JPEG": ({1: pytest.approx(25_000 * 1.21)}, True),
        "bf16, 1 HTTP worker: images/s, .npy of 256": ({1: 75_000}, True),
        "requests that failed, rejections aside": ({1: 4}, False),  # two of each server; 429 is none
    }


def test_a_report_has_the_connections_that_were_measured(on_a_gpu: Results, results: Results) -> None:
    gpu, cpu = (report.closed_table(each).splitlines()[0] for each in (on_a_gpu, results))
    assert [part in gpu for part in ("| 1 connection: p50", "| 16 conn", "| 64 connections: p99", "| 256 conn")] == [
        True,
        False,
        True,
        True,
    ]
    assert "| 16 connections: p99, ms |" in cpu


def test_report_shows_medians_spread_and_what_went_wrong(results: Results) -> None:
    lines = report.report(results).splitlines()
    assert (
        "| fp32, 64 connections: requests/s, of the best peer's, eager | at least 1.80 | 2.00 (1.94 to 2.20) "
        f"| {MOSEC} | yes |" in lines
    )
    assert f"| {OURS} | 4.0 (4.0 to 5.0) | 200 | 60.0 | 250 | 30.0 | 310 (300 to 330) |" in lines
    assert f"| {LITSERVE} | - | - | - | - | 30.0 | 120 (120 to 170) |" in lines
    assert "| openvino-float32-cpu | 3.00 | 250 | 340 | 335 |" in lines
    assert f"| {OURS} | 4 connections, .npy of 64 images | 318 | 10.0 | 30.0 |" in lines
    assert (
        f"| {OURS} | 300 % of capacity | 900 | 240 | 20.0 | 3,000.0 | 66.7 | 12.0 | 12.0 | 0 | 1.2 | 0.25 | 1.70 |"
        in lines
    )
    assert f"| {OURS} | 5.0 (4.0 to 6.0) | 12.0 | 500 | 510 | 0.02 | 0.05 | 0 |" in lines
    assert f"| {MOSEC} | batches of 8, waiting 5 ms, 1 process | 151 | chosen |" in lines
    assert f"| {MOSEC} | batches of 8, waiting 5 ms, 2 processes | - | it went wrong |" in lines
    assert f"| energy-ood, {OPENVINO_BFLOAT16.label} | 0 | no \\| bfloat16 |" in lines
    assert "8 met, 4 not, 11 not measured. Ratios are of one round, then the median." in lines


def test_report_of_nothing_but_failures_is_written(results: Results) -> None:
    empty = results.model_copy(update={"turns": (), "engines": (), "trials": (), "first_starts": {}})
    text = report.report(empty)
    assert "0 met, 0 not, 23 not measured" in text
    assert "no \\| bfloat16" in text


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results(path, results)
    assert read_results(path) == results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_results_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ResultsError, match="run `make bench`"):
        read_results(path)
    path.write_text('{"conditions": {}, "entrants": [], "speed": 1}')
    with pytest.raises(ResultsError, match="another version"):
        read_results(path)


def test_the_command_writes_the_report_and_the_summary_between_markers(results: Results, tmp_path: Path) -> None:
    readme, out = tmp_path / "README.md", tmp_path / "RESULTS.md"
    write_results(tmp_path / "results.json", results)
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = [str(tmp_path / "results.json"), "--out", str(out), "--into", str(readme)]
    assert report.main(arguments) == 0
    assert out.read_text() == report.report(results)
    renewed = readme.read_text()
    assert renewed == f"before\n{report.BEGIN}\n{report.summary(results)}\n{report.END}\nafter\n"
    rows = [line.split(" | ")[0] for line in renewed.splitlines() if line.startswith("| ") and "---" not in line]
    assert rows[1:] == [f"| {OURS}", f"| {MOSEC_OPENVINO}", f"| {MOSEC}"]
    assert "medians of 3 rounds, 2026-11-25" in renewed
    assert "8 of 23 targets met" in renewed
    assert report.main(arguments) == 0
    assert readme.read_text() == renewed


def test_a_document_without_markers_is_refused(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    write_results(tmp_path / "results.json", results)
    readme.write_text("nothing\n")
    out = str(tmp_path / "RESULTS.md")
    assert report.main([str(tmp_path / "results.json"), "--out", out, "--into", str(readme)]) == 2
    assert "the document has no lines" in capsys.readouterr().err
    assert readme.read_text() == "nothing\n"


def test_medians_of_the_fixture_are_what_its_comments_say(results: Results) -> None:
    medians = {
        name: statistics.median(load.images_per_s for load in results.closed(name, FULL).values())
        for name in (MOSEC, LITSERVE)
    }
    assert medians == {MOSEC: 150, LITSERVE: 120}


def test_the_shipped_report_of_a_gpu_is_of_its_results() -> None:
    folder = report.FOLDER / "h200"
    assert report.report(read_results(folder / report.RESULTS)) == (folder / report.REPORT).read_text()


def test_the_shipped_report_and_readme_are_of_the_shipped_results() -> None:
    """`make results` renews them."""
    shipped = read_results(report.FOLDER / report.RESULTS)
    assert (report.FOLDER / report.REPORT).read_text() == report.report(shipped)
    readme = (report.FOLDER.parent / "README.md").read_text()
    assert report.renew(readme, shipped) == readme
