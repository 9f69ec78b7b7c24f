"""Pixel models on variance-exploding paths: score-SDE networks and EDM's preconditioning."""

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import tiny
import torch
from bits import inverted, returned, same
from commands import run
from diffusers import DDPMPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel
from diffusers.pipelines.deprecated import KarrasVePipeline, ScoreSdeVePipeline
from oracles import fitted_order, gaussian, noise_like
from refusals import refused

import ddim
from ddim.core.conditioning import Conditioning
from ddim.core.denoiser import PLAIN
from ddim.core.schedule import Schedule
from ddim.models.pixel import PixelModel
from ddim.pipelines.common import prior
from ddim.solvers import REVERSIBLE

STEPS = 6


def score_unet() -> UNet2DModel:
    """A tiny NCSN++: Fourier features of log sigma, and an output that is divided by sigma; images in colour."""
    torch.manual_seed(11)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        time_embedding_type="fourier",
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()


def score_sde() -> Any:
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=100, sigma_max=50.0)
    return ScoreSdeVePipeline(score_unet(), scheduler)


def karras_ve() -> Any:
    return KarrasVePipeline(score_unet(), diffusers.KarrasVeScheduler(sigma_max=20.0))


def edm(**options: Any) -> Any:
    return DDPMPipeline(tiny.unet(3), EDMEulerScheduler(**options))


def edm_dpm() -> Any:
    options = {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential"}
    return DDPMPipeline(tiny.unet(3), EDMDPMSolverMultistepScheduler(sigma_max=40.0, **options))


PIPELINES = {"score-sde": score_sde, "karras-ve": karras_ve, "edm": edm, "edm-v": edm_dpm}
every = pytest.mark.parametrize("kind", PIPELINES)


def model_of(kind: str) -> PixelModel:
    return PixelModel.from_pipeline(PIPELINES[kind](), "tiny")


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


# --- facts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "prediction", "path", "spacing", "clock"),
    [
        ("score-sde", "score", ddim.VEPath(50.0, 0.01, 100), "exponential", "path"),
        ("karras-ve", "score", ddim.VEPath(10.0, 0.01), "exponential", "path"),
        ("edm", "edm", ddim.VEPath(80.0, 0.002), "karras", "edm"),
        ("edm-v", "edm_v", ddim.VEPath(40.0, 0.002), "exponential", "edm"),
    ],
)
def test_what_a_pipeline_says(kind, prediction, path, spacing, clock):
    model = model_of(kind)
    schedule = model.schedule
    assert (schedule.prediction, schedule.path, schedule.spacing, schedule.clock) == (prediction, path, spacing, clock)
    assert model.describe()["prediction"] == prediction
    assert model.describe().get("sigma_data") == {"edm": 0.5, "edm-v": 1.0}.get(kind)


@every
def test_a_folder_is_the_pipeline_that_wrote_it(kind, tmp_path):
    pipeline = PIPELINES[kind]()
    pipeline.save_pretrained(tmp_path)
    loaded, live = ddim.load(tmp_path, device="cpu"), PixelModel.from_pipeline(pipeline)
    assert loaded.schedule == live.schedule
    assert loaded.fingerprint == live.fingerprint
    assert torch.allclose(ddim.sample(loaded, 2, steps=3), ddim.sample(live, 2, steps=3), atol=1e-5)


def test_the_command_samples_from_a_folder(tmp_path):
    for kind, make in PIPELINES.items():
        make().save_pretrained(tmp_path / kind)
        out = run("sample", "--model", tmp_path / kind, "-n", 2, "--steps", 2, "--out", tmp_path / f"{kind}.png")
        assert out.exit_code == 0, out.output
        assert (tmp_path / f"{kind}.png").is_file()


@every
def test_images_keep_their_values(kind):
    model = model_of(kind)
    x0 = model.encode(pictures())
    assert torch.allclose(model.decode(x0), pictures(), atol=1e-6)
    assert bool(x0.min() >= 0) is (model.schedule.prediction == "score")


def test_the_fingerprint_tells_the_deviation_of_the_data():
    one, other = (PixelModel.from_pipeline(edm(sigma_data=d)).fingerprint for d in (0.5, 1.0))
    assert one != other


@every
def test_the_prior_is_as_wide_as_the_schedulers(kind):
    pipeline, model = PIPELINES[kind](), model_of(kind)
    unit = 0.5 if kind == "karras-ve" else 1.0  # its network sees images in [0, 1]
    std = model.schedule.prior_std(model.schedule.grid(STEPS))
    assert std == pytest.approx(unit * float(pipeline.scheduler.init_noise_sigma), rel=1e-12)


@pytest.mark.parametrize("prediction_type", ["sample", "flow_prediction"])
def test_other_predictions_of_edm_are_refused(prediction_type):
    with refused("prediction_type", repr(prediction_type)):
        ddim.models.scheduler_config.read_schedule(
            {"_class_name": "EDMEulerScheduler", "prediction_type": prediction_type}
        )


# --- the network's call ---------------------------------------------------------------------------------------------


def calls_of(pipeline: Any, steps: int) -> list[tuple[torch.Tensor, float, torch.Tensor]]:
    """(x, timestep, output) of every call that a pipeline makes to its network."""
    calls = []

    def watch(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        x, t = args[:2]
        calls.append((x.clone(), float(torch.as_tensor(t).flatten()[0]), output[0].clone()))

    handle = pipeline.unet.register_forward_hook(watch, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(batch_size=2, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="np")
    handle.remove()
    return calls


@pytest.mark.parametrize("kind", ["score-sde", "karras-ve"])
def test_a_score_networks_calls_are_its_pipelines(kind):
    pipeline = PIPELINES[kind]()
    model = PixelModel.from_pipeline(pipeline)
    # KarrasVePipeline squares its noise levels, so that most of its calls lie outside sigma_min to sigma_max
    path: Any = model.schedule.path
    calls = [call for call in calls_of(pipeline, 12) if path.sigma_min <= call[1] <= path.sigma_max]
    assert len(calls) >= 7
    for x, sigma, output in calls:
        ours = model.forward(x, path.node(sigma), Conditioning(), PLAIN)
        assert torch.allclose(ours, output, rtol=1e-5, atol=1e-7)


def test_the_grid_of_a_score_network_is_its_schedulers():
    pipeline = score_sde()
    pipeline.scheduler.set_timesteps(STEPS)
    pipeline.scheduler.set_sigmas(STEPS)
    grid = model_of("score-sde").schedule.grid(STEPS)
    assert [n.sigma for n in grid.nodes[:-1]] == pytest.approx(pipeline.scheduler.sigmas.tolist(), rel=2e-4)
    assert [n.sigma for n in grid.nodes[-2::-1]] == pytest.approx(pipeline.scheduler.discrete_sigmas.tolist(), rel=1e-5)


def test_a_score_network_is_sampled_by_the_probability_flow():
    """dx = -sigma score(x, sigma) d sigma (Song et al. 2021, Eq. 13 on this path), by Euler in float64."""
    pipeline = score_sde()
    network = pipeline.unet.double()
    model = PixelModel.from_pipeline(pipeline)
    grid = model.schedule.grid(STEPS)
    x = prior(model, grid, [0, 1], model.shape)[0]
    ours = ddim.sample(model, 2, steps=STEPS)
    sigmas = [50.0 * (0.01 / 50.0) ** (i / (STEPS - 1)) for i in range(STEPS)] + [0.0]
    for now, after in pairwise(sigmas):
        with torch.no_grad():
            score = network(x, torch.tensor(now, dtype=torch.float64)).sample
        x = x - (after - now) * now * score
    assert torch.allclose(ours, x.clamp(0, 1), atol=1e-6)


# --- against diffusers' sampler of EDM ------------------------------------------------------------------------------


def their_euler(pipeline: Any, x: torch.Tensor, steps: int) -> torch.Tensor:
    scheduler, network = EDMEulerScheduler.from_config(pipeline.scheduler.config), pipeline.unet
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = network(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [2, 4, 18])
@pytest.mark.parametrize("kind", ["edm", "edm-v"])
def test_ddim_is_diffusers_edm_euler(kind, steps, record_property):
    pipeline, model = PIPELINES[kind](), model_of(kind)
    grid = model.schedule.grid(steps)
    x = prior(model, grid, [0, 1], model.shape)[0]
    theirs = their_euler(pipeline, x, steps)
    ours = ddim.solve(tiny.unguided(model), ddim.make_solver("ddim"), {"x": x}, grid)["x"]
    worst = float((ours - theirs).abs().max())
    sensitivity = float((their_euler(pipeline, x * (1 + 1e-6), steps) - theirs).abs().max())
    record_property("largest_disagreement", worst)
    print(f"parity {kind} S {steps:2} {worst:.1e}, of a start that differs by 1e-6: {sensitivity:.1e}")
    assert worst < max(1e-5, 2 * sensitivity)
    assert theirs.std() > 0.1


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_the_grid_of_edm_is_diffusers(schedule, rho):
    scheduler = EDMEulerScheduler(sigma_schedule=schedule, rho=rho, sigma_min=0.01, sigma_max=30.0)
    scheduler.set_timesteps(9)
    ours = PixelModel.from_pipeline(DDPMPipeline(tiny.unet(3), scheduler)).schedule
    grid = ours.grid(9)
    assert [n.sigma for n in grid] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    assert [ours.timestep(n) for n in grid.nodes[:-1]] == pytest.approx(scheduler.timesteps.tolist(), abs=1e-5)


# --- a closed form --------------------------------------------------------------------------------------------------

DATA = gaussian(1, 4, 4)
START = 20.0
SCHEDULES = {
    "edm": Schedule(ddim.VEPath(START), "edm", "karras", clock="edm", prior="edm"),
    "edm_v": Schedule(ddim.VEPath(START), "edm_v", "karras", clock="edm", prior="edm", sigma_data=1.3),
    "score": Schedule(ddim.VEPath(START), "score", "exponential"),
    "edm on a table": Schedule(ddim.ddpm_linear(), "edm", "exponential", clock="edm", sigma_data=0.7),
}


def closed_form(name: str) -> ddim.Model:
    """The exact network of Gaussian data, written as its kind of network takes and returns it."""
    schedule = SCHEDULES[name]

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        label = float(t[0])
        ratio = math.exp(4 * label) if schedule.clock == "edm" else label
        node = schedule.path.node(float(schedule.path.t_of_log_snr(torch.tensor(-2 * math.log(ratio)))))
        x = x / schedule.input_scale(node)
        pair = DATA(x, node)
        return ddim.from_pair(schedule.prediction, pair, node.alpha, node.sigma, sigma_data=schedule.sigma_data)

    return ddim.Model.from_network(network, schedule, shape=(1, 4, 4), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_the_exact_marginal_is_reached_at_the_solvers_order(name, solver, order):
    model = closed_form(name)
    steps, errors = [16, 32, 64, 128], []
    for n in steps:
        grid = model.schedule.grid(n)
        x = noise_like((3, 1, 4, 4)) * model.schedule.prior_std(grid)
        used = ddim.make_solver(solver)
        end = used.read(ddim.solve(tiny.unguided(model), used, used.init(x, grid), grid))
        errors.append(float((end - DATA.endpoint(x, grid[0], grid[-1])).abs().max()))
    measured = fitted_order(steps, errors)
    print(f"order {name} {solver} {measured:.2f}, at {steps[-1]} steps {errors[-1]:.1e}")
    assert measured > order - 0.35
    assert errors[-1] < (0.1 if order == 1 else 0.01)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_standard_deviation_of_a_networks_input(name):
    """EDM's networks see x with the deviation 1 if the data have the deviation sigma_data."""
    schedule = SCHEDULES[name]
    for node in schedule.grid(5).nodes[:-1]:
        std = math.hypot(node.sigma, schedule.sigma_data * node.alpha)
        assert schedule.input_scale(node) * (std if "edm" in name else 1) == pytest.approx(1)


# --- both ways ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ddim.DDIMWarning")  # the spread of codes of an untrained network
@every
@pytest.mark.parametrize("method", REVERSIBLE)
def test_images_come_back_to_the_bit(kind, method, tmp_path):
    model, images = model_of(kind), pictures()
    code, begun = inverted(model, images, method=method, steps=STEPS)
    back, ended = returned(model, ddim.LatentCode.load(code.save(tmp_path / "one.code")))
    assert same(begun, ended)
    assert torch.allclose(back, images, atol=1e-4)
    spread = max(float(latent.std()) for latent in code.floats.values())
    assert spread > 0.1 * code.grid[0].sigma > images.std()  # noise, and no image any more


@every
def test_plain_inversion_returns_a_latent_of_the_first_sigma(kind):
    model = model_of(kind)
    code = ddim.invert(model, pictures(), steps=STEPS)
    assert torch.isfinite(code.state["x"]).all()
    assert code.grid.path == model.schedule.path
    assert ddim.reconstruct(model, code).shape == (2, 3, 8, 8)


def test_an_edm_network_takes_no_grid_that_begins_without_signal():
    path = ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar()))
    schedule = Schedule(path, "edm", clock="edm", sigma_data=1.0)
    with refused("spacing", "'leading'"):
        schedule.timestep(path.node(path.t_max))
