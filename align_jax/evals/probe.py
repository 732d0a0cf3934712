"""How much a tower's features hold: a linear probe, the connector's ceiling.

Multinomial logistic regression on pooled, standardised features. What a
linear probe cannot read, a connector of a frozen tower will hardly say.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize


def pool(features_npc: np.ndarray, class_token: bool) -> np.ndarray:
  """Features of an image as one vector, of all that a connector reads.

  Args:
    features_npc: f[n,P,C]; with a class token f[n,1+P,C], where it is first.
    class_token: whether it is among the features.

  Returns:
    The mean of the patches f[n,C]; behind the class token, f[n,2C], if kept.
  """
  if not class_token:
    return features_npc.mean(1)
  return np.concatenate(
      [features_npc[:, 0], features_npc[:, 1:].mean(1)], axis=-1)


def fit_probe(features_nc: np.ndarray, classes_n: np.ndarray, n_classes: int,
              penalty: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
  """Weights of a softmax regression, by L-BFGS.

  Args:
    features_nc: f[n,C].
    classes_n: i[n], 0 .. n_classes - 1.
    n_classes: number of classes.
    penalty: times the weights' squared norm, added to the mean loss.

  Returns:
    (w f64[C,n_classes], b f64[n_classes]).
  """
  x = jnp.asarray(features_nc, jnp.float32)
  y = jax.nn.one_hot(jnp.asarray(classes_n), n_classes)
  c = x.shape[1]

  @jax.jit
  def loss(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    def value(flat: jax.Array) -> jax.Array:
      w, b = flat[:-n_classes].reshape(c, n_classes), flat[-n_classes:]
      nats = -(y * jax.nn.log_softmax(x @ w + b)).sum(-1).mean()
      return nats + penalty * (w * w).sum()

    return jax.value_and_grad(value)(flat)

  def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
    value, grad = loss(jnp.asarray(flat, jnp.float32))
    return float(value), np.asarray(grad, np.float64)

  best = minimize(both, np.zeros((c + 1) * n_classes), jac=True,
                  method="L-BFGS-B", options={"maxiter": 300}).x
  return best[:-n_classes].reshape(c, n_classes), best[-n_classes:]


def probe_accuracy(
    train_nc: np.ndarray,
    train_names: Sequence[str],
    test_nc: np.ndarray,
    test_names: Sequence[str],
) -> float:
  """Test accuracy of a probe for a named property, such as the colour.

  Args:
    train_nc: f[n,C] pooled features of training images.
    train_names: the property of each, such as "blue".
    test_nc: f[m,C] of test images.
    test_names: their property; one unseen in training counts as wrong.
  """
  classes = {name: i for i, name in enumerate(sorted(set(train_names)))}
  mean, std = train_nc.mean(0), train_nc.std(0) + 1e-6
  w, b = fit_probe((train_nc - mean) / std,
                   np.array([classes[n] for n in train_names]), len(classes))
  guess = (((test_nc - mean) / std) @ w + b).argmax(-1)
  truth = np.array([classes.get(n, -1) for n in test_names])
  return float((guess == truth).mean())
