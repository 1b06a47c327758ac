"""Runs to report, and the page of them as a parser sees it."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

EVIL = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\x00\ud800"
EVIL_CLASS = "<i onclick=alert(3)>'\"&amp;"  # as a folder may be called
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """A page as a parser sees it: elements with their attributes, text, and tables by name."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.source = file.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows: list[list[str]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            name = [a for t, a in self.elements if t == "div" and a.get("role") == "region"][-1]["aria-label"]
            self.tables[str(name)] = self.rows

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.text[where] = self.text.get(where, "") + data + "\n"
        if {"td", "th"} & set(self.open) and "title" not in self.open:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def a_run(
    folder: Path, rows: Sequence[dict[str, float]], student: str = "net", seed: int = 0, **settings: Any
) -> Path:
    folder.mkdir(parents=True)
    config = {
        "config": {"lr": 0.1, "seed": seed, **settings},
        "objective": {"expression": "kd:1.0", "ce_weight": 1.0},
        "student": {"name": student, "weights": f"random:{seed}"},
        "command": ["logitcache", "train", "--out", str(folder)],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = {"w": torch.zeros(3, 5), "bn.running_mean": torch.zeros(5)}
    save_file(state, folder / "last.safetensors")
    return folder


def rows_of(epochs: int, level: float = 0.5) -> list[dict[str, float]]:
    return [
        {"epoch": e, "loss": 2.0 / (e + 1), "kd": 1.0 / (e + 1), "lr": 0.1, "seconds": 1.5}
        | {"views_per_second": 100.0, "top1": level + e / 1000, "top5": 0.9, "nll": 1.0, "ece": 0.05}
        for e in range(epochs)
    ]
