"""Other words for our names: what the field calls the same thing, and the nearest of a misspelt one."""

import difflib
import re
from collections.abc import Iterable

SYNONYMS = {
    # options and settings
    "lr": "learning-rate learningrate base-lr max-lr peak-lr",
    "batch-size": "bs batch batches mini-batch-size train-batch-size per-device-train-batch-size",
    "epochs": "num-epochs n-epochs nepochs max-epochs total-epochs num-train-epochs number-of-epochs",
    "weight-decay": "wd l2 decay",
    "optimizer": "opt optim optimiser",
    "schedule": "scheduler lr-scheduler lr-schedule sched",
    "warmup-epochs": "warmup warm-up warmup-steps",
    "milestones": "steps lr-steps lr-decay-epochs decay-epochs",
    "gamma": "lr-decay-rate lr-gamma step-gamma",
    "clip-norm": "clip-grad grad-clip gradient-clip gradient-clip-val max-norm max-grad-norm clip",
    "accumulate": "accumulation grad-accum gradient-accumulation-steps accumulate-grad-batches iter-size",
    "ema": "model-ema ema-decay model-ema-decay",
    "label-smoothing": "smoothing",
    "ce-weight": "hard-weight",
    "grad-checkpointing": "gradient-checkpointing activation-checkpointing",
    "sync-batch-norm": "sync-bn syncbn",
    "precision": "amp dtype fp16 bf16 half mixed-precision use-amp",
    "device": "gpu gpus cuda accelerator",
    "workers": "num-workers j jobs threads num-threads nproc processes",
    "student": "arch architecture model net network backbone model-name",
    "teacher": "arch architecture model net network backbone model-name teacher-model",
    "weights": "checkpoint ckpt pretrained state-dict init-checkpoint",
    "data": "dataset data-set data-dir data-path dataset-name images image-folder train-dir root input",
    "cache": "caches logits teacher-logits cache-dir",
    "teacher-cache": "test-cache val-cache",
    "out": "output outdir out-dir output-dir output-folder o save save-dir log-dir logdir work-dir dest",
    "top-k": "k topk num-logits logits-per-view",
    "num-classes": "classes n-classes nb-classes num-labels",
    "input-size": "img-size image-size imgsz img resolution crop-size size",
    "recipe": "transform transforms augmentation augmentations augment aug",
    "seeds": "num-seeds n-seeds augmentation-seeds",
    "seed": "random-seed random-state manual-seed",
    "split": "subset partition",
    "loss": "criterion objective kd-loss",
    "variant": "variants sweep grid",
    "resume": "continue restart resume-from",
    "profile": "compression",
    "spool-dir": "tmp-dir scratch",
    "samples": "indices sample-list",
    "fraction": "subsample data-fraction",
    "compile": "torch-compile torchcompile",
    "tensorboard": "tb",
    "json": "as-json format-json",
    "force": "overwrite exist-ok",
    "format": "type export-format",
    "on-bad-image": "skip-bad-images ignore-errors",
    # commands
    "select": "prune curate coreset select-samples sample-selection",
    "train": "distill distil distillation fit student run",
    "dump": "extract extract-logits generate cache make-cache precompute infer inference predict save-logits",
    "evaluate": "eval test validate val score benchmark-student",
    "verify": "check fsck validate-cache validate",
    "info": "show inspect describe ls list summary status",
    "stats": "statistics analyze analyse analysis",
    "export": "onnx torchscript convert",
    "report": "html plot visualize visualise dashboard compare",
    "bench": "benchmark perf speed profile",
    "copy": "cp sync upload download push pull",
    "derive": "shrink recompress compress truncate convert",
    "calibrate": "calibration",
    "plan": "estimate dry-run cost budget",
    "init": "config configure setup",
    "demo": "quickstart example tutorial",
    # losses
    "ce": "cross-entropy crossentropy xent labels",
    "kd": "kl kld kldiv kl-div hinton soft-targets distillation",
}
"""What the field says, by our name."""

ALIKE = 0.85  # from here on a spelling is a slip of the hand
MUCH_WORSE = 0.12  # than the best, of how alike spellings are


def find_meant(name: str, known: Iterable[str], *, cutoff: float = 0.65, most: int = 4) -> list[str]:
    """Find what somebody may mean by a name that is none: by the words of the field, else by its spelling.

    Args:
        name: what was said, with `_` or `-` between words, dashes in front or none.
        known: the names that there are.
        cutoff: how alike spellings must be, from 0, which takes any, to 1.
        most: names to return.

    Returns:
        The known names that are meant by a word of the field; else those spelt most alike, or like such a word, best
        first. None where nothing is near.
    """
    said = _plain(name)
    own: dict[str, list[str]] = {}
    for one in known:
        own.setdefault(_plain(one), []).append(one)
    spellings = {word: list(ones) for word, ones in own.items()}
    for word, ones in own.items():
        for synonym in SYNONYMS.get(word, "").split():
            spellings.setdefault(synonym, []).extend(ones)
    words = said.split("-")
    within = [word for word in own if len(words) > 1 and len(word) > 1 and set(word.split("-")) < set(words)]
    if said in spellings:
        found = [said]
    elif within and not _list_nearest(said, spellings, ALIKE, 1):
        found = sorted(within, key=len, reverse=True)
    else:
        found = _list_nearest(said, spellings, cutoff, most)
    return list(dict.fromkeys(one for word in found for one in spellings[word]))[:most]


def _list_nearest(said: str, words: Iterable[str], cutoff: float, most: int) -> list[str]:
    """List the words that are spelt most alike, best first, and none much worse than the best."""
    near = difflib.get_close_matches(said, words, n=3 * most, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(None, word, said).ratio() for word in near]
    return [word for word, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - MUCH_WORSE]


def _plain(name: str) -> str:
    return re.sub(r"[_\s]+", "-", name.strip().lstrip("-").lower())
