"""What a compiled program sends: its collectives, read from the text of the compiler's last stage."""

import re
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LINE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    Attributes:
      kind: as XLA names it, `"all-gather"`.
      dtype: as XLA names it, `"u8"`; that of the largest array where there are several.
      elements: number of values of its result on one device.
      sent: bytes that a device sends in it, along a ring.
    """

    kind: str
    dtype: str
    elements: int
    sent: float


def collectives(program: str) -> list[Collective]:
    r"""Read the collectives of a compiled program.

    With n devices and a result of S bytes a device sends :math:`2 S (n - 1) / n` bytes in an all-reduce,
    :math:`S (n - 1) / n` in an all-gather or an all-to-all, :math:`S (n - 1)` in a reduce-scatter and S in a permute.
    A collective in a loop is counted once.

    Args:
      program: `jax.jit(f).lower(...).compile().as_text()`.

    Returns:
      A `Collective` each.

    Raises:
      ValueError: for a collective whose devices are not told.

    Example:
      >>> line = "%g = u8[4,256]{1,0} all-gather(u8[1,256]{1,0} %x), replica_groups=[1,4]<=[4], dimensions={0}"
      >>> collectives(line)
      [Collective(kind='all-gather', dtype='u8', elements=1024, sent=768.0)]
    """
    found, devices = [], re.search(r"num_partitions=(\d+)", program)
    for line in program.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        result, kind, started = match.groups()
        arrays = [
            (dtype, int(np.prod([int(d) for d in shape.split(",") if d]))) for dtype, shape in _ARRAY.findall(result)
        ]
        arrays = [(dtype, count) for dtype, count in arrays if _known(dtype)]
        if started and kind in ("all-gather", "collective-permute"):
            # What is started shows its operands beside its results.
            arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
        if not arrays:
            raise ValueError(f"the program must name a dtype of real numbers, got {line.strip()[:120]}")
        size, number = sum(count * _width(dtype) / 8 for dtype, count in arrays), _group(line, devices)
        share = {
            "all-reduce": 2 * (number - 1) / number,
            "all-gather": (number - 1) / number,
            "all-to-all": (number - 1) / number,
            "reduce-scatter": number - 1,
            "collective-permute": 1,
        }[kind]
        largest = max(arrays, key=lambda array: array[1] * _width(array[0]))
        found.append(Collective(kind, largest[0], sum(count for _, count in arrays), share * size))
    return found


def _known(dtype: str) -> bool:
    return dtype in _BITS or re.fullmatch(r"[suf]\d+.*", dtype) is not None


def _width(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])


def _group(line: str, devices: re.Match | None) -> int:
    """Devices that take part in one collective."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed.group(1).split(","))
    shaped = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if shaped:
        return int(shaped.group(1))
    if "collective-permute" in line:
        return 1
    if devices is None:
        raise ValueError(f"the program must say how many devices take part, got {line.strip()[:120]}")
    return int(devices.group(1))
