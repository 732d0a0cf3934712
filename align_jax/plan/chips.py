"""Facts of the chips that a plan can be made for, with their sources.

Bandwidths are as published. Those of links count both directions together,
as published too; what a collective can use of them is in `bounds`.
"""

import dataclasses

GB, GIB = 10 ** 9, 2 ** 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as JAX counts them.

  Attributes:
    name: for people.
    peak: bf16 FLOP/s.
    hbm: bytes of its memory.
    bandwidth: bytes/s of that memory.
    links: bytes/s to other chips, all its links, both directions together.
    torus: dimensions of the network; 0 is a switch, every chip to every
      other at full rate.
    ring: a dimension of the slice whose length is a multiple of this closes
      to a ring; others are lines.
    per_host: chips fed by one process of JAX, which runs on a virtual machine
      and not on what Google counts as a host: v6e has eight chips on a host,
      but in slices of several hosts two machines of four on each.
    source: where the figures are from.
  """
  name: str
  peak: float
  hbm: float
  bandwidth: float
  links: float
  torus: int
  ring: int
  per_host: int
  source: str


_CLOUD = "https://docs.cloud.google.com/tpu/docs/"

# By the name in front of a topology's colon.
CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1200 * GB, 600 * GB, 3, 4, 4,
               _CLOUD + "v4 (links: 6 of 50 GB/s a direction, "
               "arXiv 2304.01433, table 4)"),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819 * GB, 400 * GB, 2, 16, 4,
                _CLOUD + "v5e (1600 Gbit/s a direction)"),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765 * GB, 1200 * GB, 3, 4, 4,
                _CLOUD + "v5p"),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1638 * GB, 800 * GB, 2, 16, 4,
                _CLOUD + "v6e"),
}

# By a part of JAX's `device_kind`, for devices at hand.
AT_HAND: tuple[tuple[str, Chip], ...] = (
    ("TPU v4", CHIPS["v4"]),
    ("TPU v5 lite", CHIPS["v5e"]), ("TPU v5e", CHIPS["v5e"]),
    ("TPU v5", CHIPS["v5p"]),
    ("TPU v6", CHIPS["v6e"]),
    ("H200", Chip("NVIDIA H200 SXM", 989e12, 141 * GB, 4800 * GB, 900 * GB,
                  0, 1, 8, "https://www.nvidia.com/en-us/data-center/h200/")),
    ("H100", Chip("NVIDIA H100 SXM", 989e12, 80 * GB, 3350 * GB, 900 * GB,
                  0, 1, 8, "https://www.nvidia.com/en-us/data-center/h100/")),
    ("A100", Chip("NVIDIA A100 80GB SXM", 312e12, 80 * GB, 2039 * GB,
                  600 * GB, 0, 1, 8,
                  "https://www.nvidia.com/en-us/data-center/a100/")),
)


def chip_named(device_kind: str) -> Chip | None:
  """The chip of JAX devices of this kind; None if it is not in the table."""
  return next((chip for part, chip in AT_HAND if part in device_kind), None)
