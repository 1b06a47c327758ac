"""Plain PyTorch: your own loop, and a cache in it.

python plain.py c.zarr
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from logitcache import CachedViews, Objective, ViewSampler


def main(cache: str, epochs: int = 4) -> None:
    data = CachedViews(None, cache)  # None: the images that the cache names
    sampler = ViewSampler(data)  # (sample, seed) pairs: each epoch another seed and order
    loader = DataLoader(data, batch_size=64, sampler=sampler, num_workers=2)
    objective = Objective.parse("kd")
    student = nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, data.num_classes))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = 0.0
        for views, labels, rows in loader:
            loss, _ = objective(student(views.float() / 255), data.decode(rows), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
