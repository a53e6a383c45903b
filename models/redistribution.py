"""The redistribution of VAR over the softmax rows of one sample, fast: two thin matrix products.

`models.var` defines it, over positions: heads are selected by two sums over groups of keys, and a key's weight changes
by a factor that depends on its group and on the row. So the sums of all rows are one product with the groups' columns
of ones and zeros, and the changes another. Gathering positions instead takes ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class Redistribution:
    """`VAR.edit` for one sample and layer: called with rows [head, row, key], returns new ones.

    `groups` float32 [key, 3] marks the keys of the prompt that are image sinks, image tokens that are none, and any
    sinks; keys that come later are in no group.
    """

    groups: torch.Tensor
    rho: float
    min_image_mass: float
    p: float

    @classmethod
    def of(cls, image: torch.Tensor, sinks: torch.Tensor, keys: int, **settings: float) -> Redistribution:
        """Of the positions of image tokens and of all sinks, int64 [cell] and [sink], among the prompt's keys."""
        groups = torch.zeros(keys, 3, device=image.device)
        groups[image, 1] = 1
        groups[sinks, 2] = 1
        groups[:, 0] = groups[:, 1] * groups[:, 2]
        groups[:, 1] -= groups[:, 0]
        return cls(groups, **settings)

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        groups = self.groups.to(weights.device)  # a model may lie on several devices
        groups = pad(groups, (0, 0, 0, weights.shape[-1] - len(groups)))
        on_sinks, on_others, sunk = (weights @ groups).unbind(-1)
        on_image = on_sinks + on_others
        # Below the smallest normal number the quotient would overflow; that little counts as nothing.
        chosen = (on_others >= torch.finfo(weights.dtype).tiny) & (on_image >= self.min_image_mass)
        chosen &= on_sinks <= self.rho * on_image
        gain = torch.where(chosen, (1 - self.p) * sunk / on_others, 0)
        loss = chosen * (self.p - 1)
        # weights + weights * 0 are the weights bit for bit, so rows that are not chosen come back as they were.
        return torch.addcmul(weights, weights, torch.stack([gain, loss], -1) @ groups[:, 1:].T)
