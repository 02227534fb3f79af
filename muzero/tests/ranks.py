"""What two ranks must agree on: `python -m torch.distributed.run --nproc-per-node=2 -m muzero.tests.ranks`.

Prints the first rank's lines. Worlds whose episodes differ in length are gathered; after updates on different batches
both ranks hold one network, its running statistics included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from common import dist
from muzero.agent import network_for
from muzero.env import make_worlds, padded
from muzero.tests.test_train import _played, _smoke
from muzero.train import Learner, of_all_worlds


def main() -> None:
    """Gather, then two updates."""
    ranks = dist.setup("cpu")
    config = _smoke("tictactoe", envs=4, batch_size=8)
    histories = ([[5], []], [[1, 2, 3], [4, 5]])[ranks.rank]
    gathered = of_all_worlds(padded(histories), config, ranks).tolist()
    none = tuple(of_all_worlds(padded([[], []]), config, ranks).shape)
    mask = of_all_worlds(np.ones((2, 3), np.bool_), config, ranks)
    worlds = make_worlds(config, [0])
    network = network_for(worlds.space, config)
    learner = Learner(network, _played(replace(config, envs=2)), worlds.space, config, ranks)
    for _ in range(2):
        learner.update()
    state = torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])
    both = dist.gather_rows(state[None], 2, ranks)
    if dist.is_main(ranks):
        print(gathered, none, bool(mask.all()), torch.equal(both[0], both[1]))
    dist.close()


if __name__ == "__main__":
    main()
