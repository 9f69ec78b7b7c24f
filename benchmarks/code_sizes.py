"""How many bytes the code of a picture takes: raw, compressed by parquet's own codecs, and on a coarser lattice.

    python benchmarks/code_sizes.py [--model emoji] [--method bdia] [--steps 50] [--images 16] [--bits 40 24]

The pictures are those that the package carries. Every figure is a mean over them, in bytes for each entry of the state
or for the whole code. For two-node solvers one line stores an entry as the difference from what a DDIM step makes
of the other one, which costs a network call when the code is read.
"""

import argparse
import io

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

import ddim
from ddim.core.guidance import Guidance
from ddim.data.images import read_images
from ddim.inversion.code_file import code_bytes
from ddim.inversion.latent_code import LatentCode
from ddim.models.base import Model
from ddim.models.counted import Counted
from ddim.solvers import lattice, make_solver

SHUFFLED = {"use_dictionary": False, "use_byte_stream_split": True}
LEVELS = (("zstd", 3), ("zstd", 19))


def parquet_bytes(integers: Tensor, codec: str, level: int | None = None, *, shuffled: bool = False) -> int:
    """The bytes of a parquet file with one column of these integers, without those of an empty file."""
    how = SHUFFLED if shuffled else {"use_dictionary": False}

    def size(values: Tensor) -> int:
        sink = io.BytesIO()
        table = pa.table({"m": pa.array(values.flatten().numpy())})
        pq.write_table(table, sink, compression=codec, compression_level=level, **how)
        return sink.getbuffer().nbytes

    return size(integers) - size(integers.flatten()[:0])


def second_entry(model: Model, code: LatentCode) -> Tensor | None:
    """The sample of a two-node solver less the DDIM step from the sample before it, in units of 2**-k, int64."""
    solver = make_solver(code.solver, code.options)
    if set(code.state) != {"x", "before"}:
        return None
    assert isinstance(solver, lattice.ReversibleSolver)
    denoise = model.guided(Guidance(), code.conditions)
    floats = code.floats
    entered = solver.enter(denoise, floats["before"], code.grid, solver.first(code.grid) - 1)
    return ((floats["x"].double() - entered["x"].double()) * 2.0**lattice.BITS).round().long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--method", default="bdia")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--bits", type=int, nargs="+", default=[40, 24])
    options = parser.parse_args()
    model = Counted(ddim.load(options.model, device="cpu"))
    pictures = [str(path) for path in ddim.bundled_test_images(options.model)][: options.images]
    prompts = [path.rsplit("/", 1)[-1].removesuffix(".png").replace("_", " ") for path in pictures]
    words = {"prompt": prompts} if model.text else {}
    for bits in options.bits:
        lattice.BITS = bits  # type: ignore[misc]
        lattice._spacings.cache_clear()
        code = ddim.invert(model, pictures, method=options.method, steps=options.steps, **words)
        again = ddim.reconstruct(model, code)
        x0 = model.decode(model.encode(read_images(pictures, model.picture)))
        n = len(code)
        print(f"\n{model.name}, {options.method}, S = {options.steps}, k = {bits}, {n} pictures")
        print(f"  reconstruction and decoded picture: {float((again - x0).abs().max()):.1e} at most apart")
        for key, integers in code.state.items():
            raw = integers[0].numel() * 8
            used = int(integers.abs().max()).bit_length() + 1
            print(f"  {key}: {raw:,} bytes raw, {used} of 64 bits used")
            for codec, level in LEVELS:
                plain = parquet_bytes(integers, codec, level) / n
                split = parquet_bytes(integers, codec, level, shuffled=True) / n
                print(
                    f"    {codec} {level}: {plain:,.0f} bytes ({raw / plain:.2f}), after byte shuffle {split:,.0f}",
                    end="",
                )
                print(f" ({raw / split:.2f})")
        rest = second_entry(model, code)
        if rest is not None:
            split = parquet_bytes(rest, "zstd", 3, shuffled=True) / n
            used = int(rest.abs().max()).bit_length() + 1
            print(f"  x less the DDIM step from before: {used} bits, zstd 3 after byte shuffle {split:,.0f} bytes")
        whole = [code_bytes(code[k]) for k in range(n)]
        sink = io.BytesIO()
        column = pa.table({"code": pa.array(whole, pa.binary())})
        pq.write_table(column, sink, compression="zstd", use_dictionary=False)
        mean = sum(map(len, whole)) / n
        print(f"  whole code files: {mean:,.0f} bytes raw, {sink.getbuffer().nbytes / n:,.0f} in a part of ddim batch")


if __name__ == "__main__":
    main()
