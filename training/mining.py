"""Hard-outlier mining: of many different outliers the hardest of each sort, as DOS does (Jiang et al., ICLR 2024)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from model_store.networks import NetworkOutput
from model_store.scores import energy
from training.losses import Objective

LLOYD_STEPS = 5
"""Assignments of a few hundred points hardly change after these."""


def mined(objective: Objective, clusters: int) -> Objective:
    """Return `objective` with all in-distribution rows and `clusters` of the outliers, chosen anew in every batch.

    The batch has gone through one forward pass by then: outliers that are not chosen take part in batch-norm
    statistics and get no gradient of their own.
    """

    def of_mined(output: NetworkOutput, labels: Tensor) -> Tensor:
        outliers = NetworkOutput(*(rows[len(labels) :].detach() for rows in output))
        hardest = len(labels) + hardest_of_clusters(outliers, clusters)
        kept = torch.cat([torch.arange(len(labels), device=hardest.device), hardest])
        return objective(NetworkOutput(*(rows[kept] for rows in output)), labels)

    return of_mined


def hardest_of_clusters(outliers: NetworkOutput, clusters: int) -> Tensor:
    """Return the rows int64 (clusters,), all different, of the hardest outlier of each cluster of features.

    Hardest is lowest in energy: most like in-distribution. The clusters are k-means' over features scaled to length 1.
    The place of a cluster that comes out empty goes to the hardest of the outliers left over.
    Jiang et al. choose by the probability of a class of its own for outliers, from a pool that is larger than the
    batch; here it is by energy, from the batch, which costs no forward pass.

    Raises:
        ValueError: fewer outliers than clusters.
    """
    if not 1 <= clusters <= len(outliers.logits):
        raise ValueError(f"clusters is {clusters}; it must be in 1 to the {len(outliers.logits)} outliers of the batch")
    energies = energy(outliers.logits)
    members = F.one_hot(kmeans(F.normalize(outliers.features.float()), energies, clusters), clusters).bool()
    hardest = energies[:, None].where(members, torch.inf).argmin(dim=0)
    leads = (F.one_hot(hardest, len(energies)).bool() & members.any(dim=0)[:, None]).any(dim=0)
    # Leaders first, then the rest, each by energy: no count depends on the data, so no step waits for the device.
    order = energies.sort(stable=True).indices
    return order[(~leads[order]).long().sort(stable=True).indices[:clusters]]


@torch.no_grad()
def kmeans(points: Tensor, priority: Tensor, clusters: int) -> Tensor:
    """Return each point's cluster int64 (M,) after a few of Lloyd's steps, on the points' device, drawing nothing.

    The first centre is the point of the lowest priority, every further one the point that is farthest from all before
    it: equal batches give equal clusters.

    Args:
        points: float32 (M, D).
        priority: float32 (M,).
        clusters: 1 to M.
    """
    distances = torch.cdist(points, points)
    nearest, seeds = distances.new_full((1, len(points)), torch.inf), [priority.argmin(dim=0, keepdim=True)]
    for _ in range(1, clusters):
        nearest = torch.minimum(nearest, distances.index_select(0, seeds[-1]))
        seeds.append(nearest.argmax(dim=1))
    centres = points[torch.cat(seeds)]
    for _ in range(LLOYD_STEPS):
        # A product with 0 and 1: index_add_ would sum in another order each time on CUDA.
        members = F.one_hot(torch.cdist(points, centres).argmin(dim=1), clusters).to(points.dtype)
        sizes = members.sum(dim=0)[:, None]
        centres = torch.where(sizes > 0, members.T @ points / sizes.clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(dim=1)
