"""Law 6: witnesses written from the papers, with their own time-indexed formulas and none of the library's helpers."""

import math

import pytest
import torch
from oracles import gaussian, mixture, noise_like

import ddim
from ddim.solvers.one_stage import implicit_step

PATH = ddim.ddpm_linear()
PROBLEMS = {"gaussian": gaussian(3), "mixture": mixture(3)}
# The steps of ``beta`` differ by factors of hundreds, which multistep formulas enlarge rounding by.
EVEN_ENOUGH = [s for s in ddim.SPACINGS if s != "beta"]
GRIDS = {s: ddim.make_grid(PATH, 20, s) for s in EVEN_ENOUGH}
every_problem = pytest.mark.parametrize("problem", PROBLEMS)
every_grid = pytest.mark.parametrize("spacing", GRIDS)
X = noise_like((4, 3))
LATTICE = 1e-9  # reversible solvers round to multiples of some 2**-40 in every step, and may enlarge that


def forward(solver, problem: str, grid: ddim.Grid, noise=None) -> torch.Tensor:
    return solver.read(ddim.solve(PROBLEMS[problem], solver, solver.init(X, grid), grid, noise=noise))


def backward(solver, problem: str, grid: ddim.Grid):
    data = PROBLEMS[problem]
    return ddim.solve_back(data, solver, solver.from_image(data, data.draw(4), grid), grid)


def compare(name: str, a: torch.Tensor, b: torch.Tensor, record_property, tolerance: float = 1e-12) -> None:
    worst = float((a - b).abs().max())
    record_property("largest_disagreement", worst)
    print(f"formula {name:40} {worst:.1e}")
    assert worst <= tolerance * float(b.abs().max().clamp(min=1))


# --- the coordinate of a path ----------------------------------------------------------------------------------------

FLOW = {f"flow {s}": ddim.make_grid(ddim.RectifiedFlow(), 20, s) for s in EVEN_ENOUGH}
VE = {f"ve {s}": ddim.make_grid(ddim.VEPath(), 20, s) for s in EVEN_ENOUGH}
GRIDS_OF_PATHS = {**GRIDS, **FLOW, **VE}
every_path = pytest.mark.parametrize("grid", GRIDS_OF_PATHS)
every_flow = pytest.mark.parametrize("grid", FLOW)


class Coordinate:
    """gamma and w of Rex' noise prediction, with the network in them; on rectified flow sigma, 1 and the velocity."""

    def __init__(self, problem: str, grid: str) -> None:
        self.data, self.straight, self.ve = PROBLEMS[problem], grid in FLOW, grid in VE
        self.nodes = GRIDS_OF_PATHS[grid].nodes
        self.gamma = [n.sigma if self.straight else n.sigma / n.alpha for n in self.nodes]
        self.w = [1.0 if self.straight else n.alpha for n in self.nodes]

    def f(self, gamma: float, u: torch.Tensor) -> torch.Tensor:
        """du / dgamma. The level of a gamma is known without the library: from alpha + sigma = 1, alpha = 1, or
        alpha^2 + sigma^2 = 1."""
        alpha = 1 - gamma if self.straight else 1.0 if self.ve else 1 / math.sqrt(1 + gamma**2)
        node = ddim.Node(math.nan, alpha, gamma if self.straight else gamma * alpha)
        pair = self.data(u if self.straight else alpha * u, node)
        return pair.eps - pair.x0 if self.straight else pair.eps


# --- one value -------------------------------------------------------------------------------------------------------


@every_grid
@every_problem
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_k_diffusions_euler_ancestral_is_the_eta_family(eta, problem, spacing, record_property):
    """In Karras coordinates u = x / alpha, s = sigma / alpha; ``get_ancestral_step`` of k-diffusion."""
    grid, data = GRIDS[spacing], PROBLEMS[problem]
    noise = [noise_like((4, 3), 50 + k) for k in range(20)]
    u = X / grid[0].alpha
    for i in range(grid.steps):
        here, there = grid[i].ratio, grid[i + 1].ratio
        denoised = data(grid[i].alpha * u, grid[i]).x0
        up = min(there, eta * math.sqrt(there**2 * (here**2 - there**2) / here**2))
        down = math.sqrt(there**2 - up**2)
        u = u + (u - denoised) / here * (down - here) + noise[i] * up
    feed = iter(noise)
    a = forward(ddim.make_solver("ddim", {"eta": eta}), problem, grid, lambda like: next(feed))
    compare(f"euler ancestral {problem} {spacing} eta {eta}", a, u * grid[-1].alpha, record_property)


@every_path
@every_problem
def test_heun_is_the_improved_euler_method(problem, grid, record_property):
    """Algorithm 1 of Karras et al. 2022 (no churn) on dx/dsigma = (x - D(x; sigma)) / sigma; on flow, the velocity."""
    at, nodes = Coordinate(problem, grid), GRIDS_OF_PATHS[grid]
    u = X / at.w[0]
    for i in range(nodes.steps):
        h = at.gamma[i + 1] - at.gamma[i]
        d = at.f(at.gamma[i], u)
        u_next = u + h * d
        if nodes[i + 1].sigma > 0:
            u_next = u + h * (d + at.f(at.gamma[i + 1], u_next)) / 2
        u = u_next
    result = forward(ddim.make_solver("heun"), problem, nodes)
    compare(f"heun {problem} {grid}", result, u * at.w[-1], record_property, 1e-11)


@every_path
@every_problem
def test_adams_bashforth_integrates_the_line_through_two_slopes(problem, grid, record_property):
    at, nodes = Coordinate(problem, grid), GRIDS_OF_PATHS[grid]
    u, before = X / at.w[0], None
    for i in range(nodes.steps):
        a, b = at.gamma[i], at.gamma[i + 1]
        slope = at.f(a, u)
        if before is None:
            u_next = u + (b - a) * slope
        else:
            tilt = (slope - before[1]) / (a - before[0])
            u_next = u + (b - a) * slope + tilt * (b - a) ** 2 / 2
        u, before = u_next, (a, slope)
    result = forward(ddim.make_solver("adams-bashforth"), problem, nodes)
    compare(f"adams-bashforth {problem} {grid}", result, u * at.w[-1], record_property, 1e-11)


@every_grid
@every_problem
def test_dpm_solver_plus_plus_2m(problem, spacing, record_property):
    """Algorithm 2 of Lu et al. 2022 (arXiv 2211.01095), with h and r of the paper."""
    grid, data = GRIDS[spacing], PROBLEMS[problem]
    logs = [math.log(n.alpha / n.sigma) if n.sigma else math.inf for n in grid]
    x, q = X, []
    for i in range(1, grid.steps + 1):
        q.append(data(x, grid[i - 1]).x0)
        h = logs[i] - logs[i - 1]
        d = q[-1]
        if i > 1 and math.isfinite(h):
            r = (logs[i - 1] - logs[i - 2]) / h
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = grid[i].sigma / grid[i - 1].sigma * x - grid[i].alpha * math.expm1(-h) * d
    result = forward(ddim.make_solver("dpm++2m"), problem, grid)
    compare(f"dpm++2m {problem} {spacing}", result, x, record_property, 1e-11)


# --- the reversible ones, in the papers' own indexing: t falls to 0 -------------------------------------------------


def table(grid: ddim.Grid) -> tuple[list[float], list[float], list[ddim.Node]]:
    """alpha_t and sigma_t with t = T..0 counting down along the grid, so that list index t is the paper's."""
    nodes = list(reversed(grid.nodes))
    return [n.alpha for n in nodes], [n.sigma for n in nodes], nodes


@every_grid
@every_problem
@pytest.mark.parametrize("p", [0.93, 0.8])
def test_edict(p, problem, spacing, record_property):
    """Wallace et al. 2023: two affine half steps, which swap every step, then two mixing layers, x and then y."""
    grid = GRIDS[spacing]
    alpha, sigma, nodes = table(grid)
    x = y = X
    for number, t in enumerate(range(grid.steps, 0, -1)):
        a = alpha[t - 1] / alpha[t]
        b = sigma[t - 1] - sigma[t] * a

        def eps(z, t=t):
            return PROBLEMS[problem](z, nodes[t]).eps

        if number % 2 == 0:
            x = a * x + b * eps(y)
            y = a * y + b * eps(x)
        else:
            y = a * y + b * eps(x)
            x = a * x + b * eps(y)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    result = forward(ddim.make_solver("edict", {"p": p}), problem, grid)
    compare(f"edict p {p} {problem} {spacing}", result, x, record_property, LATTICE)


def ddim_step(x, eps, alpha, sigma, t: int, s: int):
    """The DDIM update from t to s, either way: alpha_s (x - sigma_t eps) / alpha_t + sigma_s eps."""
    return alpha[s] * (x - sigma[t] * eps) / alpha[t] + sigma[s] * eps


@every_grid
@every_problem
@pytest.mark.parametrize("gamma", [1.0, 0.96, 0.5])
def test_bdia(gamma, problem, spacing, record_property):
    """Zhang et al. 2023: x_{i-1} = gamma x_{i+1} + DDIM(x_i; i -> i-1) - gamma DDIM(x_i; i -> i+1)."""
    grid = GRIDS[spacing]
    alpha, sigma, nodes = table(grid)
    last = grid.steps
    x = {last: X, last - 1: ddim_step(X, PROBLEMS[problem](X, nodes[last]).eps, alpha, sigma, last, last - 1)}
    for i in range(last - 1, 0, -1):
        eps = PROBLEMS[problem](x[i], nodes[i]).eps
        forth = ddim_step(x[i], eps, alpha, sigma, i, i - 1)
        back = ddim_step(x[i], eps, alpha, sigma, i, i + 1)
        x[i - 1] = gamma * x[i + 1] + forth - gamma * back
    result = forward(ddim.make_solver("bdia", {"gamma": gamma}), problem, grid)
    compare(f"bdia gamma {gamma} {problem} {spacing}", result, x[0], record_property, LATTICE)


@every_grid
@every_problem
def test_belm(problem, spacing, record_property):
    """Eq. 18 of Wang et al. 2024, O-BELM, as their code prints it; the first step is DDIM's."""
    grid = GRIDS[spacing]
    alpha, sigma, nodes = table(grid)
    last = grid.steps
    h = {i: sigma[i] / alpha[i] - sigma[i - 1] / alpha[i - 1] for i in range(1, last + 1)}
    x = {last: X, last - 1: ddim_step(X, PROBLEMS[problem](X, nodes[last]).eps, alpha, sigma, last, last - 1)}
    for i in range(last - 1, 0, -1):
        eps = PROBLEMS[problem](x[i], nodes[i]).eps
        x[i - 1] = (
            h[i] ** 2 / h[i + 1] ** 2 * alpha[i - 1] / alpha[i + 1] * x[i + 1]
            + (h[i + 1] ** 2 - h[i] ** 2) / h[i + 1] ** 2 * alpha[i - 1] / alpha[i] * x[i]
            - h[i] * (h[i] + h[i + 1]) / h[i + 1] * alpha[i - 1] * eps
        )
    result = forward(ddim.make_solver("belm"), problem, grid)
    # Steps of uneven length, which belm enlarges rounding in: 20 of 50 levels are 2 and 3 levels apart by turns.
    compare(f"belm {problem} {spacing}", result, x[0], record_property, 10 * LATTICE if spacing == "lcm" else LATTICE)


@every_flow
@every_problem
def test_belm_on_flow_continues_a_parabola(problem, grid, record_property):
    """Through x_{i-1} and x_i, with the velocity at x_i; the first step is Euler's."""
    at, nodes = Coordinate(problem, grid), GRIDS_OF_PATHS[grid]
    before, x = X, X + (at.gamma[1] - at.gamma[0]) * at.f(at.gamma[0], X)
    for i in range(1, nodes.steps):
        v, back, forth = at.f(at.gamma[i], x), at.gamma[i - 1] - at.gamma[i], at.gamma[i + 1] - at.gamma[i]
        bend = (before - x - v * back) / back**2
        before, x = x, x + v * forth + bend * forth**2
    result = forward(ddim.make_solver("belm"), problem, nodes)
    compare(f"belm {problem} {grid}", result, x, record_property, COORDINATE)


@every_flow
@every_problem
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_bdia_on_flow(gamma, problem, grid, record_property):
    """x_{i+1} = gamma x_{i-1} + D(i -> i+1) - gamma D(i -> i-1), where D is a step along the velocity."""
    at, nodes = Coordinate(problem, grid), GRIDS_OF_PATHS[grid]
    before, x = X, X + (at.gamma[1] - at.gamma[0]) * at.f(at.gamma[0], X)
    for i in range(1, nodes.steps):
        v = at.f(at.gamma[i], x)
        forth, back = (x + v * (at.gamma[j] - at.gamma[i]) for j in (i + 1, i - 1))
        before, x = x, gamma * before + forth - gamma * back
    result = forward(ddim.make_solver("bdia", {"gamma": gamma}), problem, nodes)
    compare(f"bdia {gamma} {problem} {grid}", result, x, record_property, LATTICE)


@every_flow
@every_problem
def test_edict_on_flow_steps_along_eps(problem, grid, record_property):
    """As on every path. Where alpha = 0 both copies make the same step, which is towards x0."""
    nodes, data = GRIDS_OF_PATHS[grid], PROBLEMS[problem]
    x = y = X
    for i in range(nodes.steps):
        t, s = nodes[i].sigma, nodes[i + 1].sigma
        if t == 1:
            x = y = X + (s - 1) * Coordinate(problem, grid).f(1.0, X)
            continue
        a, b = (1 - s) / (1 - t), (s - t) / (1 - t)
        for moved in ("xy", "yx")[i % 2]:
            if moved == "x":
                x = a * x + b * data(y, nodes[i]).eps
            else:
                y = a * y + b * data(x, nodes[i]).eps
        x = 0.93 * x + 0.07 * y
        y = 0.93 * y + 0.07 * x
    result = forward(ddim.make_solver("edict"), problem, nodes)
    compare(f"edict {problem} {grid}", result, x, record_property, COORDINATE)


@every_flow
@pytest.mark.parametrize(("timestep", "ahead"), [("destination", 1), ("source", 0)])
def test_ddim_inversion_on_flow_steps_along_the_velocity(timestep, ahead, grid, record_property):
    at, nodes = Coordinate("mixture", grid), GRIDS_OF_PATHS[grid]
    x0 = PROBLEMS["mixture"].draw(4)
    x, sigmas = x0, at.gamma[::-1]
    for i in range(nodes.steps):
        x = x + (sigmas[i + 1] - sigmas[i]) * at.f(sigmas[i + ahead], x)
    state = ddim.make_inversion("ddim", {"timestep": timestep}).invert(PROBLEMS["mixture"], x0, nodes).state
    compare(f"ddim inversion {timestep} {grid}", state["x"], x, record_property)


def euler(f, gamma, u, h):
    return h * f(gamma, u)


def midpoint(f, gamma, u, h):
    return h * f(gamma + h / 2, u + h / 2 * f(gamma, u))


def runge_kutta_4(f, gamma, u, h):
    k1 = f(gamma, u)
    k2 = f(gamma + h / 2, u + h / 2 * k1)
    k3 = f(gamma + h / 2, u + h / 2 * k2)
    k4 = f(gamma + h, u + h * k3)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


METHODS = {"euler": euler, "midpoint": midpoint, "rk4": runge_kutta_4}
COORDINATE = 1e-8  # a node within a step is found in a table by its angle, and Rex enlarges the difference on its way


@every_path
@every_problem
@pytest.mark.parametrize("zeta", [0.999, 0.8])
@pytest.mark.parametrize("tableau", METHODS)
def test_rex(tableau, zeta, problem, grid, record_property):
    """Blasingame & Liu 2025: the coupling of McCallum & Foster 2024, forth and, by its inverse, back."""
    at, psi, last = Coordinate(problem, grid), METHODS[tableau], len(GRIDS_OF_PATHS[grid]) - 1
    x = hat = X
    for i in range(last):
        h, w, w_next = at.gamma[i + 1] - at.gamma[i], at.w[i], at.w[i + 1]
        x = w_next / w * (zeta * x + (1 - zeta) * hat) + w_next * psi(at.f, at.gamma[i], hat / w, h)
        hat = w_next / w * hat - w_next * psi(at.f, at.gamma[i + 1], x / w_next, -h)
    solver = ddim.make_solver("rex", {"tableau": tableau, "zeta": zeta})
    end = forward(solver, problem, GRIDS_OF_PATHS[grid])
    compare(f"rex {tableau} {zeta} {problem} {grid}", end, x, record_property, COORDINATE)
    x = hat = PROBLEMS[problem].draw(4)
    for i in reversed(range(last)):
        h, w, w_next = at.gamma[i + 1] - at.gamma[i], at.w[i], at.w[i + 1]
        hat = w / w_next * hat + w * psi(at.f, at.gamma[i + 1], x / w_next, -h)
        x = w / w_next * x / zeta + (1 - 1 / zeta) * hat - w / zeta * psi(at.f, at.gamma[i], hat / w, h)
    state = backward(solver, problem, GRIDS_OF_PATHS[grid])
    for key, value in (("x", x), ("hat", hat)):
        compare(f"rex back {tableau} {zeta} {problem} {grid}", state.entry(key), value, record_property, COORDINATE)


@every_path
@every_problem
def test_reversible_heun(problem, grid, record_property):
    """Algorithm 1 of Kidger et al. 2021 without noise: a step of z-hat by the slope at it, of z by the trapezoid."""
    at, last = Coordinate(problem, grid), len(GRIDS_OF_PATHS[grid]) - 1
    z = hat = X / at.w[0]
    for n in range(last):
        h, slope = at.gamma[n + 1] - at.gamma[n], at.f(at.gamma[n], hat)
        hat = 2 * z - hat + slope * h
        z = z + (slope + at.f(at.gamma[n + 1], hat)) * h / 2
    solver = ddim.make_solver("reversible-heun")
    end = forward(solver, problem, GRIDS_OF_PATHS[grid])
    compare(f"reversible heun {problem} {grid}", end, z * at.w[-1], record_property, LATTICE)
    z = hat = PROBLEMS[problem].draw(4) / at.w[-1]
    for n in reversed(range(last)):  # algorithm 2, its inverse
        h, slope = at.gamma[n + 1] - at.gamma[n], at.f(at.gamma[n + 1], hat)
        hat = 2 * z - hat - slope * h
        z = z - (slope + at.f(at.gamma[n], hat)) * h / 2
    state = backward(solver, problem, GRIDS_OF_PATHS[grid])
    for key, value in (("x", z), ("hat", hat)):
        compare(f"reversible heun back {problem} {grid}", state.entry(key), value * at.w[0], record_property, LATTICE)


@every_grid
def test_ddim_inversion_with_either_label(spacing, record_property):
    """x_t = alpha_t (x_s - sigma_s eps) / alpha_s + sigma_t eps, with eps at (x_s, t) or at (x_s, s)."""
    grid, data = GRIDS[spacing], PROBLEMS["mixture"]
    alpha, sigma, nodes = table(grid)
    for label, ahead in (("destination", 1), ("source", 0)):
        x = data.draw(4)
        for s in range(grid.steps):
            x = ddim_step(x, data(x, nodes[s + ahead]).eps, alpha, sigma, s, s + 1)
        inversion = ddim.make_inversion("ddim", {"timestep": label})
        state = inversion.invert(data, data.draw(4), grid).state
        compare(f"ddim inversion {label} {spacing}", state["x"], x, record_property)


ZERO_SNR = ddim.make_grid(ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar())), 20)
IMPLICIT = {
    **{name: (grid, grid.steps - 2) for name, grid in GRIDS.items()},
    **{f"{name}, from noise": (FLOW[name], 0) for name in ("flow trailing", "flow linspace", "flow quadratic")},
    "zero-snr, from noise": (ZERO_SNR, 0),
}


@pytest.mark.parametrize("name", IMPLICIT)
def test_the_implicit_step_solved_is_ddims_inverse(name):
    """Also from a node without signal, where eps is x itself, so that an iteration by eps would change nothing."""
    (grid, i), data = IMPLICIT[name], PROBLEMS["mixture"]
    x, many = data.draw(4), {"iterations": 200}
    inversion = ddim.make_inversion("ddim", many)
    for back in (implicit_step(data, x, grid, i, **many), inversion.unstep(data, {"x": x}, grid, i)["x"]):
        again = ddim.make_solver("ddim").step(data, {"x": back}, grid, i, None)["x"]
        assert torch.allclose(again, x, rtol=0, atol=1e-12)
