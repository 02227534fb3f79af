"""Options: layers, conversion, and every mistake answered by exactly one line and exit code 2."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from common.config import Preset, from_dict, parse, setting, to_dict


@dataclass(frozen=True)
class Config:
    task: str = setting("doom", "world")
    seed: int = setting(0, "seed", low=0)
    device: str = setting("cpu", "device")
    vae_batch: int = setting(100, "frames per update, 100 % of them", low=1, high=1000)
    temperature: float = setting(1.15, "tau", low=0.01)
    sizes: tuple[int, ...] = setting((32, 64), "channels", low=1)
    limit: int | None = setting(None, "tics", low=1)
    use_amp: bool = setting(False, "autocast")
    mode: str = setting("mean", "policy", choices=("mean", "sample"))

    def __post_init__(self):
        if self.vae_batch == 13:
            raise ValueError("vae_batch 13 is\nunlucky")


TASKS = {"doom": {}, "carracing": {"temperature": 0.7}}
PRESETS = {
    "smoke": Preset("none", {"vae_batch": 4}, {"carracing": {"vae_batch": 5}}),
    "cpu": Preset("a small claim", {"vae_batch": 50}),
    "paper": Preset("all of it"),
}


def run(*argv, extra=None):
    return parse(Config, TASKS, PRESETS, argv, prog="ha2018.train", description="train", extra=extra)


def test_layers_apply_in_order():
    assert run("--preset", "paper")[0] == Config()
    assert run()[0].vae_batch == 50
    config, options = run("--preset", "smoke", "--task", "carracing", "--sizes", "1,2,3")
    assert (config.vae_batch, config.temperature, config.sizes) == (5, 0.7, (1, 2, 3))
    assert (options.preset, options.run) == ("smoke", None)
    assert run("--preset=smoke", "--vae-batch=7", "--task=carracing", "--temperature=2")[0].temperature == 2.0


def test_set_takes_several_words_and_all_types():
    words = ["vae_batch=7", "sizes=8", "limit=5", "use-amp=true", "mode=sample", "task=carracing"]
    config = run("--set", *words, "--seed", "3")[0]
    assert config == Config("carracing", 3, "cpu", 7, 0.7, (8,), 5, True, "sample")
    assert run("--set", "limit=none")[0].limit is None
    assert run("--use-amp")[0].use_amp is True
    assert run("--use-amp", "--no-use-amp")[0].use_amp is False


def test_extra_options_are_not_fields():
    options = run("--stage", "vision", extra=lambda parser: parser.add_argument("--stage"))[1]
    assert vars(options) == {"preset": "cpu", "run": None, "stage": "vision", "changed": {}}


def test_changed_fields_are_named_whichever_way_they_came():
    assert run("--set", "vae-batch=7", "--mode", "mean", "--seed", "3", "--task", "doom")[1].changed == {
        "vae_batch": 7,
        "mode": "mean",
    }


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--vae-bach", "3"], ["--vae-bach", "did you mean '--vae-batch'"]),
        (["stray"], ["unknown argument stray"]),
        (["--set", "vae_bach=3"], ["unknown field 'vae_bach'", "did you mean 'vae_batch'"]),
        (["--set", "vae_batch"], ["field=value"]),
        (["--preset", "cpuu"], ["unknown preset 'cpuu'", "did you mean 'cpu'", "smoke, cpu, paper"]),
        (["--task", "dom"], ["unknown task 'dom'", "doom, carracing"]),
        (["--vae-batch", "many"], ["vae_batch must be a whole number, not 'many'"]),
        (["--vae-batch", "2.5"], ["vae_batch must be a whole number"]),
        (["--vae-batch", "0"], ["vae_batch is 0, allowed: 1 to 1000"]),
        (["--seed", "-1"], ["seed is -1, allowed: at least 0"]),
        (["--temperature", "nan"], ["temperature must be a number"]),
        (["--sizes", "3,0"], ["sizes is 0, allowed: at least 1"]),
        (["--sizes", "3,x"], ["sizes must be a whole number, or several with commas between"]),
        (["--limit", "soon"], ["limit must be a whole number or none"]),
        (["--set", "use_amp=maybe"], ["use_amp must be true or false"]),
        (["--use-amp", "False"], ["unknown argument False"]),
        (["--mode", "sampled"], ["did you mean 'sample'", "allowed: mean, sample"]),
        (["--vae-batch", "13"], ["vae_batch 13 is unlucky"]),
        (["--vae-batch"], ["expected one argument"]),
        (["--vae", "3"], ["unknown option --vae"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(argv, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("ha2018.train: error: ")
    for words in expected:
        assert words in output.err


def test_help_shows_fields_bounds_and_claims(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "100 % of them (default 100, 1 to 1000)",
        "--no-use-amp",
        "cpu a small claim",
        "one of mean, sample",
    ):
        assert words in text


def test_dict_round_trip_is_strict():
    config = run("--preset", "smoke", "--sizes", "9")[0]
    assert from_dict(Config, to_dict(config)) == config
    with pytest.raises(ValueError, match="missing seed"):
        from_dict(Config, {k: v for k, v in to_dict(config).items() if k != "seed"})
    with pytest.raises(ValueError, match="unknown field 'sead'"):
        from_dict(Config, {**to_dict(config), "sead": 1})
    with pytest.raises(ValueError, match="seed must be a whole number, not True"):
        from_dict(Config, {**to_dict(config), "seed": True})


def test_print_config_names_the_layer_of_every_value_and_can_be_given_back(capsys):
    words = ["--preset", "smoke", "--task", "carracing", "--set", "sizes=1,2", "--use-amp"]
    with pytest.raises(SystemExit) as end:
        run(*words, "--print-config")
    assert end.value.code == 0
    lines = [line.partition("#") for line in capsys.readouterr().out.splitlines()]
    found = {value.strip(): source.strip() for value, _, source in lines}
    assert found["vae_batch=5"] == "preset smoke"
    assert found["temperature=0.7"] == "task carracing"
    assert found["limit=none"] == "default"
    assert found["sizes=1,2"] == found["use_amp=true"] == "option"
    assert run("--set", *found)[0] == run(*words)[0]
    assert not hasattr(run(*words)[1], "print_config")
