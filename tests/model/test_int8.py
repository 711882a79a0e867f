import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.model import bert
from bertjax.model.int8 import use_integers


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 0.01), (jnp.bfloat16, 0.1)])
def test_integers_answer_as_the_grid_in_float_does(run_dir, dtype, tolerance):
    """By relative L2: a rounding flipped by the last bit of a sum moves single logits by more than any tolerance."""
    directory = run_dir / "student-int8"
    ids = np.random.default_rng(0).integers(5, 100, (4, 64)).astype(np.int32)
    feed = ids, np.ones_like(ids), np.zeros_like(ids)
    wanted = np.stack(bert.jit_logits(bert.load(directory))(*feed))
    integers = bert.load(directory, dtype=dtype)
    use_integers(integers)
    for layer in integers.bert.encoder.layer:
        own, blocks = layer.attention.self, (layer.attention.output, layer.intermediate, layer.output)
        dense = [own.query, own.key, own.value, *(block.dense for block in blocks)]
        assert {each.weight[...].dtype for each in dense} == {jnp.dtype(jnp.int8)}
    found = np.stack(bert.jit_logits(integers)(*feed))
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < tolerance
    if dtype == jnp.float32:
        np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))
