"""The order of rows: a permutation that can be entered anywhere, and shares that fit together."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.exporting.token_order import TokenOrder, part_of, share_of

sizes_of_groups = st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(any)
seeds = st.none() | st.integers(0, 99)


def visited(order, epoch, start, stop):
    """(group, row) pairs at these places."""
    return [
        pair
        for visits in order.visits(epoch, start, stop)
        for pair in zip(visits.groups.tolist(), visits.rows.tolist(), strict=True)
    ]


@settings(deadline=None)
@given(sizes=sizes_of_groups, seed=seeds, mixed=st.integers(1, 4), epoch=st.integers(0, 3), data=st.data())
def test_any_stretch_of_the_order_is_that_of_the_whole(sizes, seed, mixed, epoch, data):
    """An epoch has every row once, and a reader may begin and end anywhere in it, or go round."""
    order = TokenOrder(sizes, seed=seed, groups_mixed=mixed)
    whole = visited(order, epoch, 0, order.num_rows)
    assert sorted(whole) == [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    start = data.draw(st.integers(0, 2 * order.num_rows))
    stop = data.draw(st.integers(start, 2 * order.num_rows))
    assert visited(order, epoch, start, stop) == (whole * 2)[start:stop]


@settings(deadline=None)
@given(sizes=sizes_of_groups, seed=st.integers(0, 99), mixed=st.integers(1, 4))
def test_no_more_groups_are_visited_at_once_than_said(sizes, seed, mixed):
    """What a reader holds in memory is bounded."""
    order = TokenOrder(sizes, seed=seed, groups_mixed=mixed)
    assert all(len(set(visits.groups.tolist())) <= mixed for visits in order.visits(0, 0, order.num_rows))


def test_order_is_mixed_and_changes_with_seed_and_epoch():
    """Stored order without a seed; with one, groups and rows of neighbours are mixed, anew in every epoch."""
    stored = visited(TokenOrder([5] * 8, seed=None, groups_mixed=4), 0, 0, 40)
    assert stored == sorted(stored)
    orders = [
        tuple(visited(TokenOrder([5] * 8, seed=seed, groups_mixed=4), epoch, 0, 40))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len(set(orders)) == 4
    first = orders[0][:20]
    assert len({group for group, _ in first}) == 4
    assert len({group for group, _ in first[:5]}) > 1


@settings(deadline=None)
@given(num_rows=st.integers(0, 50), world_size=st.integers(1, 7), num_workers=st.integers(1, 4))
def test_shares_fit_together(num_rows, world_size, num_workers):
    """Each place belongs to one worker of one rank; equal shares leave out or repeat less than one row a rank."""
    for uneven in ("keep", "drop", "repeat"):
        shares = [share_of(num_rows, rank, world_size, uneven) for rank in range(world_size)]
        places = [
            place for share in shares for worker in range(num_workers) for place in part_of(share, worker, num_workers)
        ]
        assert places == list(range(len(places)))
        lengths = {len(share) for share in shares}
        if uneven == "keep":
            assert len(places) == num_rows
            assert max(lengths) - min(lengths) <= 1
        else:
            assert len(lengths) == 1
            left_out = num_rows - len(places)
            assert 0 <= left_out < world_size if uneven == "drop" else -world_size < left_out <= 0
