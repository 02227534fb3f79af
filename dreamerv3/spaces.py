"""What a world shows and takes, in the order of the world, and the sizes and edition of the networks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class ObsSpace:
    """One observation: an image [H, W, C] uint8, a float vector of `shape`, or an integer below `classes`."""

    kind: Literal["image", "float", "discrete"]
    shape: tuple[int, ...] = ()
    classes: int = 0

    @property
    def size(self) -> int:
        """Numbers that a vector observation gives to the encoder."""
        if self.kind == "discrete":
            return self.classes
        size = 1
        for n in self.shape:
            size *= n
        return size


@dataclass(frozen=True)
class ActionSpace:
    """`size` discrete actions, given as their number, or a vector of `size` numbers in [-1, 1].

    names: what the world calls its discrete actions, if it calls them anything.
    """

    size: int
    is_discrete: bool
    names: tuple[str, ...] = ()


ObsSpaces = Mapping[str, ObsSpace]
Obs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """D deter, U hidden, S stoch, K classes, depth (channels of the narrowest map), units, blocks of block layers."""

    deter: int
    hidden: int
    stoch: int
    classes: int
    depth: int
    units: int
    blocks: int

    @property
    def feature(self) -> int:
        """Width of [h, flatten z]."""
        return self.deter + self.stoch * self.classes


@dataclass(frozen=True)
class Edition:
    """In what the two published editions differ.

    is_strided: the first stage has stride 1, the others strided convolutions; else stride 1 and 2 x 2 max pooling.
    mults: channels of the stages as multiples of `depth`.
    has_sorted_keys: observations are concatenated in sorted order, else in that of the world.
    squashes_one_hot: symlog is applied to one-hot inputs as well, so that a 1 enters as ln 2.
    vectors_from_deter_first: the vector decoder reads [h, z], else [z, h].
    vector_output_scale: initial scale of the vector decoder's output layers.
    error_tolerance: squared symlog errors below it count as zero.
    has_even_outputs: vector outputs of odd size have one more column that is dropped.
    starts_from_true_continue: imagination weighs its first state by 1 - is_terminal, else by the predicted continue.
    first_windows: windows in the replay when training starts.
    """

    is_strided: bool
    mults: tuple[int, ...]
    has_sorted_keys: bool
    squashes_one_hot: bool
    vectors_from_deter_first: bool
    vector_output_scale: float
    error_tolerance: float
    has_even_outputs: bool
    starts_from_true_continue: bool
    first_windows: int

    @property
    def halvings(self) -> int:
        """How often the image is halved from the input to the innermost map."""
        return len(self.mults) - int(self.is_strided)
