import pytest

from bertjax.engines.timing.cost import BatchCost, fit_cost


def test_a_cost_is_found_again_and_no_term_is_negative():
    cost = BatchCost(batch=3e-3, token=2e-5, pair=3e-8)
    shapes = [(1, 32), (1, 384), (2, 128), (8, 128), (2, 384)]
    found = fit_cost(*zip(*shapes, strict=True), [cost.seconds(*shape) for shape in shapes])
    assert (found.batch, found.token, found.pair) == pytest.approx((3e-3, 2e-5, 3e-8))
    falling = fit_cost([1, 1, 1], [100, 200, 300], [1.0, 1.5, 1.6])  # less per pair: a negative third term
    assert min(falling.batch, falling.token, falling.pair) == 0.0 and falling.seconds(1, 200) == pytest.approx(
        1.4, abs=0.2
    )
