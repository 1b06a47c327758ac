"""torchvision: the shape of its references/classification/train.py, with a cache in place of the loader's images.

    python torchvision_reference.py c.zarr
    torchrun --nproc-per-node 2 torchvision_reference.py c.zarr

`train_one_epoch` is the reference's, without its logging; what differs is marked. Under torchrun `ViewSampler` gives
each rank its share, as the reference's DistributedSampler does.
"""

import argparse
import os

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from logitcache import CachedViews, Objective, ViewSampler


def train_one_epoch(model, criterion, optimizer, data_loader, device, args, scaler=None) -> float:
    model.train()
    total, count = 0.0, 0
    for image, target, rows in data_loader:  # 1: rows
        image, target, rows = image.to(device), target.to(device), rows.to(device)
        with torch.autocast(device.type, enabled=scaler is not None):
            output = model(image)
        loss, _ = criterion(output, data_loader.dataset.decode(rows), target)  # 2: the criterion reads them
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
            optimizer.step()
        total, count = total + loss.item() * len(image), count + len(image)
    return total / count


def main(args: argparse.Namespace) -> None:
    init_distributed_mode(args)
    device = torch.device(args.device)
    transform = v2.Compose(
        [
            v2.RGB(),
            v2.Resize((32, 32)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    dataset = CachedViews(None, args.cache, transform=transform)
    train_sampler = ViewSampler(dataset)  # 3: pairs
    data_loader = DataLoader(
        dataset, batch_size=args.batch_size, sampler=train_sampler, num_workers=args.workers, drop_last=True
    )
    model = torchvision.models.get_model(args.model, num_classes=dataset.num_classes).to(device)
    if args.distributed:
        model = nn.parallel.DistributedDataParallel(model, [args.gpu] if device.type == "cuda" else None)
    criterion = Objective.parse(args.loss, label_smoothing=args.label_smoothing)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    scaler = torch.amp.GradScaler(device.type) if args.amp else None
    for epoch in range(args.epochs):
        train_sampler.set_epoch(epoch)
        loss = train_one_epoch(model, criterion, optimizer, data_loader, device, args, scaler)
        lr_scheduler.step()
        if args.rank == 0:
            print(f"epoch {epoch}: loss {loss:.4f}")
    if args.distributed:
        torch.distributed.destroy_process_group()


def init_distributed_mode(args: argparse.Namespace) -> None:
    args.distributed, args.rank, args.gpu = "RANK" in os.environ, 0, 0
    if args.distributed:
        args.rank, args.gpu = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        on_gpu = args.device == "cuda"
        if on_gpu:
            torch.cuda.set_device(args.gpu)
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache")
    parser.add_argument("--loss", default="kd")
    parser.add_argument("--model", default="shufflenet_v2_x0_5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-b", "--batch-size", default=32, type=int)
    parser.add_argument("--epochs", default=3, type=int)
    parser.add_argument("-j", "--workers", default=2, type=int)
    parser.add_argument("--lr", default=0.1, type=float)
    parser.add_argument("--label-smoothing", default=0.0, type=float)
    parser.add_argument("--clip-grad-norm", default=5.0, type=float)
    parser.add_argument("--amp", action="store_true")
    return parser


if __name__ == "__main__":
    main(get_args_parser().parse_args())
