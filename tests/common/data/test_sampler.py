from common.data.sampler import DrawSampler


def draws(length=23, rank=0, world=1, batch=4, epoch=0, seed=0):
    sampler = DrawSampler(length, rank, world, batch, seed)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def test_processes_share_out_the_order_of_one():
    one = draws(batch=4, world=1, epoch=3)
    for world in (2, 4):
        parts = [draws(rank=r, batch=4 // world, world=world, epoch=3) for r in range(world)]
        assert sorted((d for part in parts for d in part), key=lambda d: d.number) == one
        for r, part in enumerate(parts):
            assert part == one[r::world]


def test_an_epoch_draws_each_image_once_in_a_new_order():
    orders = [[d.index for d in draws(batch=1, epoch=epoch)] for epoch in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[1] == [d.index for d in draws(batch=1, epoch=1)]
    assert orders[1] != [d.index for d in draws(batch=1, epoch=1, seed=1)]


def test_a_resume_goes_on_where_the_epoch_stopped():
    whole = draws(rank=1, world=2, batch=3, epoch=5)
    sampler = DrawSampler(23, 1, 2, 3, seed=0)
    sampler.resume(epoch=5, start_batch=2)
    assert list(sampler) == whole[2 * 3 :]
    sampler.set_epoch(5)  # as a trainer does before it begins
    assert list(sampler) == whole[2 * 3 :]
    sampler.set_epoch(6)
    assert list(sampler) == draws(rank=1, world=2, batch=3, epoch=6)
