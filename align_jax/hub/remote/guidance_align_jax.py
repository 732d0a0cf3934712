"""SAM's guidance (arXiv 2408.12867): images of one prompt guide each other.

While image i is read, a second stream reads a memory of the prompt's images;
before layer l the first stream guides the second, before layer k the second
the first.
"""

import torch
from torch import nn


class Guidance(nn.Module):
  """Around the layers of an extractor of any kind.

  Options: l, k, depth (of the extractor), memory ("all", "others", "self") and
  guided (positions from the first; 0 is all).
  """

  def __init__(self, options, memory_width, width):
    super().__init__()
    self.options = options
    self.score = nn.Linear(memory_width, 1)
    self.h = nn.Linear(width, width)
    self.c = nn.Linear(width, width)

  def forward(self, run, x, images, samples):
    """The extractor's last state.

    run(x, memory, first, last) is its layers, x [images, L, E] the input of
    the first, samples [images] the prompt of each.
    """
    l, k = self.options["l"], self.options["k"]
    memory, alone = self.memory(images, samples)
    q = run(x, images, 0, l - 1)
    w = run(x, memory, 0, l - 1) + self.guide(self.h, q)
    w = run(w, memory, l - 1, k)
    q = run(q, images, l - 1, k - 1)
    back = self.guide(self.c, w) * ~alone[:, None, None]
    return run(q + back, images, k - 1, self.options["depth"])

  def memory(self, images, samples):
    """(what the second stream of each image reads, whether it is alone)."""
    together = samples[:, None] == samples[None]
    seen, itself = together, torch.eye(
        len(samples), dtype=torch.bool, device=samples.device)
    if self.options["memory"] == "others":
      seen = together & ~itself
    elif self.options["memory"] == "self":
      seen = itself
    scores = self.score(images).squeeze(-1).float()
    scores = scores[None].masked_fill(~seen[..., None], float("-inf"))
    shares = torch.softmax(scores, dim=1).nan_to_num(0).to(images.dtype)
    memory = torch.einsum("ijp,jpc->ipc", shares, images)
    return memory, together.sum(1) < 2

  def guide(self, weight, x):
    """Adds nothing behind the positions that are guided."""
    added = weight(x)
    if count := self.options["guided"]:
      added = torch.cat([added[:, :count],
                         torch.zeros_like(added[:, count:])], dim=1)
    return added
