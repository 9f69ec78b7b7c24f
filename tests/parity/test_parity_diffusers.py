"""Law 6: diffusers as a witness, on one tiny random UNet2DModel, and where it cannot be one.

Its tables are float32, so 1e-5 is what agreement means here. Each test prints its largest disagreement (``pytest -s``).
"""

import pytest
import tiny
import torch
from diffusers import DDIMInverseScheduler, DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler
from oracles import mixture, noise_like

import ddim
from ddim.core.conditioning import PromptConditioning
from ddim.core.contracts import InversionProblem
from ddim.core.denoiser import corrected, from_network
from ddim.core.guidance import Guidance, guided
from ddim.core.prediction import clip
from ddim.inversion import make_inversion
from ddim.models.pixel import PixelModel
from ddim.pipelines.common import grid_for

AGREE = 1e-5
CONFIGS = {
    "ddpm": {"clip_sample": False},
    "stable-diffusion": tiny.STABLE_DIFFUSION,
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "zero-terminal-snr": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    "v": {"prediction_type": "v_prediction", "clip_sample": False},
    "x0": {"prediction_type": "sample", "clip_sample": False},
}
every_config = pytest.mark.parametrize("config", CONFIGS)


START = noise_like((2, 1, 8, 8))


@pytest.fixture(scope="module")
def network():
    return tiny.unet()


@pytest.fixture(scope="module")
def network64():
    return tiny.unet().double()


def noise_for(steps: int, like: torch.Tensor) -> list[torch.Tensor]:
    return [noise_like(tuple(like.shape), 100 + k).to(like.dtype) for k in range(steps)]


def theirs(network, scheduler: DDIMScheduler, x: torch.Tensor, steps: int, eta: float = 0.0, clipped: bool = False):
    """diffusers' own loop, fed with our noise."""
    scheduler.set_timesteps(steps)
    noise = noise_for(steps, x)
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            fed = {"variance_noise": noise[k]} if eta else {}
            output = network(x, t).sample
            x = scheduler.step(output, t, x, eta=eta, use_clipped_model_output=clipped, **fed).prev_sample
    return x


def ours(model: PixelModel, x: torch.Tensor, steps: int, eta: float = 0.0, limit: float | None = None):
    solver, feed = ddim.make_solver("ddim", {"eta": eta}), iter(noise_for(steps, x))
    denoise = guided(model, Guidance(), PromptConditioning())
    if limit:
        denoise = corrected(denoise, lambda pair, x, node: clip(pair, x, node, limit))
    return ddim.solve(denoise, solver, {"x": x}, grid_for(model, steps, None), noise=lambda like: next(feed))["x"]


def agree(name: str, a: torch.Tensor, b: torch.Tensor, record_property, tolerance: float = AGREE) -> None:
    worst = float((a - b).abs().max() / b.abs().max().clamp(min=1))
    record_property("largest_disagreement", worst)
    print(f"parity {name:48} {worst:.1e}")
    assert worst <= tolerance


@every_config
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_scheduler_as_it_is(network, config, eta, record_property):
    scheduler, x = DDIMScheduler(**CONFIGS[config]), START.float()
    a = ours(PixelModel("tiny", network, dict(scheduler.config)), x, 10, eta)
    agree(f"DDIMScheduler {config} eta {eta}", a, theirs(network, scheduler, x, 10, eta), record_property)


@every_config
@pytest.mark.parametrize("eta", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 13])
def test_ddim_scheduler_with_a_float64_table(network64, config, eta, steps, record_property):
    """With our table in theirs nothing is left but rounding: the 1e-6 of the test above is their float32."""
    scheduler = DDIMScheduler(**(CONFIGS[config] | {"timestep_spacing": "leading"}))
    model = PixelModel("tiny", network64, dict(scheduler.config), dtype=torch.float64)
    in_float64(scheduler, model)
    a, b = ours(model, START, steps, eta), theirs(network64, scheduler, START, steps, eta)
    agree(f"DDIMScheduler float64 {config} eta {eta} S {steps}", a, b, record_property, 1e-11)


def in_float64(scheduler, model: PixelModel) -> None:
    table = model.schedule.path.alpha_bar
    assert torch.allclose(scheduler.alphas_cumprod.double(), table, rtol=1e-4, atol=1e-6)
    scheduler.alphas_cumprod = table
    scheduler.final_alpha_cumprod = (
        torch.ones((), dtype=torch.float64) if model.schedule.path.data == "one" else table[0]
    )
    scheduler.initial_alpha_cumprod = scheduler.final_alpha_cumprod


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_scheduler_with_clipping(network, eta, record_property):
    scheduler, x = DDIMScheduler(clip_sample=True), START.float()
    model = PixelModel("tiny", network, dict(scheduler.config))
    a = ours(model, x, 10, eta, limit=1.0)
    b = theirs(network, scheduler, x, 10, eta, clipped=True)
    agree(f"DDIMScheduler clipped, eta {eta}", a, b, record_property)
    assert (a - ours(model, x, 10, eta)).abs().max() > 0.01  # the clip did something


def test_clipping_without_a_new_eps_is_another_sampler(network):
    # diffusers' default: x0 is clipped and eps is not, so the pair no longer explains x
    scheduler = DDIMScheduler(clip_sample=True)
    default, derived = (theirs(network, scheduler, START.float(), 10, clipped=c) for c in (False, True))
    assert (default - derived).abs().max() > 0.01


def test_eta_one_from_zero_snr_is_finite(network):
    # there sigma_t = 1 leaves 1 - abar - std^2 = 0, which in diffusers may round below zero and end as NaN
    scheduler = DDIMScheduler(**CONFIGS["zero-terminal-snr"])
    found = theirs(network, scheduler, START.float(), 10, 1.0)
    assert bool(found.isnan().all()) or bool(found.isfinite().all())  # as this build of torch rounds
    model = PixelModel("tiny", network, dict(scheduler.config))
    assert ours(model, START.float(), 10, 1.0).isfinite().all()


def their_inversion(network, scheduler: DDIMInverseScheduler, x: torch.Tensor, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x


def our_inversion(model: PixelModel, x: torch.Tensor, steps: int) -> torch.Tensor:
    problem = InversionProblem(model)
    return make_inversion("ddim").invert(problem, x, grid_for(model, steps, None)).state["x"]


@pytest.mark.parametrize("config", ["ddpm", "stable-diffusion", "cosine"])
def test_ddim_inverse_scheduler_as_it_is(network, config, record_property):
    scheduler, x = DDIMInverseScheduler(**CONFIGS[config]), START.float().clamp(-1, 1)
    model = PixelModel("tiny", network, dict(DDIMScheduler(**CONFIGS[config]).config))
    a, b = our_inversion(model, x, 10), their_inversion(network, scheduler, x, 10)
    agree(f"DDIMInverseScheduler {config}", a, b, record_property)


@pytest.mark.parametrize("config", ["ddpm", "stable-diffusion", "cosine"])
@pytest.mark.parametrize("steps", [1, 13, 50])
def test_ddim_inverse_scheduler_with_a_float64_table(network64, config, steps, record_property):
    scheduler = DDIMInverseScheduler(**CONFIGS[config])
    model = PixelModel("tiny", network64, dict(DDIMScheduler(**CONFIGS[config]).config), dtype=torch.float64)
    in_float64(scheduler, model)
    a, b = our_inversion(model, START, steps), their_inversion(network64, scheduler, START, steps)
    agree(f"DDIMInverseScheduler float64 {config} S {steps}", a, b, record_property, 1e-11)


def both_inversions(kind: str, prediction: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of diffusers' inverse scheduler and ours, of one denoiser told as ``kind``."""
    path, data = ddim.ddpm_linear(), mixture(3)
    x = theirs_x = data.draw(4)
    scheduler = DDIMInverseScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(steps)

    def output(x: torch.Tensor, t: int) -> torch.Tensor:
        node = path.node(t + 1)
        return ddim.from_pair(kind, data(x, node), node.alpha, node.sigma)

    for t in scheduler.timesteps.tolist():
        theirs_x = scheduler.step(output(theirs_x, t), t, theirs_x).prev_sample

    def denoise(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        return ddim.to_pair(kind, output(x, int(path.timestep(node.t))), x, node)

    grid = ddim.make_grid(path, steps, "leading")
    return theirs_x, make_inversion("ddim").invert(denoise, x, grid).state["x"]


def test_their_inversion_depends_on_what_the_network_predicts():
    """The same denoiser told as eps and as v: ours walks the same way, theirs does not.

    They turn v into eps at the level where x is, after asking at the level where it goes. Both are of first order: the
    two latents of a v network come together as the steps get short.
    """
    apart = {}
    for steps in (10, 100):
        eps, v = both_inversions("eps", "epsilon", steps), both_inversions("v", "v_prediction", steps)
        assert torch.allclose(eps[1], v[1], rtol=0, atol=1e-9)
        assert torch.allclose(eps[0], eps[1], rtol=0, atol=1e-4)
        apart[steps] = float((v[0] - v[1]).abs().max())
    print(apart)
    assert apart[10] > 0.01
    assert apart[100] < apart[10] / 4


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pipeline_end_to_end(tmp_path, prediction, eta, record_property):
    """A folder through DDIMPipeline and through ddim.load: the same seeds give the same pictures."""
    folder = tiny.pipeline_folder(tmp_path / "model", clip_sample=False, prediction_type=prediction)
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(40 + k) for k in range(3)]
    images = pipeline(3, generators, eta=eta, num_inference_steps=10, output_type="np").images
    a = ddim.sample(ddim.load(folder, device="cpu"), 3, steps=10, eta=eta, seed=40)
    b = torch.from_numpy(images).permute(0, 3, 1, 2)
    agree(f"DDIMPipeline {prediction} eta {eta}", a, b, record_property)


def test_pipeline_end_to_end_with_clipping(tmp_path, record_property):
    folder = tiny.pipeline_folder(tmp_path / "model")
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    options = {"num_inference_steps": 10, "use_clipped_model_output": True, "output_type": "np"}
    images = pipeline(2, generators, **options).images
    a = ddim.sample(ddim.load(folder, device="cpu"), 2, steps=10)  # the folder says clip_sample
    agree("DDIMPipeline clipped", a, torch.from_numpy(images).permute(0, 3, 1, 2), record_property)


# --- where diffusers does not follow its own list -------------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("trailing", 7), ("trailing", 30)])
def test_their_stride_leaves_their_own_list(spacing, steps):
    """diffusers issues 12633 and 11347: ``step`` goes to t - T // N, not to the next entry of ``timesteps``."""
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    listed = scheduler.timesteps.tolist()
    gone_to = [t - 1000 // steps for t in listed]
    wrong = sum(a != b for a, b in zip(gone_to[:-1], listed[1:], strict=True))
    assert wrong > 0
    x, level = torch.ones(1, 1, 2, 2), gone_to[0]
    # a network that answers eps = 0 shows the level: x_s / x_t = alpha_s / alpha_t
    moved = scheduler.step(torch.zeros_like(x), listed[0], x).prev_sample
    assert torch.allclose(moved, (scheduler.alphas_cumprod[level] / scheduler.alphas_cumprod[listed[0]]).sqrt() * x)
    path = ddim.ddpm_linear()
    grid = ddim.make_grid(path, steps, spacing)
    assert [int(path.timestep(n.t)) for n in grid.nodes[:-1]] == listed
    step = ddim.make_solver("ddim").step(lambda x, n: ddim.to_pair("eps", 0 * x, x, n), {"x": x}, grid, 0, None)
    assert torch.allclose(
        step["x"], (scheduler.alphas_cumprod[listed[1]] / scheduler.alphas_cumprod[listed[0]]).sqrt() * x
    )


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 30), ("leading", 7), ("trailing", 10), ("trailing", 50)])
def test_where_the_stride_is_right_it_is_the_list(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    listed = scheduler.timesteps.tolist()
    assert [t - 1000 // steps for t in listed[:-1]] == listed[1:]


# --- DPM-Solver++ ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_multistep(steps, record_property):
    """Their two update formulas on our grid's sigmas, in float64; their ``step`` itself rounds to float32."""
    path, data = ddim.ddpm_linear(), mixture(3)
    grid = ddim.make_grid(path, steps, "karras")
    scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor([n.ratio for n in grid], dtype=torch.float64)
    x, earlier = noise_like((4, 3)), []
    for i in range(steps):
        scheduler._step_index = i
        earlier.append(data(x, grid[i]).x0)
        if i == 0:
            x = scheduler.dpm_solver_first_order_update(earlier[-1], sample=x)
        elif i == steps - 1:  # their final_sigmas_type "zero": first order, and the limit of its formula is x0
            x = earlier[-1]
        else:
            x = scheduler.multistep_dpm_solver_second_order_update(earlier[-2:], sample=x)
    solver = ddim.make_solver("dpm++2m")
    a = solver.read(ddim.solve(data, solver, solver.init(noise_like((4, 3)), grid), grid))
    worst = float((a - x).abs().max())
    record_property("largest_disagreement", worst)
    print(f"parity DPMSolverMultistep S {steps:3} {worst:.1e}")
    assert worst < 1e-12


def test_dpm_solver_multistep_scheduler_whole(record_property):
    """Their scheduler as users run it, from its own list of timesteps."""
    path, data = ddim.ddpm_linear(), mixture(3)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", prediction_type="sample"
    )
    scheduler.set_timesteps(20)
    times = [t + 1 for t in scheduler.timesteps.tolist()]
    grid = ddim.make_grid(path, spacing=times)
    x = noise_like((4, 3))
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(data(x, grid[i]).x0, t, x).prev_sample
    solver = ddim.make_solver("dpm++2m")
    a = solver.read(ddim.solve(data, solver, solver.init(noise_like((4, 3)), grid), grid))
    agree("DPMSolverMultistepScheduler", a, x, record_property)


def test_from_network_is_what_the_model_adapter_does(network):
    path, x = ddim.ddpm_linear(), noise_like((2, 1, 8, 8)).float()
    model = PixelModel("tiny", network, {})  # first: it changes the network's memory layout, and so its bits
    adapter, bare = (
        model.guided(Guidance(), PromptConditioning()),
        from_network(lambda x, label: network(x, label).sample, path, "eps"),
    )
    with torch.no_grad():
        a, b = bare(x, path.node(300)), adapter(x, path.node(300))
    assert torch.equal(a.x0, b.x0)
    assert torch.equal(a.eps, b.eps)
