"""How work is shaped to the device that JAX computes on."""

from __future__ import annotations

import jax


def padding_multiple(fine: int, longest: int) -> int:
    """The multiple that passes without training pad windows to: `fine` on a CPU, one length for all elsewhere.

    An accelerator computes the padding of such a pass in less time than it takes to compile one more shape.
    """
    return fine if jax.default_backend() == "cpu" else longest
