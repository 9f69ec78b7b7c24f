"""Conditions as values: rows cut, repeated, put one after the other, texts padded and masked; what does not fit."""

import pytest
import torch
from refusals import refused
from torch import Tensor

import ddim
from ddim.core.conditioning import Conditioning, PromptConditioning


def text(n: int, length: int, width: int = 3, start: float = 1.0) -> Tensor:
    """No number twice, and none 0."""
    return torch.arange(n * length * width, dtype=torch.float32).view(n, length, width) + start


def whole(n: int = 3, **numbers: int) -> Conditioning:
    tensors = {"text": text(n, 4), "pooled": text(n, 1)[:, 0], "labels": torch.arange(n)}
    return Conditioning(tensors, numbers)


def equal(a: Conditioning, b: Conditioning) -> bool:
    return (
        a.tensors.keys() == b.tensors.keys()
        and dict(a.numbers) == dict(b.numbers)
        and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    )


def test_its_rows_and_names():
    cond = whole(3, image_size=64)
    assert cond.rows == 3
    assert "text" in cond
    assert "text_mask" not in cond
    assert Conditioning().rows is None


@pytest.mark.parametrize("which", [slice(1, 3), [2, 0, 2], torch.tensor([1, 1]), slice(None, None, 2)], ids=str)
def test_some_of_the_rows(which):
    cond, part = whole(3, image_size=64), whole(3, image_size=64)[which]
    rows = torch.arange(3)[which]
    assert part.rows == len(rows)
    assert all(torch.equal(part.tensors[k], v[rows]) for k, v in cond.tensors.items())
    assert dict(part.numbers) == {"image_size": 64}


def test_without_tensors_any_rows_are_the_same():
    assert Conditioning()[:5].rows is None
    assert Conditioning().repeat(3).rows is None


def test_every_row_repeated_next_to_itself():
    twice = whole(2).repeat(2)
    assert twice.tensors["labels"].tolist() == [0, 0, 1, 1]
    assert equal(twice, whole(2)[[0, 0, 1, 1]])
    assert equal(whole(2).repeat(1), whole(2))


def test_replaced_and_moved_it_is_another_value():
    cond = whole()
    other = cond.replace(labels=torch.tensor([5, 6, 7]), text_mask=torch.ones(3, 4, dtype=torch.bool))
    assert cond.tensors["labels"].tolist() == [0, 1, 2]
    assert other.tensors["labels"].tolist() == [5, 6, 7]
    assert "text_mask" in other
    assert torch.equal(other.tensors["text"], cond.tensors["text"])
    assert cond.to("meta").tensors["text"].device.type == "meta"
    with pytest.raises(AttributeError):
        cond.tensors = {}  # type: ignore[misc]


def test_tensors_of_another_number_of_rows_are_refused():
    with refused("conditioning", [2, 3]):
        Conditioning({"text": text(3, 4), "labels": torch.arange(2)})
    with pytest.raises(ddim.InputError):
        whole(3).replace(labels=torch.arange(2))


# --- one after the other ---------------------------------------------------------------------------------------------


def test_cat_is_slices_undone():
    cond = whole(3, image_size=64)
    assert equal(Conditioning.cat([cond[:1], cond[1:]]), cond)
    assert equal(Conditioning.cat(cond[[k]] for k in range(3)), cond)
    assert Conditioning.cat([cond]) is cond
    assert Conditioning.cat([Conditioning(), Conditioning()]).rows is None


def test_texts_of_one_length_get_no_mask():
    assert "text_mask" not in Conditioning.cat([whole(2), whole(1)])


def test_shorter_texts_are_padded_with_zeros_that_a_mask_leaves_out():
    short, long = Conditioning({"text": text(2, 3)}), Conditioning({"text": text(1, 5)})
    both = Conditioning.cat([short, long])
    assert both.tensors["text"].shape == (3, 5, 3)
    assert torch.equal(both.tensors["text"][:2, :3], short.tensors["text"])
    assert not both.tensors["text"][:2, 3:].any()
    assert torch.equal(both.tensors["text"][2], long.tensors["text"][0])
    mask = both.tensors["text_mask"]
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5]
    # every number that a mask keeps is one that was given, and no other
    assert sorted(both.tensors["text"][mask].flatten().tolist()) == sorted(
        [*short.tensors["text"].flatten().tolist(), *long.tensors["text"].flatten().tolist()]
    )


def test_masks_that_are_there_are_kept_and_made_longer():
    own = torch.tensor([[True, False, True]])
    masked = Conditioning({"text": text(1, 3), "text_mask": own})
    plain = Conditioning({"text": text(1, 3)})
    assert Conditioning.cat([masked, plain]).tensors["text_mask"].tolist() == [[True, False, True], [True] * 3]
    longer = Conditioning.cat([masked, Conditioning({"text": text(1, 4)})])
    assert longer.tensors["text_mask"].tolist() == [[True, False, True, False], [True] * 4]
    again = Conditioning.cat([longer, Conditioning({"text": text(1, 6)})])
    assert again.tensors["text_mask"].tolist() == [
        [True, False, True, False, False, False],
        [True] * 4 + [False] * 2,
        [True] * 6,
    ]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Conditioning({"labels": torch.arange(2)}), Conditioning({"text": text(2, 3)})),
        (whole(2), Conditioning({"text": text(2, 4)})),
        (Conditioning(), Conditioning({"labels": torch.arange(2)})),
        (whole(2, image_size=64), whole(2, image_size=128)),
        (whole(2, image_size=64), whole(2)),
    ],
    ids=["other names", "a name too few", "nothing and something", "other numbers", "a number too few"],
)
def test_conditions_of_another_structure_are_refused(a, b):
    for pair in ([a, b], [b, a]):
        with refused("conditioning", *a.tensors, *b.tensors):
            Conditioning.cat(pair)


# --- both branches ---------------------------------------------------------------------------------------------------


def both(n: int = 3) -> PromptConditioning:
    cond = whole(n)
    return PromptConditioning(cond, cond.replace(labels=torch.full((n,), 9)))


def test_both_branches_go_together():
    part = both()[[2, 0]]
    assert part.uncond is not None
    assert part.cond.tensors["labels"].tolist() == [2, 0]
    assert part.uncond.tensors["labels"].tolist() == [9, 9]
    repeated = both(2).repeat(2)
    assert repeated.uncond is not None
    assert repeated.cond.tensors["labels"].tolist() == [0, 0, 1, 1]
    assert repeated.uncond.rows == 4
    joined = PromptConditioning.cat([both()[:1], both()[1:]])
    assert joined.uncond is not None
    assert equal(joined.cond, both().cond)
    assert equal(joined.uncond, both().uncond)


def test_without_an_opposite_there_is_none():
    lone = PromptConditioning(whole(2))
    assert lone[:1].uncond is None
    assert lone.repeat(2).uncond is None
    assert PromptConditioning.cat([lone, lone]).uncond is None
    assert PromptConditioning().cond.rows is None
    with pytest.raises(ddim.InputError) as caught:
        PromptConditioning.cat([lone, both()])
    assert caught.value.parameter == "conditioning"


def test_what_cannot_stand_in_one_batch_is_one_sentence():
    wide, narrow = (Conditioning({"text": torch.zeros(1, 3, width)}) for width in (4, 5))
    for parts in ([], [wide, narrow]):
        with pytest.raises(ddim.InputError) as caught:
            Conditioning.cat(parts)
        assert caught.value.parameter == "conditioning"
