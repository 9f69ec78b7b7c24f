"""One network call, made quicker step by step: what each step brings, and how far it is from diffusers' answer.

    python benchmarks/network.py --network emoji --batch 16 --threads 1

Every line adds to the one above it, but for the last. Images/s are of the quickest call, in seconds of processor time
with one thread and of the clock with several; calls take turns.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from rounds import Network, arguments, headline, opened
from sampling import asked, pipeline_of
from torch import Tensor

import ddim
from ddim.models.engine import optimize, winograd
from ddim.models.engine.threads import run_in_threads
from ddim.models.engine.work import Work


def variants(network: Network, args: Namespace) -> dict[str, Callable[[], Tensor]]:
    """A call of each."""
    x, words = asked(network, ddim.load(network.folder), args.batch)
    t = torch.tensor(500)

    def unet(layout: torch.memory_format, least: int | None = None) -> Any:
        made = pipeline_of(network).unet.requires_grad_(False).to(memory_format=layout)
        if least is not None:
            with mock.patch.object(winograd, "MIN_CHANNELS", least):
                optimize.optimize_network(made)
        return made

    def call(which: Any, rows: Tensor, told: Tensor | None) -> Tensor:
        about = {} if told is None else {"encoder_hidden_states": told}
        return which(rows, t, return_dict=False, **about)[0]

    def half(which: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return call(which, x, words)

    plain, last = unet(torch.contiguous_format), unet(torch.channels_last)
    blocks = unet(torch.channels_last, least=2**40)
    wide = unet(torch.channels_last, least=winograd.MIN_CHANNELS)
    work = Work.of(wide).row(x.shape[2] * x.shape[3])
    return {
        "as diffusers loads it": lambda: call(plain, x, words),
        "channels-last": lambda: call(last, x, words),
        "+ blocks in place": lambda: call(blocks, x, words),
        "+ Winograd": lambda: call(wide, x, words),
        "+ threads by work": lambda: run_in_threads(lambda *rows: call(wide, *rows), x, words, row_work=work),
        "channels-last, bfloat16": lambda: half(last),
    }


def main() -> None:
    parser = arguments(__doc__, batch=16, rounds=8)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with opened(args.network) as network, torch.no_grad():
        calls = variants(network, args)
        said = {name: call() for name, call in calls.items()}
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(args.rounds):
            for name, call in calls.items():
                start = clock()
                call()
                best[name] = min(best[name], clock() - start)
        rows = "two rows an image" if network.text else "a row an image"
        print(headline(args, f"{network.name}, {args.batch} images, {rows}, {args.rounds} rounds"))
    first = next(iter(calls))
    for name, seconds in best.items():
        error = ((said[name].float() - said[first]).norm() / said[first].norm()).item()
        print(f"{name:24s} {args.batch / seconds:8.1f} images/s, {best[first] / seconds:.2f} times, error {error:.0e}")


if __name__ == "__main__":
    main()
