"""AtariARI's protocol: splits, draws, probes, and a score that can be resampled over episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from ijepa import ram_probe
from ijepa.games import Variable
from ijepa.play import Play
from ijepa.ram_probe import Part, Plateau, Predictions, Probes

VARIABLES = (
    Variable("player_x", 3, ("agent_localization",)),
    Variable("ball_x", 5, ("small_object_localization", "misc")),
    Variable("constant", 7, ("misc",)),
    Variable("tile_color", 9, ()),
)


def play(lengths, seed=0):
    """One player whose frames are numbered; the bytes are random but for byte 7."""
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    ram = rng.integers(0, 20, (steps, 128), np.uint8)
    ram[:, 7] = rng.random(steps) < 0.05
    starts = np.cumsum([0, *lengths[:-1]])
    return Play(np.zeros((steps, 1, 1), np.uint8), ram, np.arange(steps) + 10_000 * seed, starts)


def test_the_split_follows_the_place_in_the_list_and_drops_short_episodes():
    plays = [play([100, 64, 70, 65]), play([80] * 7, seed=1)]
    found = ram_probe.split(plays, VARIABLES)
    assert found.train.lengths.tolist() == [100, 70, 65, 80, 80, 80, 80]
    assert found.validation.lengths.tolist() == [80]
    assert found.test.lengths.tolist() == [80, 80]
    assert found.train.rows[:100].tolist() == list(range(100))
    assert found.test.rows[-1] == 299 + 7 * 80 - 1
    assert [v.name for v in found.variables] == ["player_x", "ball_x", "tile_color"]
    np.testing.assert_array_equal(found.train.labels[:, 1], np.concatenate([p.ram for p in plays])[found.train.rows, 5])


def test_test_frames_known_from_training_are_removed():
    plays = [play([80] * 10)]
    plays[0].digest[650:660] = plays[0].digest[:10]  # in the first test episode, which begins at 640
    plays[0].digest[720:800] = plays[0].digest[80:160]  # all of the second
    found = ram_probe.split(plays, VARIABLES)
    assert found.test.lengths.tolist() == [70]
    assert not set(found.test.rows) & set(range(650, 660))


def test_a_test_episode_with_one_frame_left_is_dropped():
    for known, lengths in ((78, [2, 80]), (79, [80])):
        plays = [play([80] * 10)]
        plays[0].digest[640 : 640 + known] = plays[0].digest[:known]
        assert ram_probe.split(plays, VARIABLES).test.lengths.tolist() == lengths


def test_a_variable_of_just_enough_entropy_is_kept(monkeypatch):
    monkeypatch.setattr(ram_probe, "entropy", lambda values: 0.6)
    assert ram_probe.split([play([80] * 10)], VARIABLES).variables == VARIABLES


def test_a_test_of_less_than_a_batch_is_named():
    plays = [play([80] * 10)]
    plays[0].digest[640:736] = plays[0].digest[:96]
    with pytest.raises(ValueError, match="no 64 test frames"):
        ram_probe.split(plays, VARIABLES)


def test_too_little_play_is_named():
    with pytest.raises(ValueError, match="3 episodes of more than 64 steps are too few"):
        ram_probe.split([play([80, 80, 80, 10])], VARIABLES)


def test_entropy_is_in_nats():
    assert ram_probe.entropy(np.array([1, 1, 2, 2])) == pytest.approx(np.log(2))
    assert ram_probe.entropy(np.zeros(9)) == 0


def test_draws_are_uniform_over_episodes_not_over_frames():
    lengths = np.array([100, 1900])
    part = Part(np.arange(2000), lengths, np.zeros((2000, 1)))
    positions, episode = part.batches(np.random.default_rng(0))
    assert positions.shape == episode.shape == (31, 64)
    assert abs(episode.mean() - 0.5) < 0.05
    assert ((positions >= 100) == (episode == 1)).all()
    assert positions.min() < 5
    assert positions.max() > 1900


def test_a_step_of_all_probes_is_that_of_torch_for_each():
    generator = torch.Generator().manual_seed(0)
    probes = Probes(12, 3, generator)
    layers = []
    for v in range(3):
        layer = nn.Linear(12, 256)
        with torch.no_grad():
            layer.weight.copy_(probes.weights[v])
            layer.bias.copy_(probes.biases[v])
        layers.append((layer, torch.optim.Adam(layer.parameters(), lr=3e-4, eps=1e-5)))
    for k, active in enumerate(([0, 1, 2], [0, 1, 2], [0, 2], [2])):
        x = torch.randn(64, 12, generator=generator)
        labels = torch.randint(256, (64, 3), generator=generator)
        if k == 2:
            probes.optimizer.param_groups[2]["lr"] = layers[2][1].param_groups[0]["lr"] = 1e-4
        probes.step(x, labels[:, active], active)
        for v in active:
            layer, optimizer = layers[v]
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x), labels[:, v]).backward()
            optimizer.step()
    for v, (layer, _) in enumerate(layers):
        torch.testing.assert_close(probes.weights[v], layer.weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(probes.biases[v], layer.bias, rtol=0, atol=1e-6)


def test_the_plateau_is_that_of_torch():
    rng = np.random.default_rng(0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.2, 5, min_lr=1e-5)
    ours = Plateau()
    for k in range(60):
        accuracy = float(1 - 0.9 ** min(k, 8) + 0.01 * rng.random())
        ours.update(accuracy)
        theirs.step(accuracy)
        assert ours.lr == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.is_done


def test_a_probe_stops_after_fifteen_epochs_without_progress():
    plateau = Plateau()
    plateau.update(0.5)
    for k in range(15):
        assert not plateau.is_done, k
        plateau.update(0.5)
    assert plateau.is_done


def linear_task(lengths, seed):
    """Labels that are the larger of the first four features, and one that is noise."""
    rng = np.random.default_rng(seed)
    x = torch.randn(sum(lengths), 8, generator=torch.Generator().manual_seed(seed))
    labels = np.stack([x[:, :4].argmax(1).numpy(), rng.integers(0, 4, len(x))], 1)
    return 10 * x, Part(np.arange(len(x)), np.array(lengths), labels)


def test_probes_learn_what_is_linear_and_nothing_else():
    parts = {name: linear_task([200] * n, k) for k, (name, n) in enumerate((("a", 10), ("b", 2), ("c", 4)))}
    data = ram_probe.ProbeData(parts["a"][1], parts["b"][1], parts["c"][1], VARIABLES[:2])
    features = {id(part): x for x, part in parts.values()}
    found = ram_probe.train_probes(lambda part: features[id(part)], data, 100, 0, lambda: None)
    f1 = ram_probe.weighted_f1(ram_probe.counts(found).sum(0))
    assert f1[0] > 0.85
    assert f1[1] < 0.45
    again = ram_probe.train_probes(lambda part: features[id(part)], data, 100, 0, lambda: None)
    np.testing.assert_array_equal(found.predicted, again.predicted)


def predictions(episodes=6, frames=50, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (episodes * frames, 3))
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 6, truth.shape))
    return Predictions(predicted, truth, np.repeat(np.arange(episodes), frames))


def test_f1_is_that_of_scikit_learn():
    found = predictions()
    ours = ram_probe.weighted_f1(ram_probe.counts(found).sum(0))
    for v in range(3):
        theirs = f1_score(found.truth[:, v], found.predicted[:, v], average="weighted", zero_division=0)
        assert ours[v] == pytest.approx(theirs)


def test_the_score_is_the_mean_over_categories():
    tables = ram_probe.counts(predictions()).sum(0)
    f1 = ram_probe.weighted_f1(tables)
    ours = ram_probe.category_average(tables, VARIABLES[:3])
    assert ours == pytest.approx(np.mean([f1[0], f1[1], (f1[1] + f1[2]) / 2]))


def test_influences_have_the_score_as_mean_and_its_spread():
    tables, variables = ram_probe.counts(predictions(12)), VARIABLES[:3]
    values = ram_probe.influences(tables, variables)
    assert values.mean() == pytest.approx(float(ram_probe.category_average(tables.sum(0), variables)))
    low, high = ram_probe.bootstrap(tables, variables, 1000, 0)
    assert low < values.mean() < high
    assert values.std() / 12**0.5 == pytest.approx((high - low) / 3.92, rel=0.4)


def test_the_majority_says_the_most_frequent_training_value():
    parts = [Part(np.arange(200), np.array([100, 100]), np.full((200, 2), value)) for value in (3, 3, 4)]
    parts[0].labels[:60, 1] = 4
    found = ram_probe.majority(ram_probe.ProbeData(parts[0], parts[1], parts[2], VARIABLES[:2]))
    assert set(found.predicted.reshape(-1)) == {3}
    assert not (found.predicted == found.truth).any()


def test_the_majority_meets_every_test_frame_once():
    train = Part(np.arange(90), np.array([90]), np.zeros((90, 1), int))
    test = Part(np.arange(70), np.array([3, 67]), np.arange(70)[:, None])
    found = ram_probe.majority(ram_probe.ProbeData(train, train, test, VARIABLES[:1]))
    assert found.truth[:, 0].tolist() == list(range(70))
    assert found.episode.tolist() == [0] * 3 + [1] * 67
