"""Cutting a plan into the weights: the student is small, not masked."""

from __future__ import annotations

import numpy as np

from bertjax.model.bert import Model, as_arrays, as_params
from bertjax.modeldir.tensors import encoder_shapes, layer_prefix, span_head_shapes
from bertjax.pruning.search import Plan


def cut(model: Model, plan: Plan) -> Model:
    """The part of a floating-point model that a plan keeps: what it computes with every other gate at 0."""
    config, result = model.config, as_arrays(model.params)
    student = plan.config(config)
    for index, (heads, units) in enumerate(zip(plan.heads, plan.ffn, strict=True)):
        prefix = layer_prefix(index)
        columns = (heads[:, None] * config.head_size + np.arange(config.head_size)).ravel()
        for part in ("query", "key", "value"):
            _keep(result, f"{prefix}.attention.self.{part}.weight", columns, 0)
            _keep(result, f"{prefix}.attention.self.{part}.bias", columns, 0)
        _keep(result, f"{prefix}.attention.output.dense.weight", columns, 1)
        _keep(result, f"{prefix}.intermediate.dense.weight", units, 0)
        _keep(result, f"{prefix}.intermediate.dense.bias", units, 0)
        _keep(result, f"{prefix}.output.dense.weight", units, 1)
    wanted = encoder_shapes(student) | span_head_shapes(student)
    return Model(config=student, params=as_params({name: result[name] for name in wanted}))


def _keep(arrays: dict[str, np.ndarray], name: str, indexes: np.ndarray, axis: int) -> None:
    if name in arrays:  # a block that was already gone has no such tensor
        arrays[name] = np.ascontiguousarray(np.take(arrays[name], indexes, axis=axis))
