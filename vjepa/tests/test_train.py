"""The real train command: killed and resumed, on two ranks, with bad options, with a loss that is not finite."""

from __future__ import annotations

import functools
import json
import random
import re

import numpy as np
import pytest
import torch

from common import checkpoint, dist, testing
from common.config import from_dict, parse
from common.run import NonFiniteError, Run
from vjepa import crops, evaluate, official, train
from vjepa.ablations import pixel_step
from vjepa.build import check_masks, new_model, new_schedule
from vjepa.config import PRESETS, TASKS, Config
from vjepa.data import MicroBatches
from vjepa.jepa import clip_gradients
from vjepa.shapes import Shapes
from vjepa.tests.calculation import CONFIG, calculate
from vjepa.tests.conftest import SMOKE
from vjepa.videos import DamagedVideoError
from vjepa.vit import tubelet_grid

TOTAL = 30
MODULES = ("encoder/", "predictor/", "target_encoder/")


def newest(folder) -> checkpoint.Checkpoint:
    found = checkpoint.load_latest(folder / "jepa")
    assert found is not None
    return found


def test_killed_twice_and_resumed_equals_one_go(trained, start, tmp_path):
    """SIGKILL at a random moment; then as if the newest checkpoint had not been finished, and half a line been left."""
    folder, rng = tmp_path / "run", random.Random(0)
    words = ("vjepa.train", *SMOKE, "--run", str(folder))
    for share in (0.2, 0.6):
        is_time = functools.partial(testing.has_step, folder, "jepa", int(share * TOTAL) - rng.randint(0, 2))
        testing.kill_when(start(*words), is_time)
        found = newest(folder)
        assert found.step < TOTAL, "killed too late to show anything"
        found.path.unlink()
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"stage": "jepa", "st')
    testing.finish(start(*words))
    testing.same_log(folder, trained)
    testing.same_checkpoints(folder / "jepa", trained / "jepa")
    assert newest(folder).step == TOTAL
    assert len(json.loads((folder / "meta.json").read_text())["restarts"]) == 2


def test_the_number_of_workers_changes_nothing(trained, tmp_path):
    train.main([*SMOKE, "--workers", "0", "--run", str(tmp_path / "run")])
    testing.same_checkpoints(tmp_path / "run" / "jepa", trained / "jepa")


def test_two_ranks_equal_one(start, tmp_path):
    """Each takes one of the two micro-batches; to the rounding of a sum in another order, but for the keys' bias."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vjepa.tests.calculation")
    process = start(*launch, str(folders[1]))
    calculate(folders[0])
    testing.finish(process)
    # What cannot be read is counted over all ranks.
    known = [(folders[1] / f"known-{rank}.txt").read_text() for rank in (0, 1)]
    assert known == ["0.mp4 is no video 1.mp4 is no video"] * 2
    one, two = (newest(folder / "run").tensors for folder in folders)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith(MODULES) and "qkv.bias" not in name:
            torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5, msg=name)


def test_the_log_has_the_loss_and_the_three_watches(trained):
    found = testing.log_lines(trained)
    assert [line["step"] for line in found] == [1, 11, 21, 30]
    for line in found:
        assert line.keys() == {"stage", "step", "loss", "std", "rank", "vs_constant"}
    assert found[-1]["loss"] < found[0]["loss"]


def test_a_loss_that_is_not_finite_names_step_term_and_checkpoint(tmp_path, monkeypatch):
    config = Config(**{**vars(CONFIG), "updates": 15})
    calls: list[int] = []

    def to_input(clips, statistics, device):
        calls.append(1)
        return crops.to_input(clips, statistics, device) * (float("nan") if len(calls) > 2 * 5 else 1.0)

    monkeypatch.setattr(train, "to_input", to_input)
    run = Run.open("vjepa", config, "smoke", tmp_path / "run")
    with pytest.raises(NonFiniteError, match=r"jepa step 6: loss is nan; .*step-000000005\.safetensors"):
        train.train_encoder(run, config, dist.setup(), new_model(config, 3), Shapes(32, 4, 20, 0))


class Damaged(Shapes):
    """Drawn shapes of which some cannot be read."""

    bad: tuple[int, ...] = ()

    def read(self, index, rng=None):
        if index in self.bad:
            raise DamagedVideoError(f"clip {index} is missing")
        return super().read(index, rng)


def test_a_resumed_run_knows_which_videos_cannot_be_read(tmp_path, capsys):
    clips = Damaged(32, 4, 300, 0)
    batches = MicroBatches(clips, CONFIG, (2, 4, 4))
    batches[0]
    first, second = (f"clip {k} is missing" for k in batches._order[[0, 17]])  # in the first and in the third update
    clips.bad = tuple(batches._order[[0, 17]])
    for named in ((first, second), (second,)):
        run = Run.open("vjepa", CONFIG, "smoke", tmp_path / "run")
        train.train_encoder(run, CONFIG, dist.setup(), new_model(CONFIG, 3), clips)
        assert newest(tmp_path / "run").state["state"]["faults"] == sorted((first, second))
        warned = capsys.readouterr().err.splitlines()
        assert [line.split("; skipped")[0] for line in warned] == [f"warning: {name}" for name in named]
        newest(tmp_path / "run").path.unlink()


def options_of(config, *without):
    words = [f"{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in vars(config).items()]
    return [word.replace("None", "none") for word in words if not word.startswith(("data=", "test_data=", *without))]


def test_an_official_file_takes_the_place_of_the_training(tmp_path):
    model = new_model(CONFIG, 3)
    with torch.no_grad():
        model.target_encoder.norm.bias.add_(1)
    official.export(tmp_path / "file.pth.tar", model, 300, 0.1)
    words = [*options_of(CONFIG, "updates", "init_from"), "updates=0", f"init_from={tmp_path / 'file.pth.tar'}"]
    folder = tmp_path / "run"
    train.main(["--preset", "smoke", "--run", str(folder), "--set", *words])
    found = newest(folder)
    assert found.step == 0
    assert torch.equal(found.tensors["target_encoder/norm.bias"], model.target_encoder.norm.bias)


def test_a_cooldown_goes_on_with_more_and_larger_frames(tmp_path):
    """V-JEPA 2: rotary positions go on counting, so the weights of the first phase fit the second."""
    first = Config(**{**vars(CONFIG), "positions": "rotary", "clip": None})
    official.export(tmp_path / "first.pt", new_model(first, 3), 1, 0.1)
    words = options_of(first, "frames", "size", "init_from", "decay", "updates")
    words += ["frames=8", "size=48,48", "decay=linear", "updates=2", f"init_from={tmp_path / 'first.pt'}"]
    train.main(["--preset", "smoke", "--run", str(tmp_path / "run"), "--set", *words])
    assert newest(tmp_path / "run").step == 2


def test_a_run_without_updates_leaves_the_first_weights_and_is_tested(tmp_path):
    """The untrained control."""
    folder = tmp_path / "run"
    train.main([*SMOKE, "--updates", "0", "--workers", "0", "--run", str(folder)])
    config = from_dict(Config, json.loads((folder / "config.json").read_text()))
    first = new_model(config, 3).target_encoder.state_dict()
    found = newest(folder)
    assert found.step == 0
    assert all(torch.equal(value, found.tensors[f"target_encoder/{name}"]) for name, value in first.items())
    evaluate.main(["--run", str(folder)])
    record = json.loads((folder / "record.json").read_text())
    assert (record["claim"], record["budget"]["updates"], record["curves"]) == ("velocity-r2-untrained", 0, {})
    assert record["value"] == record["controls"]["untrained encoder"]["value"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--task", "shapess"], "shapes"),
        (["--encoder", "enormous"], "encoder"),
        (["--batch-size", "10"], "batch_size 10 is no multiple of micro_batch_size 4"),
        (["--size", "60,64"], "are square, not 60 x 64"),
        (["--size", "36,36"], "a frame of 36 x 36 pixels is no whole number of patches of 8 x 8"),
        (["--frames", "7"], "a clip of 7 frames is no whole number of tubelets of 2"),
        (["--size", "64"], "size takes two numbers"),
        (["--patch", "32"], "a grid of 4 x 1 x 1 tokens is too small for blocks of 0.15"),
        (["--mask-scale", "0.15,1.0"], "no context is left"),
        (["--mask-scale", "0.15"], "a number for each kind of masks"),
        (["--mask-tokens", "1"], "2 kinds of masks need as many mask_tokens, not 1"),
        (["--masking", "random-tube", "--tube-ratio", "0.98"], "tube_ratio"),
        (["--task", "videos"], "task videos needs data"),
        (["--task", "videos", "--data", "nowhere"], "there is no nowhere"),
        (["--init-from", "nowhere.pth.tar"], "there is no file nowhere.pth.tar"),
        (["--batch-size", "128"], "needs more than the 64 there are"),
        (["--positions", "rotary", "--predictor-heads", "3"], "at least 12 channels, not 8"),
        (["--predictor-heads", "5"], "5 heads do not divide a width of 24"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--masking", "none"], "masking"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main(["--preset", "smoke", "--task", "shapes", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not list(tmp_path.iterdir())


def test_every_preset_of_every_task_has_masks_that_fit():
    for preset in PRESETS:
        for task in TASKS:
            config, _ = parse(Config, TASKS, PRESETS, ["--preset", preset, "--task", task], prog="", description="")
            height, width = config.size
            check_masks(config, tubelet_grid(config.frames, height, width, config.tubelet, config.patch))


def test_the_defaults_are_those_of_the_papers():
    config = Config()
    assert PRESETS["paper"].values == {}
    assert (config.batch_size, config.micro_batch_size, config.micro_batches) == (3072, 24, 128)
    rates = new_schedule(config, config.updates)
    assert (rates.updates, rates.total, rates.warmup, rates.clip, rates.clip_from) == (
        90_000,
        112_500,
        12_000,
        10,
        12_300,
    )
    assert (rates.lr_start, rates.lr, rates.lr_end) == (2e-4, 6.25e-4, 1e-6)
    assert rates.clip_at(12_299) is None
    second, cooldown = (Config(**{"task": name, **TASKS[name]}) for name in ("videos-2", "videos-2-cooldown"))
    rates = new_schedule(second, second.updates)
    assert (rates.updates, rates.total, rates.warmup, rates.clip) == (240_000, 300_000, 12_000, None)
    assert {rates.lr_at(k) for k in (12_000, 100_000, 239_999)} == {5.25e-4}
    rates = new_schedule(cooldown, cooldown.updates)
    assert rates.lr_at(11_999) == pytest.approx(1.058e-4)


def test_gradients_of_encoder_and_predictor_are_clipped_apart():
    model = new_model(CONFIG, 3)
    for module, size in ((model.encoder, 100.0), (model.predictor, 1e-3)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, size)
    before = model.predictor.predictor_norm.bias.grad
    assert before is not None
    before = before.clone()
    clip_gradients(model, 10.0)
    norm = torch.stack([p.grad.norm() for p in model.encoder.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(10, rel=1e-4)
    after = model.predictor.predictor_norm.bias.grad
    assert after is not None
    assert torch.equal(after, before)


@pytest.mark.parametrize("program", [train, evaluate])
def test_help_explains_every_field(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    assert "--mask-scale" in capsys.readouterr().out


def test_every_field_is_read():
    """A setting that nothing reads is none."""
    from pathlib import Path

    text = "".join(path.read_text() for path in Path(train.__file__).parent.glob("*.py") if path.name != "config.py")
    text += Path(train.__file__).with_name("config.py").read_text().split("def __post_init__")[1]
    unread = [name for name in vars(Config()) if re.search(rf"\b(config|self)\.{name}\b", text) is None]
    assert unread == []


def test_pixels_as_targets_train_too():
    config = Config(**{**vars(CONFIG), "target": "pixels"})
    model = new_model(config, 3)
    assert model.predictor.predictor_proj.out_features == 3 * 2 * 8 * 8
    batches = MicroBatches(Shapes(32, 4, 20, 0), config, model.encoder.grid)
    clips, _, *pairs = batches[0]
    inputs = crops.to_input(torch.from_numpy(np.array(clips)), Shapes(32, 4, 1, 0).statistics, torch.device("cpu"))
    tensors = [torch.from_numpy(part) for part in pairs]
    loss, tokens = pixel_step(model, inputs, tensors[::2], tensors[1::2])
    assert tokens.shape == (4, 32, 3 * 2 * 8 * 8)
    assert tokens.mean(-1).abs().max() < 1e-5
    loss.backward()
    assert model.encoder.norm.weight.grad is not None
