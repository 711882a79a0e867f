"""The losses of the training stages, as plain functions on logits and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from bertjax.model.bert import MASKED, SpanOutput, mask_bias

RELATION_SIZE = 32  # dimensions of a relation head, independent of the attention heads


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
    """Logits [B, S] that give padding no probability."""
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


def closest_layers_distance(student: Sequence[jax.Array], teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean distance of the teacher's layers to their closest layers of the student, float32 scalar.

    The dynamic layer map of CoFi (Xia et al. 2022, "Structured Pruning Learns Compact and Accurate Models", section
    3.2): each teacher layer is compared with whichever student layer is nearest at this step, in an order that does
    not fall with depth. CoFi's linear map between the two is left out: a pruned student keeps its teacher's basis.

    Args:
      student: the outputs of all layers of the student, [B, S, D] each.
      teacher: [teacher's layers, B, S, D], in order of depth.
    """
    rows = [jnp.stack([hidden_state_distance(own, theirs, mask) for own in student]) for theirs in teacher]
    return least_ordered_sum(rows) / len(rows)


def least_ordered_sum(rows: Sequence[jax.Array]) -> jax.Array:
    """The least sum of one entry from each row, float32 scalar, where the columns never fall from row to row.

    By dynamic programming, exact. The gradient is that of the chosen entries.

    Args:
      rows: [columns] each.
    """
    best = rows[0]  # of the rows so far, by the column of the last one
    for row in rows[1:]:
        best = jax.lax.cummin(best) + row
    return best.min()


def relation_divergence(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """KL divergence between two models' relations of a window's tokens to each other, float32 scalar.

    The relation distillation of MiniLMv2 (Wang et al. 2021, "Multi-Head Self-Attention Relation Distillation for
    Compressing Pretrained Transformers", section 3.1): states are split into relation heads, relations are the softmax
    of their scaled dot products, and the loss is the KL divergence from the teacher's to the student's, averaged over
    relation heads and tokens. The paper relates queries, keys and values; here it is the layer's outputs, because a
    pruned layer may have one attention head left or none, but its output always has the teacher's size.

    Args:
      student, teacher: outputs of a layer, [B, S, D].
    """
    own, theirs = (_log_relations(states, mask) for states in (student, teacher))
    divergence = (jnp.exp(theirs) * (theirs - own)).sum(axis=-1).mean(axis=1)  # [B, S]
    return (divergence * mask).sum() / mask.sum()


def _log_relations(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Logarithms of the relations, float32 [B, relation heads, S, S]; each row is a distribution over real tokens."""
    size = math.gcd(states.shape[-1], RELATION_SIZE)
    split = states.astype(jnp.float32).reshape(*states.shape[:2], -1, size)
    products = jnp.einsum("bqhd,bkhd->bhqk", split, split) / math.sqrt(size)
    return jax.nn.log_softmax(products + mask_bias(mask), axis=-1)
