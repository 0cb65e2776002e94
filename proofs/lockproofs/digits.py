"""scikit-learn's handwritten digits for a network without attention: 1797 real images of 8 × 8 pixels, bundled there.

They are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, UCI repository, 1998). Only who
trains on them needs scikit-learn; claims read what was stored.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import MissingInput
from lockref.models import convnet
from lockref.models.convnet import ConvNet

NET = ConvNet()
PARTS = {"training": 900, "choice": 300, "held out": 597}  # choice: the images that an attacker has
SPLIT = 0  # seeds which image is in which part
WHITE = 16  # the value of a white pixel


@dataclass(frozen=True)
class Images:
    """Patches (B, P, kernel²) in 0 … 1, and labels (B,)."""

    patches: NDArray[np.float64]
    labels: NDArray[np.int64]

    def of(self, digits: Iterable[int]) -> "Images":
        """Those of some digits."""
        return self.at(np.isin(self.labels, list(digits)))

    def at(self, rows: NDArray[Any]) -> "Images":
        return Images(self.patches[rows], self.labels[rows])

    def draw(self, rng: np.random.Generator, count: int) -> "Images":
        """`count` of them, with replacement."""
        return self.at(rng.integers(0, len(self.labels), count))

    def beside(self, other: "Images") -> "Images":
        """Both, one after the other."""
        return Images(*(np.concatenate(both) for both in zip(*(vars(x).values() for x in (self, other)), strict=True)))


@cache
def images(part: str) -> Images:
    """A part of the split, the same for all seeds of training. Raises MissingInput without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingInput("no digits without scikit-learn; install the extra test, or scikit-learn alone") from None
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT).permutation(len(labels))
    parts = dict(zip(PARTS, np.split(order, np.cumsum(list(PARTS.values()))[:-1]), strict=True))
    chosen = pixels[parts[part]].reshape(-1, NET.side, NET.side)
    return Images(convnet.patches(chosen / WHITE, NET), labels[parts[part]])


def loss(params: Mapping[str, Any], given: Images) -> Any:
    """Mean −ln p(label) in nats."""
    return convnet.loss(params, given.patches, given.labels)


def accuracy(params: Mapping[str, Any], given: Images) -> float:
    """The share of images whose label has the largest logit."""
    return float(np.mean(np.argmax(convnet.logits(params, given.patches), axis=-1) == given.labels))
