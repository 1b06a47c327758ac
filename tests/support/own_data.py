"""What the README takes for granted: a folder of pictures, and a file of weights that plain torch saved."""

import contextlib
from pathlib import Path

import torch
from console import ROOT, blocks
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

COUNTS = '(("train", 40), ("val", 20))'  # pictures of a class, in the example of docs/getting-started.md


def draw_pictures(folder: Path, train: int, val: int) -> None:
    """Draw the patterns of docs/getting-started.md into `folder/pictures`, so many of each class."""
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    drawing = next(block for kind, block in blocks(page) if kind == "python" and COUNTS in block)
    with contextlib.chdir(folder):
        exec(drawing.replace(COUNTS, f'(("train", {train}), ("val", {val}))'), {})
        Path("cloth").rename("pictures")


def train_teacher(folder: Path, epochs: int) -> None:
    """Train torchvision's ResNet-18 on `folder/pictures`, and save its state dict as `folder/teacher.pth`."""
    torch.manual_seed(0)
    steps = [v2.RandomResizedCrop(64), v2.RandomHorizontalFlip(), v2.ToImage()]
    steps += [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    pictures = ImageFolder(folder / "pictures" / "train", v2.Compose(steps))
    teacher = resnet18(num_classes=len(pictures.classes))
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
    for _ in range(epochs):
        for views, labels in DataLoader(pictures, batch_size=32, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            cross_entropy(teacher(views), labels).backward()
            optimizer.step()
        schedule.step()
    torch.save(teacher.state_dict(), folder / "teacher.pth")
