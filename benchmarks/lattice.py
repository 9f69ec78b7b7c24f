"""The cost of exactness: what an inversion by a reversible solver spends outside its network.

    python benchmarks/lattice.py --network emoji --batch 1 --steps 20 --guidance 7.5

Pictures are inverted by every reversible solver, in turns. The time of all network calls is taken from that of all
steps. The rest is what the solver itself takes: its lifts, the integers and their checks, and the loop. A solver in
floats needs some of that too, so the cost of the lattice is less.
"""

import argparse
import statistics
import time

import torch
from inversion import pictures
from rounds import Network, arguments, headline, opened

import ddim
from ddim.solvers import REVERSIBLE

SOLVERS = {
    **{name: kind() for name, kind in REVERSIBLE.items()},
    **{f"rex {tableau}": ddim.Rex(tableau) for tableau in ("euler", "rk4")},
}


def seconds_of(
    model: ddim.Model, solver: ddim.ReversibleSolver, network: Network, args: argparse.Namespace
) -> tuple[float, float, int]:
    """The seconds of one inversion's steps, those of its network calls, and the number of calls."""
    grid, x0 = model.schedule.grid(args.steps), model.encode(pictures(args.batch, model.picture))
    prompts = network.prompts(args.batch) if network.text else None
    denoise = model.guided(ddim.Guidance(args.guidance), model.condition(None, args.batch, prompts))
    calls: list[float] = []

    def timed(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        began = time.perf_counter()
        pair = denoise(x, node)
        calls.append(time.perf_counter() - began)
        return pair

    with torch.no_grad():
        state = solver.from_image(timed, x0, grid)
        calls.clear()
        began = time.perf_counter()
        ddim.solve_back(timed, solver, state, grid)
        return time.perf_counter() - began, sum(calls), len(calls)


def main() -> None:
    parser = arguments(__doc__, batch=1, rounds=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0, help="the weight, of a text model")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with opened(args.network) as network:
        model = ddim.load(network.folder)
        rounds = [
            {name: seconds_of(model, solver, network, args) for name, solver in SOLVERS.items()}
            for _ in range(args.rounds + 1)
        ][1:]  # the first one warms up
        print(headline(args, f"{network.name}, {args.batch} pictures, S = {args.steps}, {args.rounds} rounds"))
    for name in SOLVERS:
        shares = [1 - asked / whole for whole, asked, _ in (one[name] for one in rounds)]
        whole, asked, calls = min(one[name] for one in rounds)
        print(
            f"{name:16s} {calls:4d} network calls of {1000 * asked / calls:6.2f} ms; the solver itself "
            f"{1000 * (whole - asked) / args.steps:5.2f} ms a step: {statistics.median(shares):.2%} of the inversion "
            f"({min(shares):.2%} to {max(shares):.2%})"
        )


if __name__ == "__main__":
    main()
