"""The in-memory loader: orders are functions of (seed, epoch), ranks share each global batch, any step can be sought."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quartet.data.memory import MemoryLoader, Samples, sequential, shuffled


def samples(n: int) -> Samples:
    return Samples({"x": torch.arange(n).float()[:, None]}, torch.arange(n))


def loader(n: int = 23, **settings) -> MemoryLoader:
    given = {"batch_size": 4, "order": shuffled(n, seed=1), "drop_last": False, **settings}
    return MemoryLoader(samples(n), **given)


def ids(some: MemoryLoader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in some]


@given(n=st.integers(0, 50), seed=st.integers(0, 2**40), epoch=st.integers(0, 100))
def test_a_shuffled_order_is_a_permutation_drawn_from_seed_and_epoch(n, seed, epoch):
    order = shuffled(n, seed)(epoch)
    assert sorted(order.tolist()) == list(range(n))
    torch.manual_seed(epoch)  # the global state plays no part
    assert torch.equal(order, shuffled(n, seed)(epoch))


def test_seed_and_epoch_both_change_the_order():
    orders = [tuple(shuffled(50, seed)(epoch).tolist()) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25  # 50! orders: the same twice by chance is impossible


def test_a_batch_holds_inputs_targets_and_ids_of_the_same_samples():
    for batch in loader():
        assert torch.equal(batch["inputs"]["x"][:, 0].long(), batch["index"])
        assert torch.equal(batch["target"], batch["index"])


@pytest.mark.parametrize(("drop_last", "steps", "seen"), [(True, 5, 20), (False, 6, 23)])
def test_an_epoch_sees_each_sample_at_most_once(drop_last, steps, seen):
    some = loader(drop_last=drop_last)
    batches = ids(some)
    assert len(batches) == len(some) == steps
    assert len({i for batch in batches for i in batch}) == sum(map(len, batches)) == seen


def test_epochs_follow_each_other():
    some = loader()
    first, second = ids(some), ids(some)
    assert first != second
    assert (some.epoch, some.step) == (2, 0)


@given(epoch=st.integers(0, 3), step=st.integers(0, 5))
def test_seeking_gives_the_batches_that_would_have_come(epoch, step):
    whole, resumed = loader(), loader()
    whole.seek(epoch, 0)
    resumed.seek(epoch, step)
    assert ids(resumed) == ids(whole)[step:]
    assert ids(resumed) == ids(whole)  # and then the next epoch


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_one_process_would_have_seen(world):
    alone = loader(n=48, order=shuffled(48, 0), batch_size=4 * world)
    ranks = [loader(n=48, order=shuffled(48, 0), rank=rank, world=world) for rank in range(world)]
    assert all(len(rank) == len(alone) for rank in ranks)
    for batch, *shares in zip(ids(alone), *map(ids, ranks), strict=True):
        assert sorted(batch) == sorted(i for share in shares for i in share)
        assert [len(share) for share in shares] == [4] * world


def test_sequential_is_in_order_each_epoch():
    assert ids(loader(order=sequential(23))) == [list(range(i, min(i + 4, 23))) for i in range(0, 23, 4)]


def test_inputs_and_targets_must_agree():
    with pytest.raises(AssertionError, match="differ in length"):
        Samples({"x": torch.zeros(3)}, torch.zeros(2))
