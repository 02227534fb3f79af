"""The ceiling of the read-outs: the same encoder, from the same first weights, trained end to end on the labels.

No part of the paper. Shapes: B images, C channels, N patches, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.run import progress_bar
from common.seeding import derive_seed
from ijepa.build import new_model, new_schedule
from ijepa.config import Config
from ijepa.crops import augmented, to_input
from ijepa.data import Labelled
from ijepa.jepa import parameter_groups, set_schedule
from ijepa.vit import VisionTransformer, initialise


def supervised_encoder(config: Config, images: Labelled, device: torch.device) -> VisionTransformer:
    """An encoder after `supervised_updates` updates of it and of a linear layer on the mean of its tokens.

    Cross-entropy of the first factor; crops, batch, learning rates and weight decay are those of the pretraining.
    """
    encoder = new_model(config, images.channels).encoder.to(device)
    labels = images.labels[:, 0]
    head = nn.Linear(encoder.size.width, int(labels.max()) + 1)
    initialise(head, torch.Generator().manual_seed(derive_seed(config.seed, "supervised head")))
    head.to(device)
    total, batch = config.supervised_updates, min(config.batch_size, len(images))
    schedule, per_epoch = new_schedule(config, total), len(images) // batch
    optimizer = torch.optim.AdamW(parameter_groups([encoder, head]), fused=True)
    rng = np.random.default_rng(derive_seed(config.seed, "supervised batches"))
    with progress_bar(total, "supervised", unit="update") as bar:
        for update in range(total):
            if update % per_epoch == 0:
                order = rng.permutation(len(images))
            rows = order[update % per_epoch * batch :][:batch]
            pixels = np.stack([augmented(images.read(int(row)), config, rng) for row in rows])
            tokens = encoder(to_input(torch.from_numpy(pixels), images.statistics, device))  # [B, N, D]
            set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(head(tokens.mean(1)), torch.from_numpy(labels[rows]).to(device)).backward()
            optimizer.step()
            bar.update()
    return encoder.eval()
