"""Numbers of the authors' graph against the shipped functions, in float64, at the tolerances of golden/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.golden import Parity, load
from ha2018 import cma_es, env, random_play
from ha2018.controller import car_action, doom_action
from ha2018.dream import Dream
from ha2018.memory import MDNRNN, Prediction, State, mdn_nll, sample_next_z, sequence_losses
from ha2018.memory_fast import FastLosses
from ha2018.vision import VAE, kl_loss, reconstruction_loss, sample_z

GOLDEN = Path(__file__).parent / "golden"
LAYERS = {  # name: (number, kernel shape, divisor of the fan in)
    "enc_conv1": (1, (4, 4, 3, 32)),
    "enc_conv2": (2, (4, 4, 32, 64)),
    "enc_conv3": (3, (4, 4, 64, 128)),
    "enc_conv4": (4, (4, 4, 128, 256)),
    "enc_fc_mu": (5, (1024, 32)),
    "enc_fc_log_var": (6, (1024, 32)),
    "dec_fc": (7, (32, 1024)),
    "dec_deconv1": (21, (5, 5, 128, 1024)),
    "dec_deconv2": (22, (5, 5, 64, 128)),
    "dec_deconv3": (23, (6, 6, 32, 64)),
    "dec_deconv4": (24, (6, 6, 3, 32)),
}
OURS = {"enc_fc_mu": "enc_mu", "enc_fc_log_var": "enc_logvar"}


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def generated_layer(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel in TensorFlow's layout and bias of a layer, from numpy's frozen legacy generator."""
    number, shape = LAYERS[name]
    fan_in: float = shape[0]
    if len(shape) == 4:
        fan_in = shape[0] * shape[1] * (shape[3] / 4 if "deconv" in name else shape[2])
    kernel = np.random.RandomState(1000 + number).randn(*shape) * np.sqrt(2 / fan_in)
    outputs = shape[2] if "deconv" in name else shape[-1]
    return kernel, 0.05 * np.random.RandomState(2000 + number).randn(outputs)


@pytest.fixture(scope="module")
def vision() -> VAE:
    """V of CarRacing with the generated weights. HWIO and (in, out) kernels become OIHW and (out, in)."""
    case, vae = load(GOLDEN / "vae_forward_z32.npz"), VAE(32).double()
    for name in LAYERS:
        kernel, bias = generated_layer(name)
        for part, array in (("kernel", kernel), ("bias", bias)):
            flat = array.reshape(-1)
            picks = flat[[0, 1, 100 if flat.size > 100 else 2, -1]]
            np.testing.assert_array_equal(picks, case[f"check_{name}_{part}"])
        layer = getattr(vae, OURS.get(name, name))
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        with torch.no_grad():
            layer.weight.copy_(tensor(kernel.transpose(order)))
            layer.bias.copy_(tensor(bias))
    return vae


def golden_images() -> Tensor:
    b, y, x, c = np.ogrid[:3, :64, :64, :3]
    return tensor(0.5 + 0.5 * np.sin(0.13 * y + 0.07 * x * (c + 1) + 0.9 * b)).permute(0, 3, 1, 2)


def test_vision_forward(vision: VAE, parity: Parity) -> None:
    case, images = load(GOLDEN / "vae_forward_z32.npz"), golden_images()
    with torch.no_grad():
        reconstruction, mu, logvar = vision(images, tensor(case["eps"]))
        z = sample_z(mu, logvar, tensor(case["eps"]))
    pixels = reconstruction.permute(0, 2, 3, 1)
    for name, ours in (
        ("mu", mu),
        ("logvar", logvar),
        ("z", z),
        ("recon_sub", pixels[:, ::7, ::5]),
        ("recon_mean", pixels.mean((1, 2))),
    ):
        parity.check("V: encoder, sample, decoder", ours, case[name], atol=1e-9)
    losses = torch.stack([reconstruction_loss(images, reconstruction), kl_loss(mu, logvar, 0.5)])
    parity.check("V: losses at full size", losses, [case["r_loss"], case["kl_loss"]], atol=0, rtol=1e-9)
    sse = torch.stack([reconstruction_loss(images[k : k + 1], reconstruction[k : k + 1]) for k in range(3)])
    parity.check("V: losses at full size", sse, case["recon_per_image_sse"], atol=0, rtol=1e-9)
    kl = torch.stack([kl_loss(mu[k : k + 1], logvar[k : k + 1], 0.0) for k in range(3)])
    parity.check("V: losses at full size", kl, case["kl_per_image"], atol=0, rtol=1e-9)


def test_vision_layers(vision: VAE, parity: Parity) -> None:
    case, seen = load(GOLDEN / "vae_forward_z32.npz"), {}
    hooks = [
        getattr(vision, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in ("enc_conv1", "enc_conv4", "dec_deconv1", "dec_deconv3")
    ]
    with torch.no_grad():
        vision(golden_images(), tensor(case["eps"]))
    for hook in hooks:
        hook.remove()
    relu = {name: out.relu() for name, out in seen.items()}
    flat = relu["enc_conv4"].permute(0, 2, 3, 1).flatten(1)
    parity.check("V: layers", flat, case["flat_h"], atol=1e-9)
    parity.check("V: layers", relu["enc_conv1"][0, ::8, ::10, ::10], case["enc1_sub"], atol=1e-9)
    parity.check("V: layers", relu["dec_deconv1"][0, ::16], case["dec1"], atol=1e-9)
    parity.check("V: layers", relu["dec_deconv3"][0, ::8, ::9, ::9], case["dec3_sub"], atol=1e-9)


def test_vision_forward_in_float32(vision: VAE, parity: Parity) -> None:
    case = load(GOLDEN / "vae_forward_z32.npz")
    single = VAE(32)
    single.load_state_dict({name: value.float() for name, value in vision.state_dict().items()})
    with torch.no_grad():
        reconstruction, mu, logvar = single(golden_images().float(), tensor(case["eps"], torch.float32))
    parity.check("V: float32", mu, case["mu"], atol=2e-4)
    parity.check("V: float32", logvar, case["logvar"], atol=2e-4)
    parity.check("V: float32", reconstruction.permute(0, 2, 3, 1)[:, ::7, ::5], case["recon_sub"], atol=2e-4)


def test_vision_loss_and_gradients(parity: Parity) -> None:
    case = load(GOLDEN / "vae_loss.npz")
    y, mu, logvar = (tensor(case[name]).requires_grad_() for name in ("y", "mu", "logvar"))
    tolerance = float(case["kl_tolerance"])
    reconstruction, kl = reconstruction_loss(tensor(case["x"]), y), kl_loss(mu, logvar, tolerance)
    (reconstruction + kl).backward()
    parity.check("V: loss", torch.stack([reconstruction, kl]), [case["r_loss"], case["kl_loss"]], atol=1e-12)
    single = torch.stack([kl_loss(mu[b : b + 1], logvar[b : b + 1], 0.0) for b in range(len(mu))])
    parity.check("V: loss", single, case["kl_per_sample"], atol=1e-12)
    for name, leaf in (("grad_y", y), ("grad_mu", mu), ("grad_logvar", logvar)):
        parity.check("V: loss gradients", leaf.grad, case[name], atol=1e-12)


def memory_of(case: dict[str, np.ndarray], z_size: int, actions: int, *, predicts_restart: bool) -> MDNRNN:
    hidden, mixtures = case["kernel"].shape[1] // 4, int(case.get("num_mixture", 5))
    memory = MDNRNN(z_size, actions, hidden, mixtures, predicts_restart=predicts_restart).double()
    with torch.no_grad():
        for name in ("kernel", "bias", "output_w", "output_b"):
            getattr(memory, name).copy_(tensor(case[name]))
    return memory


def test_lstm_cell(parity: Parity) -> None:
    case = load(GOLDEN / "lstm_cell.npz")
    memory = MDNRNN(5, 0, 7, 1, predicts_restart=False).double()
    with torch.no_grad():
        memory.kernel.copy_(tensor(case["kernel"]))
        memory.bias.copy_(tensor(case["bias"]))
    state, none = State(tensor(case["c0"]), tensor(case["h0"])), torch.zeros(3, 0, dtype=torch.float64)
    for t, x in enumerate(tensor(case["x"])):
        state = memory.step(x, none, None, state)
        parity.check("M: LSTM cell", state.c, case["c"][t], atol=1e-12)
        parity.check("M: LSTM cell", state.h, case["h"][t], atol=1e-12)


def check_mixtures(parity: Parity, component: str, prediction: Prediction, case: dict[str, np.ndarray]) -> None:
    for name in ("logmix", "mean", "logstd"):
        parity.check(component, getattr(prediction, name).flatten(0, -2), case[name], atol=1e-11)


def check_gradients(parity: Parity, component: str, memory: MDNRNN, case: dict[str, np.ndarray]) -> None:
    for name, parameter in memory.named_parameters():
        parity.check(component, parameter.grad, case[f"grad_{name}"], atol=1e-11)


def test_memory_of_carracing(parity: Parity) -> None:
    case = load(GOLDEN / "mdnrnn_car_tiny.npz")
    memory, z = memory_of(case, 6, 3, predicts_restart=False), tensor(case["z"])
    h, _ = memory.unroll_teacher_forced(z[:, :-1], tensor(case["action"])[:, :-1], None, memory.initial_state(3))
    prediction = memory.predict(h)
    loss = mdn_nll(prediction, z[:, 1:])
    loss.backward()
    parity.check("M: CarRacing", h, case["h"], atol=1e-11)
    parity.check("M: CarRacing", loss, case["loss"], atol=1e-11)
    check_mixtures(parity, "M: CarRacing", prediction, case)
    check_gradients(parity, "M: CarRacing gradients", memory, case)

    action, restart = tensor(case["action"]), torch.zeros(3, z.shape[1], dtype=torch.float64)
    losses, _ = FastLosses(memory).losses_and_gradients(z, action, restart, memory.initial_state(3), 1.0)
    parity.check("M: CarRacing, the training pass", losses["z_nll"], case["loss"], atol=1e-11)
    check_gradients(parity, "M: CarRacing, gradients of the training pass", memory, case)


def test_memory_of_doom(parity: Parity) -> None:
    case = load(GOLDEN / "mdnrnn_doom_tiny.npz")
    memory = memory_of(case, 5, 1, predicts_restart=True)
    z, action, restart = tensor(case["z"]), tensor(case["action"])[..., None], tensor(case["restart"])
    state = State(tensor(case["c0"]), tensor(case["h0"]))
    h, last = memory.unroll_teacher_forced(z[:, :-1], action[:, :-1], restart[:, :-1], state)
    prediction = memory.predict(h)
    assert prediction.restart_logit is not None
    losses, end = sequence_losses(memory, z, action, restart, state, float(case["restart_factor"]))
    total = losses["z_nll"] + losses["restart"]
    total.backward()
    parity.check("M: Doom", h, case["h"], atol=1e-11)
    parity.check("M: Doom", last.c, case["c"][:, -1], atol=1e-11)
    parity.check("M: Doom", end.h, case["h"][:, -1], atol=1e-11)
    parity.check("M: Doom", prediction.restart_logit, case["restart_logit"], atol=1e-11)
    expected = {"z_nll": case["z_cost"], "restart": case["r_cost"]}
    for name, loss in losses.items():
        parity.check("M: Doom", loss, expected[name], atol=1e-11)
    parity.check("M: Doom", total, case["cost"], atol=1e-11)
    check_mixtures(parity, "M: Doom", prediction, case)
    check_gradients(parity, "M: Doom gradients", memory, case)

    fast, end = FastLosses(memory).losses_and_gradients(z, action, restart, state, float(case["restart_factor"]))
    for name, loss in fast.items():
        parity.check("M: Doom, the training pass", loss, expected[name], atol=1e-11)
    parity.check("M: Doom, the training pass", end.c, case["c"][:, -1], atol=1e-11)
    check_gradients(parity, "M: Doom, gradients of the training pass", memory, case)


def test_sampling_with_temperature(parity: Parity) -> None:
    case = load(GOLDEN / "mdn_sampling.npz")
    prediction = Prediction(tensor(case["logmix"]), tensor(case["mean"]), tensor(case["logstd"]), None)
    for row, temperature in enumerate(case["temperature"]):
        uniform, normal = tensor(case["uniform"][row]), tensor(case["normal"][row])
        z, index = sample_next_z(prediction, float(temperature), uniform, normal)
        parity.check("M: sampling", index, case["mixture_index"][row], atol=0)
        parity.check("M: sampling", z, case["next_z"][row], atol=1e-12)


def test_dream_episode(parity: Parity) -> None:
    case = load(GOLDEN / "doom_dream_rollout.npz")
    memory = memory_of(case, 6, 1, predicts_restart=True)
    dream = Dream(memory, float(case["temperature"]), max_steps=2100)
    obs, weights, score = dream.reset(tensor(case["z0"])[None]), tensor(case["controller_w"]), 0.0
    for t in range(len(case["out_done"])):
        parity.check("dream: closed loop", obs[0], case["out_obs"][t], atol=1e-9)
        action = doom_action(weights, obs)
        parity.check("dream: closed loop", action[0], case["out_action"][t], atol=1e-9)
        obs, reward, done = dream.step(action, tensor(case["uniform"][t])[None], tensor(case["normal"][t])[None])
        parity.check("dream: closed loop", dream.z[0], case["out_z"][t], atol=1e-9)
        assert dream.restart_logit is not None
        parity.check("dream: closed loop", dream.restart_logit[0], case["out_logit"][t], atol=1e-9)
        parity.check("dream: done", done.long()[0], case["out_done"][t], atol=0)
        score += float(reward)
    assert bool(done)
    assert score == 55


def test_controllers(parity: Parity) -> None:
    case = load(GOLDEN / "controllers.npz")
    z, h = tensor(case["car_z"]), tensor(case["car_h"])
    for params, x, hidden, action in (
        ("car_params", torch.cat([z, h], 1), 0, "car_action"),
        ("car_zonly_params", z, 0, "car_zonly_action"),
        ("car_hidden_params", z, 40, "car_hidden_action"),
    ):
        ours = car_action(tensor(case[params]), x, hidden)
        parity.check("C: CarRacing", ours, case[action], atol=1e-12)
    x = torch.cat([tensor(case["doom_z"]), tensor(case["doom_c"]), tensor(case["doom_h"])], 1)
    parity.check("C: Doom", doom_action(tensor(case["doom_params"]), x), case["doom_action"], atol=1e-12)


def test_doom_buttons(parity: Parity) -> None:
    case = load(GOLDEN / "controllers.npz")
    side = {env.MOVE_LEFT: -1, env.NOTHING: 0, env.MOVE_RIGHT: 1}
    ours = [side[env.button(float(a))] for a in case["doom_scalar_for_button"]]
    parity.check("C: Doom buttons", ours, case["doom_button"], atol=0)


def test_evolution_bookkeeping(parity: Parity) -> None:
    case, rng = load(GOLDEN / "es_bookkeeping.npz"), np.random.RandomState(0)
    solutions, rewards = case["solutions"], case["rewards"]
    for ours, name in (
        (cma_es.cost(rewards, solutions), "cost_told_to_cma"),
        (cma_es.as_sent_to_workers(solutions), "solutions_after_transport"),
        (cma_es.as_received_from_workers(rewards), "rewards_after_transport"),
        (cma_es.rollout_seeds(rng, 64), "seeds_gen1"),
        (cma_es.rollout_seeds(rng, 64), "seeds_gen2"),
    ):
        parity.check("CMA-ES: bookkeeping", ours, case[name], atol=0)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_doom_collection_policy(seed: int, parity: Parity) -> None:
    reference = load(GOLDEN / "random_policies.npz")[f"doom_action_seed{seed}"]
    actions = random_play.held_actions(seed)
    parity.check("random policy: Doom", [next(actions) for _ in reference], reference, atol=0)


@pytest.mark.parametrize("seed", [0, 7])
def test_car_collection_policy(seed: int, parity: Parity) -> None:
    case = load(GOLDEN / "random_policies.npz")
    stdev, params = random_play.random_car_controller(seed, 867)
    parity.check("random policy: CarRacing", stdev, case[f"car_stdev_seed{seed}"], atol=0)
    parity.check("random policy: CarRacing", params, case[f"car_params_seed{seed}"], atol=0)


@pytest.mark.parametrize(
    ("frame", "rows", "resized", "obs"),
    [
        ("car_frame_a", 84, "car_resized_a", "car_obs_a"),
        ("car_frame_b", 84, "car_resized_b", "car_obs_b"),
        ("doom_frame_160x120", 100, "doom_resized", "doom_obs"),
    ],
)
def test_preprocessing(frame: str, rows: int, resized: str, obs: str, parity: Parity) -> None:
    case = load(GOLDEN / "preprocess.npz")
    parity.check("preprocessing", env.stretch_and_resize(case[frame], rows), case[resized], atol=0)
    parity.check("preprocessing", env.preprocess(case[frame], rows), case[obs], atol=0)
