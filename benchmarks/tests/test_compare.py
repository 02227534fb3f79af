"""Each verdict, reached by hand-made records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import content, ha2018, published
from benchmarks.compare import Result, compare, percent
from benchmarks.records import Record
from benchmarks.tests.hand_made import record, sample

PUBLISHED = published.load()
ROWS = {row.id: row for row in ha2018.SUITE.rows}
NEAR = [500.0, 900.0, 1600.0]


def verdict(row_id: str, *found: Record) -> Result:
    return compare(ha2018.SUITE, ROWS[row_id], found, PUBLISHED)


def curve(*y: float) -> dict[str, Any]:
    x = list(range(1, len(y) + 1))
    return {"dream population mean": {"x": x, "y": list(y), "x_unit": "generation", "y_unit": "tics"}}


def test_not_run_without_a_record_of_the_row():
    assert verdict("score").verdict.text == "not run"
    other = record(NEAR, suite="night")
    assert verdict("score", other).verdict.text == "not run"


def test_reproduced_at_the_published_budget():
    result = verdict("score", record(NEAR))
    assert result.verdict.text == "reproduced"
    assert (result.mean, result.std_over) == (1000.0, "episodes")


def test_above_and_below_outside_two_std_and_without_overlap():
    assert verdict("random-uniform", calibration([900.0, 950.0])).verdict.text == "above"
    assert verdict("random-held", held([100.0, 120.0])).verdict.text == "below"


def test_reproduced_by_overlap_where_no_std_is_published():
    assert verdict("random-held", held([200.0, 420.0, 310.0])).verdict.text == "reproduced"


def test_the_number_of_another_method_is_never_reproduced():
    row = replace(ROWS["score"], kind="beside")
    assert compare(ha2018.SUITE, row, [record(NEAR)], PUBLISHED).verdict.text == "level"
    assert compare(ha2018.SUITE, row, [record([3000.0, 3100.0])], PUBLISHED).verdict.text == "above"


def test_reduced_names_the_share_of_frames_and_every_other_share_in_words():
    budget = {"env_frames": 61_618, "generations": 40, "rollouts": 5120, "episodes_collected": 200}
    result = verdict("score", record(NEAR, budget=budget))
    assert result.verdict.text == "reduced (2 %)"
    assert "2.2 % of the CMA-ES generations" in result.budget
    assert "100 % of the parameters" in result.budget


def test_a_smaller_model_or_an_unknown_size_is_reduced_too():
    assert verdict("score", record(NEAR, parameters={"V": 612_700})).verdict.text == "reduced (10 %)"
    assert verdict("score", record(NEAR, budget={"env_frames": 3_080_900})).verdict.text == "reduced (100 %)"


def test_a_larger_budget_is_refused_and_not_called_a_reproduction():
    budget = {**record(NEAR).data["budget"], "env_frames": 4_000_000}
    with pytest.raises(ValueError, match="larger"):
        verdict("score", record(NEAR, budget=budget))


def test_another_protocol_is_refused():
    with pytest.raises(ValueError, match="protocol 'doom-dream'"):
        verdict("score", record(NEAR, protocol="doom-dream"))
    with pytest.raises(ValueError, match="protocol 'doom-dream'"):
        verdict(
            "transfer",
            record(NEAR, protocol="doom-dream", controls={"uniform random": sample([1], "doom-dream")}),
        )
    with pytest.raises(ValueError, match="another protocol"):
        verdict("transfer", record(NEAR, controls={"uniform random": sample([1.0], "doom-dream")}))
    with pytest.raises(ValueError, match="unknown protocol"):
        verdict("score", record(NEAR, protocol="doom-7"))


def test_claim_holds_for_all_seeds():
    found = [record([300.0, 320.0, 340.0], seed) for seed in (0, 1, 2)]
    result = verdict("transfer", *found)
    assert result.verdict.text == "claim holds"
    assert result.std_over == "seeds"


def test_claim_with_fewer_seeds_than_planned_says_so():
    assert verdict("transfer", record([300.0, 320.0])).verdict.text == "claim holds (one seed of 3 planned)"
    assert "not run: seed 1, 2" in verdict("transfer", record([300.0, 320.0])).notes


def test_claim_fails_if_one_interval_reaches_the_control():
    found = [record([300.0, 320.0], 0), record([100.0, 500.0], 1), record([300.0, 320.0], 2)]
    assert verdict("transfer", *found).verdict.text == "claim fails (2 of 3 seeds)"


def test_claim_fails_if_the_control_is_better():
    assert verdict("transfer-held", record([100.0, 120.0])).verdict.text == "claim fails (0 of 1 seeds)"


def test_seeds_beyond_the_plan_and_unfinished_ones_count():
    found = [record([300.0, 320.0], seed) for seed in (0, 1, 2)]
    assert verdict("transfer", *found, record([1.0, 2.0], 7)).verdict.text == "claim fails (3 of 4 seeds)"
    unfinished = record([300.0], 7, finished=False)
    result = verdict("transfer", *found, unfinished)
    assert result.verdict.text == "claim fails (3 of 4 seeds)"
    assert "seed 7: unfinished" in result.notes
    assert verdict("score", unfinished).verdict.text == "not run (unfinished)"


def test_a_claim_without_its_control_is_refused():
    with pytest.raises(ValueError, match="needs the control 'held random'"):
        verdict("transfer-held", record(NEAR, controls={}))


def duel(*found: Record, **changes: Any) -> Result:
    """The row "transfer" with another run, of claim "rival", in place of its control, and no published number."""
    row = replace(ROWS["transfer"], **{"control": "", "rival": "rival", "published": "", **changes})
    return compare(ha2018.SUITE, row, found, PUBLISHED)


def test_a_claim_against_another_run():
    ours = [record([300.0, 320.0], seed) for seed in (0, 1, 2)]
    theirs = [record([250.0, 305.0], seed, claim="rival") for seed in (0, 1, 2)]
    result = duel(*theirs, *ours)
    assert result.verdict.text == "claim holds"
    assert result.reported is None
    assert result.mean == 310.0
    assert "seed 0: 310.0 [300.0, 320.0] against 277.5 (rival), 2 episodes" in result.notes
    better = record([250.0, 400.0], 1, claim="rival")
    assert duel(theirs[0], better, theirs[2], *ours).verdict.text == "claim fails (2 of 3 seeds)"
    assert duel(ours[0], theirs[0]).verdict.text == "claim holds (one seed of 3 planned)"


def test_a_rival_of_another_seed_suite_or_task_is_none():
    ours = record([300.0, 320.0])
    for changes in ({"suite": "night"}, {"task": "car"}):
        assert duel(ours, record([1.0], claim="rival", **changes)).verdict.text == "not run"
    assert duel(ours, record([1.0], 1, claim="rival")).verdict.text == "not run"


def test_a_seed_without_both_runs_is_not_run():
    ours, theirs = [record([300.0, 320.0], seed) for seed in (0, 1)], record([1.0], claim="rival")
    assert duel(*ours).verdict.text == "not run"
    assert duel(theirs).verdict.text == "not run"
    result = duel(*ours, theirs)
    assert result.verdict.text == "claim holds (one seed of 3 planned)"
    assert "not run: seed 1, 2" in result.notes


def test_an_unfinished_rival_is_no_rival_that_was_beaten():
    ours = [record([300.0, 320.0], seed) for seed in (0, 1)]
    unfinished = record([1.0], claim="rival", finished=False)
    assert duel(ours[0], unfinished).verdict.text == "not run (unfinished)"
    result = duel(*ours, unfinished, record([1.0], 1, claim="rival"))
    assert result.verdict.text == "claim fails (1 of 2 seeds)"
    assert "seed 0: unfinished" in result.notes


def test_a_rival_of_another_protocol_or_budget_is_refused():
    ours = record([300.0, 320.0])
    with pytest.raises(ValueError, match="rival 'rival' was run under another protocol"):
        duel(ours, record([1.0], claim="rival", protocol="doom-dream"))
    budget = {**ours.data["budget"], "env_frames": 7}
    with pytest.raises(ValueError, match="rival 'rival' spent 7 env_frames"):
        duel(ours, record([1.0], claim="rival", budget=budget))
    assert duel(ours, record([1.0], claim="rival", budget=budget), fraction_of="rollouts").mean == 310.0


def test_a_rival_beside_a_published_number_of_the_same_protocol():
    result = duel(record([300.0]), record([1.0], claim="rival"), published=ROWS["transfer"].published)
    assert result.reported is not None
    both = [record([300.0], claim=claim, protocol="doom-dream") for claim in ("dream-transfer", "rival")]
    with pytest.raises(ValueError, match="protocol 'doom-dream'"):
        duel(*both, published=ROWS["transfer"].published)


def test_on_and_off_the_curve_at_the_last_common_generation():
    on = record(NEAR, curves=curve(0.0, 0.0, 345.0))
    assert verdict("dream-curve", on).verdict.text == "on the curve (one seed of 3 planned)"
    off = record(NEAR, seed=1, curves=curve(305.0, 342.0, 500.0))
    assert verdict("dream-curve", on, off).verdict.text == "off the curve (1 of 2 seeds)"
    all_on = [record(NEAR, seed, curves=curve(345.0)) for seed in (0, 1, 2)]
    assert verdict("dream-curve", *all_on).verdict.text == "on the curve"
    assert (
        content.reported(verdict("dream-curve", off))
        == f"{PUBLISHED.curves['ha2018', 'doom-population'].y[2]:.1f} (curve)"
    )
    assert content.reported(verdict("dream-curve")) == "published curve"


def test_a_curve_in_another_unit_or_a_missing_one():
    wrong = curve(345.0)
    wrong["dream population mean"]["x_unit"] = "step"
    with pytest.raises(ValueError, match="not in tics per generation"):
        verdict("dream-curve", record(NEAR, curves=wrong))
    assert verdict("dream-curve", record(NEAR)).verdict.text == "off the curve (0 of 1 seeds)"


def test_a_row_without_published_number_is_refused():
    row = replace(ROWS["score"], published="no-such-key")
    with pytest.raises(ValueError, match="no published number 'no-such-key'"):
        compare(ha2018.SUITE, row, [], PUBLISHED)


def test_percent_keeps_two_digits():
    assert [percent(x) for x in (0, 0.0028, 0.02, 0.355, 1)] == ["0 %", "0.28 %", "2 %", "36 %", "100 %"]


def calibration(values: list[float], **changes: Any) -> Record:
    changes = {"claim": "random-uniform", **changes}
    return record(values, suite="calibration", budget={}, parameters={}, **changes)


def held(values: list[float]) -> Record:
    measurements = {"kept length": sample(values, "doom-collect")}
    return calibration([50.0, *values], claim="random-held", measurements=measurements)
