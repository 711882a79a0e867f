"""Cutting a plan into the weights: the student is small, not masked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.tensors import encoder_shapes, layer_prefix, span_head_shapes
from bertjax.pruning.search import Plan


def cut(config: BertConfig, arrays: Mapping[str, np.ndarray], plan: Plan) -> tuple[BertConfig, dict[str, np.ndarray]]:
    """The student's shape and tensors: exactly the teacher with the gates of everything unkept at 0.

    Args:
      arrays: the teacher's tensors by name, dense weights `[out, in]`.
    """
    student = plan.config(config)
    result = dict(arrays)
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
    return student, {name: result[name] for name in wanted}


def _keep(arrays: dict[str, np.ndarray], name: str, indexes: np.ndarray, axis: int) -> None:
    if name in arrays:  # a block that was already gone has no such tensor
        arrays[name] = np.ascontiguousarray(np.take(arrays[name], indexes, axis=axis))
