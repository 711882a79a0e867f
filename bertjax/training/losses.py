"""The losses of the training stages, as plain functions on logits and labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from bertjax.model import MASKED, SpanOutput


def span_cross_entropy(output: SpanOutput, mask: jax.Array, starts: jax.Array, ends: jax.Array) -> jax.Array:
    """Each example's mean of the cross-entropies of its start and end, float32 [B].

    Args:
      mask: int32 [B, S], 1 for tokens; padding takes no probability.
      starts, ends: int32 [B] token positions.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    start = cross_entropy(masked_logits(output.start_logits, mask), starts)
    end = cross_entropy(masked_logits(output.end_logits, mask), ends)
    return (start + end) / 2


def masked_logits(logits: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask > 0, logits, MASKED)


def soft_span_cross_entropy(
    student: SpanOutput, start_logits: jax.Array, end_logits: jax.Array, mask: jax.Array, temperature: float
) -> jax.Array:
    """Distillation of the span distributions (Hinton et al. 2015), mean over the batch, float32 scalar.

    The KL divergence from the teacher's to the student's distribution at `temperature`, times its square, so that
    the gradient's size does not depend on the temperature; start and end averaged.

    Args:
      start_logits, end_logits: the teacher's, [B, S].
    """

    def divergence(own: jax.Array, teachers: jax.Array) -> jax.Array:
        log_own = jax.nn.log_softmax(masked_logits(own, mask) / temperature)
        log_teacher = jax.nn.log_softmax(masked_logits(teachers.astype(jnp.float32), mask) / temperature)
        return (jnp.exp(log_teacher) * (log_teacher - log_own)).sum(axis=-1).mean()

    both = divergence(student.start_logits, start_logits) + divergence(student.end_logits, end_logits)
    return temperature**2 * both / 2


def hidden_state_distance(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean squared difference of two hidden states [B, S, D] over real tokens, relative to the teacher's mean square.

    Dividing by the teacher's own mean square makes the term comparable between layers and models.
    """
    weight = mask[..., None].astype(jnp.float32)
    teacher = teacher.astype(jnp.float32)
    difference = (jnp.square(student.astype(jnp.float32) - teacher) * weight).sum()
    return difference / jnp.maximum((jnp.square(teacher) * weight).sum(), 1e-6)
