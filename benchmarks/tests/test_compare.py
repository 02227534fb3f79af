"""Each verdict, reached by hand-made records; and what must be true of the rules for every row of every suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import ha2018, published, suites
from benchmarks.bins import distance
from benchmarks.compare import Result, compare, number_verdict
from benchmarks.published import PublishedNumber
from benchmarks.records import Record
from benchmarks.rows import Calibration, Claim, Curve, Experiment, Number, Quantity, Row, Suite
from benchmarks.scale import effect_of, percent
from benchmarks.tests.hand_made import record, sample

PUBLISHED = published.load()
SUITES = suites.load()
ROWS: dict[str, Any] = {row.id: row for row in ha2018.SUITE.rows}
NEAR = [500.0, 900.0, 1600.0, 1400.0] * 25  # 1100 ± 430, the published number being 1092 ± 556
NUMBERS = [(suite, row) for suite in SUITES for row in suite.rows if isinstance(row, Number)]
CLAIMS = [(suite, row) for suite in SUITES for row in suite.rows if isinstance(row, Claim)]


def verdict(row_id: str, *found: Record) -> Result:
    return compare(ha2018.SUITE, ROWS[row_id], found, PUBLISHED)


def ids(case: Any) -> str:
    return f"{case.paper}" if isinstance(case, Suite) else str(case.id)


# --- properties of the rules, row by row ------------------------------------------------------------------------------


def at_full_budget(suite: Suite, row: Number, values: list[float], floor: list[float], seeds: int = 1) -> Result:
    """What the row would say of these values at the published budget."""
    reported = PUBLISHED.numbers[suite.paper, row.published]
    run = row.ours.of
    found = []
    for seed in range(seeds):
        mine = sample(values, reported.protocol)
        fields: dict[str, Any] = {
            "paper": suite.paper, "suite": run.suite, "task": run.task, "claim": run.claim, "controls": {},
            "budget": {k: v for k, v in reported.spent.items() if k != "parameters"},
            "parameters": {"all": reported.spent.get("parameters", 1)},
        }  # fmt: skip
        for quantity, one in ((row.floor, sample(floor, row.floor_protocol or reported.protocol)), (row.ours, mine)):
            group, _, name = quantity.name.partition("/")
            fields = fields | (one if group == "value" else {group: {**fields.get(group, {}), name: one}})
        found.append(record([0.0], seed, **fields))
    return compare(suite, row, found, PUBLISHED)


def committed_floor(suite: Suite, row: Number) -> list[float]:
    """The floor as it was measured, or, until it is, a quarter of the published number with some noise."""
    for one in COMMITTED:
        result = compare(suite, row, [one], PUBLISHED) if is_of(one, suite, row.floor.of) else None
        if result is not None and result.other is not None:
            return list(result.other.groups[0])
    value = 0.25 * PUBLISHED.numbers[suite.paper, row.published].value
    return [value * (1 + 0.2 * step) for step in (-1, 0, 1)] * 10


def is_of(one: Record, suite: Suite, run: Experiment) -> bool:
    data = one.data
    return (data["paper"], data["suite"], data["task"], data["claim"]) == (suite.paper, run.suite, run.task, run.claim)


@pytest.fixture(scope="module", autouse=True)
def _committed():
    from benchmarks import records

    global COMMITTED
    COMMITTED = records.load().records


COMMITTED: tuple[Record, ...] = ()


def copy_of(reported: PublishedNumber) -> list[float]:
    """Values that have the published mean and spread."""
    std = reported.std or 0.02 * abs(reported.value)
    return [reported.value - std, reported.value + std] * 50


@pytest.mark.parametrize(("suite", "row"), NUMBERS, ids=ids)
def test_the_floor_itself_is_never_a_reproduction(suite: Suite, row: Number):
    floor = committed_floor(suite, row)
    result = at_full_budget(suite, row, floor, floor)
    assert result.verdict.text in ("not reproduced", "inconclusive"), result
    assert result.verdict.text == "not reproduced" or result.effect is None


@pytest.mark.parametrize(("suite", "row"), NUMBERS, ids=ids)
def test_a_copy_of_the_published_distribution_is_a_reproduction(suite: Suite, row: Number):
    reported = PUBLISHED.numbers[suite.paper, row.published]
    seeds = (reported.n or 3) if reported.std_over == "seeds" else 1
    result = at_full_budget(suite, row, copy_of(reported), committed_floor(suite, row), seeds)
    assert result.verdict.text == "reproduced", result


@pytest.mark.parametrize(("suite", "row"), NUMBERS, ids=ids)
def test_wider_noise_never_turns_not_reproduced_into_reproduced(suite: Suite, row: Number):
    reported = PUBLISHED.numbers[suite.paper, row.published]
    floor = committed_floor(suite, row)
    base = float(np.mean(floor))
    for effect in (0.3, 0.6, 0.8, 0.89, 0.95, 0.98):
        centre = base + effect * (reported.value - base)
        seen = []
        for width in (0.001, 0.1, 0.5, 1.0, 2.0, 5.0):
            spread = width * abs(reported.value - base)
            values = [centre - spread, centre + spread] * 10
            seen.append(at_full_budget(suite, row, values, floor).verdict.text)
        if "not reproduced" in seen:
            assert "reproduced" not in seen[seen.index("not reproduced") :], (effect, seen)


@pytest.mark.parametrize(("suite", "row"), CLAIMS, ids=ids)
def test_swapping_control_and_treatment_never_leaves_a_claim_standing(suite: Suite, row: Claim):
    there = [one for one in COMMITTED if one.data["paper"] == suite.paper]
    before = compare(suite, row, there, PUBLISHED)
    after = compare(suite, replace(row, ours=row.control, control=row.ours), there, PUBLISHED)
    good = ("holds", "passed")
    assert not (before.verdict.text.startswith(good) and after.verdict.text.startswith(good))
    if before.verdict.text.startswith(good):
        assert after.verdict.text.startswith(("fails", "not passed"))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_not_run_without_a_record_of_the_row():
    assert verdict("score").verdict.text == "not run"
    assert verdict("score", record(NEAR, suite="night")).verdict.text == "not run"


def test_reproduced_not_reproduced_exceeded_and_inconclusive_at_the_published_budget():
    assert verdict("score", record(NEAR)).verdict.text == "reproduced"
    assert verdict("score", record([300.0, 340.0] * 50)).verdict.text == "not reproduced"
    assert verdict("score", record([1900.0, 2100.0] * 50)).verdict.text == "exceeded"
    assert verdict("score", record([100.0, 2000.0])).verdict.text == "inconclusive"


def test_uniform_random_play_at_full_budget_is_not_reproduced():
    uniform = np.random.default_rng(0).normal(201.6, 107.3, 100).tolist()
    assert verdict("score", record(uniform)).verdict.text == "not reproduced"


def test_reduced_says_how_much_of_the_effect_at_the_smallest_share_of_the_budget():
    budget = {"env_frames": 1_031_580, "generations": 40, "rollouts": 20_480, "episodes_collected": 4000}
    result = verdict("score", record([646.0] * 4, budget=budget))
    assert result.verdict.text == "reduced: 50 % of the effect at 1.1 % of the budget"
    assert "2.2 % of the CMA-ES generations" in result.budget
    assert "100 % of the parameters" in result.budget


def test_a_smaller_model_or_a_size_that_we_do_not_know_is_reduced():
    assert "at 10 %" in verdict("score", record(NEAR, parameters={"V": 612_700})).verdict.text
    assert "at 0 %" in verdict("score", record(NEAR, budget={"env_frames": 3_080_900})).verdict.text


def test_an_unknown_published_size_is_unknown_and_not_equal():
    night = ROWS["night-real-tau1.00"]
    result = compare(ha2018.SUITE, night, [record(NEAR, suite="night", claim="dream-transfer-tau1.00")], PUBLISHED)
    assert result.verdict.text.startswith("reduced: ")
    assert "of the budget" in result.verdict.text
    assert "with at most 100 %" in result.verdict.text
    assert "an unknown share of the CMA-ES rollouts" in result.budget


def test_a_larger_budget_is_refused_and_not_called_a_reproduction():
    budget = {**record(NEAR).data["budget"], "env_frames": 4_000_000}
    with pytest.raises(ValueError, match="larger"):
        verdict("score", record(NEAR, budget=budget))


def test_a_number_without_a_measured_floor_is_not_judged():
    controls = {"held random": sample([190.0, 210.0])}
    assert verdict("score", record(NEAR, controls=controls)).verdict.text == "no floor measured"


def test_official_weights_are_not_judged_by_a_budget_of_training():
    row = replace(ROWS["score"], is_official=True)
    assert compare(ha2018.SUITE, row, [record(NEAR, budget={})], PUBLISHED).verdict.text == "reproduced"


def test_another_protocol_is_refused():
    with pytest.raises(ValueError, match="protocol 'doom-dream'"):
        verdict("score", record(NEAR, protocol="doom-dream"))
    with pytest.raises(ValueError, match="protocol 'doom-dream'"):
        verdict("transfer", record(NEAR, controls={"uniform random": sample([1.0], "doom-dream")}))
    with pytest.raises(ValueError, match="unknown protocol"):
        verdict("score", record(NEAR, protocol="doom-7"))


def test_a_published_number_at_the_floor_gives_no_scale():
    reported = PUBLISHED.numbers["ha2018", "doom-real-tau0.10"]
    effect, _ = effect_of([[200.0, 180.0] * 50], [[201.0, 199.0, 260.0, 150.0] * 10], reported)
    assert effect is None


def test_a_mean_is_at_least_as_uncertain_as_the_published_spread_says():
    reported = PUBLISHED.numbers["ha2018", "doom-real-tau1.15"]
    quiet, _ = effect_of([[1000.0, 1001.0]], [[200.0]], reported)
    assert quiet is not None
    assert quiet[2] - quiet[1] > 2 * 1.96 * 556 / 2**0.5 / 892


def test_without_a_published_spread_a_tenth_of_the_effect_is_as_near_as_can_be_told():
    reported = replace(PUBLISHED.numbers["ha2018", "doom-real-tau1.15"], std=None)
    for value, word in ((1092.0, "reproduced"), (1010.0, "inconclusive"), (900.0, "not reproduced")):
        effect, is_near = effect_of([[value - 5, value + 5] * 50], [[200.0]], reported)
        assert effect is not None
        assert number_verdict(effect, is_near).text == word


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_goes_by_the_interval_of_the_difference():
    assert verdict("transfer", *(record([300.0, 320.0, 340.0], seed) for seed in (0, 1, 2))).verdict.text == (
        "passed (3 seeds)"
    )
    assert verdict("transfer-held", record([100.0, 120.0])).verdict.text == "not passed (one seed of 3 planned)"
    assert verdict("transfer", record([100.0, 500.0])).verdict.text == "undecided (one seed of 3 planned)"


def test_a_claim_that_ours_is_less_holds_below_the_control():
    less = replace(ROWS["transfer"], is_less=True)
    for values, words in (([100.0, 120.0], "passed"), ([300.0, 320.0], "not passed"), ([100.0, 500.0], "undecided")):
        result = compare(ha2018.SUITE, less, [record(values)], PUBLISHED)
        assert result.verdict.text == f"{words} (one seed of 3 planned)"


def test_the_episodes_of_the_control_count_too():
    quiet = {"uniform random": sample([200.0] * 50), "held random": sample([200.0] * 50)}
    noisy = {"uniform random": sample([10.0, 390.0] * 5), "held random": sample([200.0] * 50)}
    values = [245.0, 255.0] * 25
    assert verdict("transfer", record(values, controls=quiet)).verdict.text.startswith("passed")
    assert verdict("transfer", record(values, controls=noisy)).verdict.text.startswith("undecided")


def test_a_claim_of_the_paper_holds_or_fails_against_a_rival_of_the_same_seed_and_budget():
    ours = [record([600.0, 620.0], seed, suite="night") for seed in (0, 1)]
    low = [record([300.0, 310.0], 0, suite="night", claim="dream-transfer-tau0.10")]
    result = verdict("night-beats-tau0.10", *ours, *low)
    assert result.verdict.text == "holds (one seed)"  # seed 1 has no rival: one run alone is no comparison
    better = [record([900.0, 910.0], 0, suite="night", claim="dream-transfer-tau0.10")]
    assert verdict("night-beats-tau0.10", *ours, *better).verdict.text == "fails (one seed)"
    assert verdict("night-beats-tau0.10", *ours).verdict.text == "not run"
    other = [record([300.0], 0, suite="night", claim="dream-transfer-tau0.10", budget={"rollouts": 1})]
    with pytest.raises(ValueError, match="spent 1 rollouts"):
        verdict("night-beats-tau0.10", *ours, *other)


def test_an_unfinished_run_holds_nothing():
    found = [record([300.0, 320.0], seed) for seed in (0, 1, 2)]
    result = verdict("transfer", *found, record([300.0], 7, finished=False))
    assert result.verdict.text.startswith("undecided")
    assert "seed 7: unfinished" in result.notes
    assert verdict("score", record([300.0], 7, finished=False)).verdict.text == "not run"


def test_seeds_beyond_the_plan_count():
    found = [record([300.0, 320.0], seed) for seed in (0, 1, 2)]
    assert verdict("transfer", *found, record([1.0, 2.0], 7)).verdict.text == "undecided (4 seeds)"


def test_pairs_are_compared_item_by_item():
    base = np.linspace(0, 1000, 40)
    row = replace(ROWS["transfer"], is_paired=True)
    one = record(list(base + 5), controls={"uniform random": sample(list(base))})
    assert compare(ha2018.SUITE, row, [one], PUBLISHED).verdict.text.startswith("passed")
    assert compare(ha2018.SUITE, ROWS["transfer"], [one], PUBLISHED).verdict.text.startswith("undecided")
    with pytest.raises(ValueError, match="not pairs"):
        compare(ha2018.SUITE, row, [record([1.0, 2.0, 3.0])], PUBLISHED)


def test_a_claim_over_several_tasks_is_about_their_mean():
    runs = [replace(ha2018.CPU, task=task, seeds=(0,)) for task in ("a", "b")]
    controls = tuple(Quantity(run, "controls/uniform random") for run in runs)
    row = Claim("x", "", tuple(Quantity(run) for run in runs), controls, "random play", "us")
    found = [record([100.0, 110.0], task="a"), record([900.0, 910.0], task="b")]
    result = compare(ha2018.SUITE, row, found, PUBLISHED)
    assert result.verdict.text == "passed (one seed)"
    assert result.ours is not None
    assert result.ours.mean == 505.0
    assert compare(ha2018.SUITE, row, found[:1], PUBLISHED).verdict.text == "not run"


# --- curves -----------------------------------------------------------------------------------------------------------


def curve(*y: float) -> dict[str, Any]:
    x = list(range(1, len(y) + 1))
    return {"dream population mean": {"x": x, "y": list(y), "x_unit": "generation", "y_unit": "tics"}}


def test_a_curve_above_is_not_a_curve_below():
    theirs = PUBLISHED.curves["ha2018", "doom-population"]
    on = theirs.y[:10]
    for shift, words in ((0.0, "on"), (5.0, "above"), (-5.0, "below")):
        y = [a + shift * s for a, s in zip(on, theirs.spread[:10], strict=True)]
        result = verdict("dream-curve", record(NEAR, curves=curve(*y)))
        assert result.verdict.text.startswith(f"{words} the curve (10 of 10 bins, one seed; reduced model: Z 32")
        assert result.notes[0].startswith("bins up to generation 10: 10 ")
    row = replace(ROWS["dream-curve"], reduced="")
    found = compare(ha2018.SUITE, row, [record(NEAR, curves=curve(*on))], PUBLISHED)
    assert found.verdict.text == "on the curve (10 of 10 bins, one seed)"


@pytest.mark.parametrize(
    ("shifts", "words"),
    [
        ((3, 3, 3, 3, 0), "above the curve (4 of 5 bins"),  # the last alone would be on it
        ((3, -1.5, -1.5, 0.5), "across the curve (1 of 4 bins above, 2 below"),  # the mean is 0.1
        ((-1.5, -1.5, -1.5, 0.5), "below the curve (3 of 4 bins"),  # the mean is within 1
        ((1.5, 0.5, 0.5, -1.5), "on the curve (2 of 4 bins"),
        ((9, 0.5, 0.5, 0.5), "above the curve (1 of 4 bins"),  # far above, but in one bin alone
        ((-9, 1.5, 1.5, 1.5), "across the curve (3 of 4 bins above, 1 below"),
        ((*[1.5] * 10, -1.5), "above the curve (10 of 11 bins"),
    ],
)
def test_every_bin_has_a_verdict_and_all_of_them_make_that_of_the_curve(shifts, words):
    theirs = PUBLISHED.curves["ha2018", "doom-population"]
    y = [a + shift * s for a, s, shift in zip(theirs.y, theirs.spread, shifts, strict=False)]
    result = verdict("dream-curve", record(NEAR, curves=curve(*y)))
    assert result.verdict.text.startswith(words)
    assert len(result.points) == len(shifts)
    assert f"generation 1: {y[0]:.1f} beside {theirs.y[0]:.1f} ± {theirs.spread[0]:.1f}" in result.notes[1]


def test_a_published_curve_that_has_not_left_the_floor_is_beside_ours():
    """To be above the start of a learning curve says nothing."""
    theirs = PUBLISHED.curves["ha2018", "doom-population"]
    floor = sample([theirs.y[0] + 0.9 * theirs.spread[0]])
    lines = curve(theirs.y[0] + 3 * theirs.spread[0])
    result = verdict("dream-curve", record(NEAR, curves=lines, controls={"uniform random": floor}))
    assert result.verdict.text == "beside"
    assert result.notes[0].startswith("no verdict: the published curve has not left")
    above = sample([theirs.y[0] + 1.1 * theirs.spread[0]])
    result = verdict("dream-curve", record(NEAR, curves=lines, controls={"uniform random": above}))
    assert result.verdict.text.startswith("above the curve (1 of 1 bin")


def test_a_curve_names_the_seeds_that_it_lacks():
    theirs = PUBLISHED.curves["ha2018", "doom-population"]
    lines = curve(*theirs.y[:2])
    found = compare(
        ha2018.SUITE, ROWS["dream-curve"],
        [record(NEAR, 0, curves=lines), record(NEAR, 1, curves=lines, finished=False)], PUBLISHED,
    )  # fmt: skip
    assert found.notes[-2:] == ("seed 1: unfinished", "not run: seed 2")
    with pytest.raises(ValueError, match="no curve 'dream population mean', which other seeds have"):
        compare(ha2018.SUITE, ROWS["dream-curve"], [record(NEAR, 0, curves=lines), record(NEAR, 1)], PUBLISHED)


def test_the_mean_distance_of_a_curve_is_as_uncertain_as_so_many_published_runs():
    y, spread = [100.0, 200.0], [10.0, 20.0]
    found = [distance(seeds, y, spread) for seeds in ([[110.0, 220.0]], [[110.0, 220.0]] * 4, [[90, 180], [130, 260]])]
    assert [list(bins) for bins, _ in found] == [[1.0, 1.0]] * 3
    assert [mean for _, (mean, _, _) in found] == [1.0] * 3
    widths = [high - low for _, (_, low, high) in found]
    assert widths[0] == pytest.approx(2 * 1.96, rel=0.1)  # one run of a law with standard deviation 1
    assert widths[1] == pytest.approx(1.96, rel=0.1)  # four that agree by chance
    assert widths[2] > 3.9  # two that do not agree


def test_a_curve_in_other_units_is_refused_and_a_run_without_one_has_no_verdict():
    data = curve(300.0, 310.0)
    data["dream population mean"]["x_unit"] = "update"
    with pytest.raises(ValueError, match="is not in tics per generation"):
        verdict("dream-curve", record(NEAR, curves=data))
    assert verdict("dream-curve", record(NEAR)).verdict.text == "not run"


def test_dreamerv3_compares_training_episodes_with_training_episodes():
    """Its published scores are of these; what its records call so is the last bin of their curve."""
    rows = [row for suite, row in NUMBERS if suite.paper == "dreamerv3"]
    protocols = {PUBLISHED.numbers["dreamerv3", row.published].protocol for row in rows}
    assert protocols == {"dmc_proprio-training", "atari100k-training"}
    found = [one.data for one in COMMITTED if one.data["paper"] == "dreamerv3"]
    for data in found:
        last = data["measurements"]["last training episodes"]
        assert last["protocol"] == "dmc_proprio-training"
        assert last["value"] == pytest.approx(data["curves"]["training return"]["y"][-1], rel=1e-5)  # six digits
    suite = next(suite for suite in SUITES if suite.paper == "dreamerv3")
    row = next(row for row in rows if any(is_of(one, suite, row.ours.of) for one in COMMITTED))
    mine = [one for one in COMMITTED if is_of(one, suite, row.ours.of)]
    fresh = replace(row, ours=replace(row.ours, name="value"))
    with pytest.raises(ValueError, match="protocol 'dmc_proprio-episodes', compared with 'dmc_proprio-training'"):
        compare(suite, fresh, mine, PUBLISHED)


def test_no_control_of_a_claim_of_the_paper_has_a_curve_row():
    for suite in SUITES:
        controls = {
            one.of for paper, row in CLAIMS if paper is suite and row.asserted_by == "paper" for one in row.control
        }
        for row in suite.rows:
            if isinstance(row, Curve):
                assert "untrained" not in row.ours.of.claim
                assert row.ours.of not in controls


# --- calibrations and numbers beside ----------------------------------------------------------------------------------


def calibration(values: list[float]) -> Record:
    return record(values, suite="calibration", claim="random-uniform", budget={})


def test_a_calibration_agrees_or_differs_and_is_no_result():
    assert verdict("random-uniform", calibration([100.0, 300.0] * 50)).verdict.text == "agrees"
    assert verdict("random-uniform", calibration([900.0, 950.0] * 50)).verdict.text == "differs"
    for suite in SUITES:
        for row in suite.rows:
            if row.__class__ is Calibration:
                assert row.ours.of.suite == "calibration"


def test_a_number_beside_has_no_verdict():
    one = record([190.0, 200.0], suite="night", claim="dream-transfer-tau0.10")
    row: Row = ROWS["night-real-tau0.10"]
    assert compare(ha2018.SUITE, row, [one], PUBLISHED).verdict.text == "beside"


def test_percentages_keep_two_digits():
    assert [percent(x) for x in (0.02, 0.6, 0.0011, 1.0, 0.0)] == ["2 %", "60 %", "0.11 %", "100 %", "0 %"]
