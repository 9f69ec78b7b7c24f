import math

import pytest
import tiny_text
import torch
from oracles import noise_like
from refusals import refused

import ddim
from ddim.core.slerp import chain, four_corners, slerp

A, B = noise_like((3, 2, 5), 1), noise_like((3, 2, 5), 2)
WEIGHTS = [0.1, 0.25, 0.5, 0.9]
weights = pytest.mark.parametrize("w", WEIGHTS)


def norms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1) / (norms(a) * norms(b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_ends_are_the_codes_to_the_bit(dtype):
    a, b = A.to(dtype), B.to(dtype)
    assert torch.equal(slerp(a, b, 0), a)
    assert torch.equal(slerp(a, b, 1), b)
    assert slerp(a, b, 0.5).dtype == dtype


@weights
def test_the_arc_between_equal_norms_keeps_the_norm(w):
    a, b = A / norms(A)[:, None, None], B / norms(B)[:, None, None]
    assert torch.allclose(norms(slerp(a, b, w)), torch.ones(3).double(), rtol=0, atol=1e-12)


@weights
def test_the_angle_is_the_weight_of_the_whole(w):
    a, b = A / norms(A)[:, None, None], B / norms(B)[:, None, None]
    assert torch.allclose(cosine(a, slerp(a, b, w)).acos(), w * cosine(a, b).acos(), rtol=0, atol=1e-9)


@weights
def test_it_is_appendix_d5s_formula(w):
    # sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b
    theta = cosine(A, B).acos()[:, None, None]
    expected = ((1 - w) * theta).sin() / theta.sin() * A + (w * theta).sin() / theta.sin() * B
    assert torch.allclose(slerp(A, B, w), expected, rtol=0, atol=1e-12)


@weights
def test_each_sample_has_its_own_angle(w):
    together = slerp(A, B, w)
    for k in range(3):
        assert torch.allclose(slerp(A[k : k + 1], B[k : k + 1], w), together[k : k + 1], rtol=0, atol=1e-15)
    # the reference code's one angle for the whole batch is another curve
    theta = math.acos(float((A * B).sum() / (A.norm() * B.norm())))
    one = math.sin((1 - w) * theta) / math.sin(theta) * A + math.sin(w * theta) / math.sin(theta) * B
    assert not torch.allclose(one, together, rtol=0, atol=1e-3)


@weights
@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-9])
def test_parallel_codes_go_straight(w, factor):
    assert torch.allclose(slerp(A, factor * A, w), (1 - w + w * factor) * A, rtol=1e-12)


@weights
@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5, 1e-8])
def test_nearly_parallel_codes_are_continuous(w, gap):
    near = A + gap * B
    assert torch.allclose(slerp(A, near, w), (1 - w) * A + w * near, rtol=0, atol=10 * gap**2)


@weights
@pytest.mark.parametrize("gap", [0.0, 1e-9])
def test_opposite_codes_turn_half_a_circle(w, gap):
    between = slerp(A, -A + gap * B, w)
    assert torch.allclose(norms(between), norms(A), rtol=1e-6)
    assert torch.allclose(cosine(A, between).acos(), torch.full((3,), math.pi * w).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("a", [torch.ones(1, 6), torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.ones(1, 1)])
def test_opposite_codes_that_a_roll_does_not_turn(a):
    # the rolled vector is parallel to the first: any other direction has to serve
    a = a.double()
    between = slerp(a, -a, 0.3)
    assert between.isfinite().all()
    if a.numel() > 1:
        assert torch.allclose(norms(between), norms(a), rtol=1e-6)


@weights
def test_a_zero_code_goes_straight(w):
    assert torch.allclose(slerp(torch.zeros_like(A), B, w), w * B, rtol=0, atol=1e-15)
    assert torch.allclose(slerp(A, torch.zeros_like(A), w), (1 - w) * A, rtol=0, atol=1e-15)


def test_a_mixed_batch_takes_each_branch_by_sample():
    a = torch.cat([A, A[:1], A[:1], A[:1]])
    b = torch.cat([B, A[:1], -A[:1], 0 * A[:1]])
    together = slerp(a, b, 0.3)
    for k in range(6):
        assert torch.allclose(together[k : k + 1], slerp(a[k : k + 1], b[k : k + 1], 0.3), rtol=0, atol=1e-15)


def test_shapes_must_agree():
    with refused(None, (3, 2, 5), (2, 2, 5)):
        slerp(A, B[:2], 0.5)


@pytest.mark.parametrize(("points", "frames", "length"), [(2, 2, 2), (2, 11, 11), (3, 5, 9), (4, 3, 7)])
def test_a_chain_shares_its_inner_ends(points, frames, length):
    codes = [noise_like((1, 4), k) for k in range(points)]
    out = chain(codes, frames)
    assert len(out) == length
    for k, code in enumerate(codes):
        assert torch.equal(out[k * (frames - 1)], code[0])


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 5)])
def test_a_grid_has_the_codes_at_its_corners(rows, columns):
    codes = [noise_like((1, 4), k) for k in range(4)]
    out = four_corners(codes, rows, columns).view(rows, columns, 4)
    for (r, c), code in zip([(0, 0), (0, -1), (-1, 0), (-1, -1)], codes, strict=True):
        assert torch.equal(out[r, c], code[0])
    assert torch.equal(out[0, 1:2], slerp(codes[0], codes[1], 1 / (columns - 1)))


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: chain([A[:1]], 5), refused("codes")),
        (lambda: chain([A[:1], B[:1]], 1), refused("frames", 1)),
        (lambda: four_corners([A[:1]] * 3, 3, 3), refused("corners", 3)),
        (lambda: four_corners([A[:1]] * 4, 1, 3), refused("grid", "1x3", "2x2")),
    ],
)
def test_an_interpolation_that_cannot_be(make, refusal):
    with refusal:
        make()


# --- codes with text, each with what is its own -----------------------------------------------------------------------


def tuned(method: str, **options: object) -> ddim.LatentCode:
    """Two pictures of one prompt, guided."""
    return ddim.invert(
        tiny_text.model(), tiny_text.pictures(2), steps=3, method=method, options=options, prompt="a cat", guidance=3.0
    )


def test_codes_with_their_own_null_embedding_go_through_ddim():
    model, code = tiny_text.model(), tuned("null-text", scope="global", inner=3, stop=0)
    opposites = code.conditions.uncond
    assert opposites is not None
    assert not torch.equal(*opposites.tensors["text"])
    back = ddim.reconstruct(model, code)
    for codes in ([code], [code[0], code[1]]):
        frames = ddim.interpolate(model, *codes, frames=3)
        assert torch.equal(frames[[0, -1]], back)
    plain = ddim.invert(model, back, steps=3, prompt="a cat")  # which frames between are arcs of
    assert torch.allclose(frames[1], ddim.interpolate(model, plain, frames=3)[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "kept"),
    [
        ("null-text", {"scope": "global", "inner": 2, "stop": 0}, "null embedding each"),
        ("null-text", {"inner": 2}, "null embedding for every step"),
        ("edit-friendly", {}, "noise map for every step"),
        ("direct", {}, "pivot for every step"),
    ],
)
def test_what_cannot_be_mixed_is_named(method, options, kept):
    with refused("through", repr(method), kept, "'ddim'"):
        ddim.interpolate(tiny_text.model(), tuned(method, **options), through="state")


def test_a_null_embedding_a_step_and_one_for_all_do_not_belong_together():
    one, other = tuned("null-text", inner=1), tuned("null-text", inner=1, scope="global")
    with refused("codes", "'step'", "'global'"):
        ddim.interpolate(tiny_text.model(), one[0], other[1])
