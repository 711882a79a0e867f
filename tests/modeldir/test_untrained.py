"""Models that nobody trained have everything that a trained one has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bertjax.model.fakequant import weight_scale
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.tensors import dense_sites, question_answering_shapes
from bertjax.modeldir.untrained import random_model, uncalibrated
from tests.models import PLACEMENTS, QUANTIZATION, tiny_config


def _check(model: StoredModel) -> None:
    shapes = question_answering_shapes(model.config)
    assert {name: array.shape for name, array in model.tensors.items()} == shapes
    assert {array.dtype for array in model.tensors.values()} == {np.dtype(np.float32)}
    for site in dense_sites(model.config) if model.config.quantization else ():
        wanted = weight_scale(model.tensors[site.weight], model.tensors[site.input_scale])
        np.testing.assert_allclose(model.tensors[site.weight_scale], wanted, rtol=1e-6)


@pytest.mark.parametrize("placement", [None, *PLACEMENTS])
def test_random_models_have_every_tensor_and_the_scales_of_their_weights(placement):
    _check(random_model(dataclasses.replace(tiny_config(((2, 64), (0, 32), (1, 0))), quantization=placement)))


def test_a_float_model_is_put_on_the_grid_as_it_is():
    exact = random_model(tiny_config(quantized=False), seed=1)
    model = uncalibrated(exact, QUANTIZATION)
    _check(model)
    assert model.config == dataclasses.replace(exact.config, quantization=QUANTIZATION)
    for name, value in exact.tensors.items():
        assert model.tensors[name] is value
