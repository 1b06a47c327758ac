"""timm: its models, optimisers, schedules, average of weights and meters, in the shape of its train.py.

    python timm_loop.py c.zarr

Three lines differ from timm's own loop, and are marked. Leave timm's Mixup off: a view is what the teacher saw, and
recipes of logitcache mix images themselves.
"""

import sys

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from logitcache import CachedViews, Objective, ViewSampler

TRANSFORM = v2.Compose(
    [v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
)


def train_one_epoch(epoch, model, loader, optimizer, objective, device, lr_scheduler, model_ema) -> float:
    losses = AverageMeter()
    updates = epoch * len(loader)
    model.train()
    for input, target, rows in loader:  # 1: the loader gives rows beside images and labels
        input, target, rows = (x.to(device, non_blocking=True) for x in (input, target, rows))
        output: Tensor = model(input)
        loss, _ = objective(output, loader.dataset.decode(rows), target)  # 2: the loss reads them
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        model_ema.update(model, step=updates)
        losses.update(loss.item(), input.size(0))
        lr_scheduler.step_update(num_updates=updates, metric=losses.avg)
    return losses.avg


def main(cache: str, epochs: int = 3) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = CachedViews(None, cache, transform=TRANSFORM)
    sampler = ViewSampler(data)  # 3: it walks (sample, seed) pairs
    loader = DataLoader(data, batch_size=64, sampler=sampler, num_workers=2, drop_last=True)
    model = timm.create_model("test_resnet", num_classes=data.num_classes, in_chans=1).to(device)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=1e-2, weight_decay=0.02)
    lr_scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=0, step_on_epochs=False,
        updates_per_epoch=len(loader),
    )  # fmt: skip
    model_ema = ModelEmaV3(model, decay=0.99)
    objective = Objective.parse("kd")
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        loss = train_one_epoch(epoch, model, loader, optimizer, objective, device, lr_scheduler, model_ema)
        print(f"epoch {epoch}: loss {loss:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
