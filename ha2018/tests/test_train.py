"""The real train command: killed and resumed, on two ranks, with bad options, with a loss that is not finite."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.distributed.run import get_args_parser

from common import checkpoint, dist
from common.files import write_checked
from common.run import NonFiniteError, Run
from common.testing import log_lines as lines
from common.testing import same_checkpoints
from ha2018 import encoding, evaluate, evolution, train
from ha2018.config import Config
from ha2018.tests.calculation import calculate
from ha2018.tests.conftest import SMOKE, params_of

TOTAL = {"vision": 4, "memory": 20, "controller": 10}


def kill_within(process, folder, stage, rng):
    """SIGKILL at a random moment after a random checkpoint of the first half of `stage`.

    Then as if the newest checkpoint had not been finished, and half a line of the log just been written.
    """
    wanted = folder / stage / f"step-{rng.randint(2, TOTAL[stage] // 2):09d}.safetensors"
    while not wanted.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02))
    process.kill()
    process.communicate()
    assert process.returncode == -9
    newest = checkpoint.load_latest(folder / stage)
    assert newest is not None
    assert newest.step < TOTAL[stage], "killed too late to show anything"
    newest.path.unlink()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f'{{"stage": "{stage}", "st')


def test_killed_in_every_stage_and_resumed_equals_one_go(trained, start, tmp_path):
    """One of the restarts is for the stages up to M alone."""
    folder, rng = tmp_path / "run", random.Random(0)
    words = ("ha2018.train", *SMOKE, "--run", str(folder))
    kill_within(start(*words), folder, "vision", rng)
    kill_within(start(*words), folder, "memory", rng)
    process = start(*words, "--stage", "memory")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not (folder / "controller").exists()
    kill_within(start(*words), folder, "controller", rng)
    assert not (folder / "controller.safetensors").exists()
    process = start(*words)
    _, errors = process.communicate()
    assert process.returncode == 0, errors

    assert lines(folder) == lines(trained)
    names = ["controller.safetensors", "first_frames.safetensors", "config.json"]
    for name in [*names, *(f"latents/{role}-00000.safetensors" for role in ("train", "holdout"))]:
        assert (folder / name).read_bytes() == (trained / name).read_bytes(), name
    for stage, total in TOTAL.items():
        same_checkpoints(folder / stage, trained / stage)
        assert checkpoint.load_final(folder / stage, total).step == total
    assert len(json.loads((folder / "meta.json").read_text())["restarts"]) == 4


def test_encoded_frames_are_needed_by_nothing_that_follows(trained, tmp_path):
    """Frames gone and the folder moved: M and C go on to the same numbers."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames", "memory", "controller*"))
    train.main([*SMOKE, "--run", str(folder)])
    assert torch.equal(params_of(folder), params_of(trained))
    same_checkpoints(folder / "memory", trained / "memory")


def test_a_run_of_the_version_before_goes_on(trained, tmp_path, capsys):
    """Collected and V trained there: no identity, no checksums of shards; encoding, M and C are the same here."""
    folder = tmp_path / "old"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("latents", "first*", "memory", "controller*"))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["identity"]
    (folder / "meta.json").write_text(json.dumps(meta))
    for path in (folder / "frames").iterdir():
        path.write_bytes(path.read_bytes()[:-73])
    log = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in log if '"stage": "vision' in line))
    (folder / ".metrics.sum").unlink()
    train.main([*SMOKE, "--run", str(folder)])
    assert capsys.readouterr().err.count("earlier version") == 1
    assert torch.equal(params_of(folder), params_of(trained))
    assert lines(folder) == lines(trained)


def test_a_finished_run_started_again_changes_nothing(trained, capsys):
    before = {
        path: path.read_bytes()
        for path in trained.rglob("*.*")
        if path.name not in (".lock", "meta.json", "clock.json")
    }
    seeds = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    try:
        train.main([*SMOKE, "--run", str(trained)])
    finally:
        torch.set_rng_state(seeds[0])
        torch.use_deterministic_algorithms(seeds[1])
    assert "trained" in capsys.readouterr().out
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_two_ranks_equal_one(start, tmp_path):
    """Costs and controller exactly; gradients, which are summed in another order, to rounding."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ha2018.tests.calculation")
    process = start(*launch, str(folders[1]))
    calculate(folders[0])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    one, two = (safetensors.torch.load_file(folder / "result.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for name, value in one.items():
        tolerance = 1e-6 * float(value.abs().max()) if "gradient" in name else 0
        torch.testing.assert_close(two[name], value, rtol=0, atol=tolerance, msg=name)
    assert len(one["costs"].unique()) > 3
    assert lines(folders[0] / "run") == lines(folders[1] / "run")


def test_a_loss_that_is_not_finite_names_stage_step_term_and_checkpoint(tmp_path):
    """The second of two updates meets a latent that is not a number."""
    config = Config(
        z_size=2, hidden_size=4, memory_batch=1, memory_length=10, memory_epochs=1, episodes=1, checkpoint_seconds=0
    )
    mu = torch.zeros(20, 2)
    mu[15] = torch.nan
    tensors = {"mu": mu, "logvar": torch.zeros(20, 2), "action": torch.zeros(20, 1), "length": torch.tensor([20])}
    run = Run.open("ha2018", config, "smoke", tmp_path / "run")
    (run.folder / "latents").mkdir()
    path = encoding.latents_path(run.folder, "train", 0)
    write_checked(path, safetensors.torch.save(tensors), encoding.latents_identity(run.identity, "train", 0))
    encoding.save_first_frames(run, encoding.load_latents(run, "train", 1), 1)
    with pytest.raises(NonFiniteError, match=r"memory step 2: z_nll is nan; .*memory/step-000000001\.safetensors"):
        train.train_memory(run, config, dist.setup())
    assert [line["step"] for line in lines(run.folder)] == [1]


def test_the_learning_rate_of_m_is_the_official_schedule():
    config = Config()
    assert train.memory_lr(0, config) == 1e-3
    assert train.memory_lr(24_400, config) == pytest.approx(7.86e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--z-size", "0"], "z_size"),
        (["--task", "pong"], "pong"),
        (["--population", "7"], "population must be even, not 7"),
        (["--sett", "x=1"], "--sett"),
        (["--set", "x=1"], "'x'"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--preset", "nite"], "night"),
        (["--memory-lr-end", "1"], "memory_lr_end"),
        (["--vision-lr", "fast"], "fast"),
        (["--stage", "sleep"], "sleep"),
        (["--longest-hold", "0"], "longest_hold"),
        (["--sigma0", "0"], "sigma0"),
        (["--min-frames", "2100"], "no episode has more than 2100 frames"),
        (["--task", "car", "--min-frames", "20", "--max-steps", "20"], "no episode has more than 20 frames"),
        (["--task", "car", "--memory-batch", "400"], "more than 8 episodes of 60 have"),
    ],
)
@pytest.mark.parametrize("program", [train, evaluate])
def test_bad_options_end_in_one_line_and_leave_nothing(program, words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        program.main(["--preset", "smoke", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert program is evaluate or complaint in error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_random_policy_asks_for_its_device_before_it_plays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--preset", "smoke", "--random", "uniform", "--device", "cuda"])
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n"), "cuda" in error) == (2, 1, True)
    assert not list(tmp_path.iterdir())


def children(pid):
    """Of all threads of a process; none of one that has ended, as git, asked for the commit, does while we look."""
    try:
        return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    except OSError:
        return []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the game process")
def test_a_game_process_that_dies_ends_the_training_in_one_line(start, tmp_path):
    """It waited for ever: the engine, which outlived the process, held its pipe."""
    words = ("--workers", "1", "--episodes", "500", "--run", str(tmp_path / "run"), "--stage", "collect")
    process = start("ha2018.train", *SMOKE, *words)
    worker, engine = list[int](), list[int]()
    while not engine:  # the process of the games, and the engine that it has started
        assert process.poll() is None, process.communicate()[1]
        worker = [pid for pid in children(process.pid) if children(pid)]
        engine = children(worker[0]) if worker else []
        time.sleep(0.01)
    os.kill(worker[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "error: game process 0 of 1 died with exit code -9\n"
    end = time.monotonic() + 10
    while Path(f"/proc/{engine[0]}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{engine[0]}").exists()


def test_torchrun_leaves_our_options_alone_behind_two_dashes():
    """As the README has it; without the dashes it takes --run for an abbreviation of its own --run-path."""
    words = ["--nproc-per-node=2", "-m", "ha2018.train", "--", "--preset", "smoke", "--run", "folder"]
    options = get_args_parser().parse_args(words)
    assert options.training_script_args == ["--preset", "smoke", "--run", "folder"]


def test_a_run_of_other_settings_is_refused(trained, capsys):
    before = (trained / "meta.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--run", str(trained), "--seed", "1", "--hidden-size", "16"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for words in ("seed (was 0, now 1)", "hidden_size (was 32, now 16)", "--run"):
        assert words in error
    assert (trained / "meta.json").read_bytes() == before


def test_the_log_tells_every_stage(trained):
    stages = [name for name, _ in itertools.groupby(line["stage"] for line in lines(trained))]
    assert stages[:5] == ["vision", "vision holdout", "memory", "memory holdout", "controller"]
    assert [line["step"] for line in lines(trained) if line["stage"] == "controller trial"] == [2, 4, 6, 8, 10]
    best = params_of(trained)
    assert best.shape == (128,)
    assert torch.equal(best, (best * 10_000).round() / 10_000)


def test_the_controller_kept_is_the_mean_with_the_best_trial(tmp_path):
    """Trials of 3, 9 and 5 tics: the second mean is the answer, also when the third trial comes after a resume."""
    config = Config(z_size=2, hidden_size=3, population=4, generations=3, trial_every=1, checkpoint_seconds=0)
    scores, means = iter([3.0, 9.0, 5.0]), []

    def returns(params, seeds):
        if len(params) == config.trial_seeds:
            means.append(torch.from_numpy(params[0]))
            score = next(scores)
            if score == 5 and len(means) == 3 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                raise KeyboardInterrupt
            return params[:, :1] * 0 + score, 0
        return (params**2).sum(1, keepdims=True), 0

    arguments = config, dist.setup(), returns
    run = Run.open("ha2018", config, "smoke", tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        evolution.evolve(run, *arguments)
    scores = iter([5.0])
    run = Run.open("ha2018", config, "smoke", tmp_path / "run")
    best = evolution.evolve(run, *arguments)
    assert torch.equal(torch.from_numpy(best), means[1])
    assert not torch.equal(means[1], means[3])


def test_carracing_killed_and_resumed_equals_one_go(start, tmp_path):
    """Killed while C evolves in the game, whose processes end with it."""
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("ha2018.train", "--task", "car", "--preset", "smoke", "--workers", "1", "--run")
    process = start(*words, str(two), "--stage", "memory")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    shutil.copytree(two, one)
    process = start(*words, str(one))
    process.communicate()
    assert process.returncode == 0
    process = start(*words, str(two))
    while not list((two / "controller").glob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    found = checkpoint.load_latest(two / "controller")
    assert found is not None
    assert found.step < 4, "killed too late to show anything"
    process = start(*words, str(two))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert lines(one) == lines(two)
    assert (one / "controller.safetensors").read_bytes() == (two / "controller.safetensors").read_bytes()
    generations = [line for line in lines(one) if line["stage"] == "controller"]
    assert [line["env_frames"] for line in generations] == [4 * 60] * 4
    trials = [line for line in lines(one) if line["stage"] == "controller trial"]
    assert [(line["step"], line["env_frames"]) for line in trials] == [(2, 120), (4, 120)]
