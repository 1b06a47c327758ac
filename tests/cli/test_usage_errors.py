"""A command line that is wrong is told in one line, with what may be meant."""

from pathlib import Path

import pytest
from command import logitcache


def refused(*words: object, cwd: Path) -> str:
    """Give a command line that is none; returns the one line that says so."""
    ended = logitcache(*words, cwd=cwd)
    assert ended.exit_code == 2, (ended.output, ended.exception)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("logitcache: ")
    assert ended.stdout == ""
    return line.removeprefix("logitcache: ")


@pytest.mark.parametrize(
    ("command", "word", "meant"),
    [
        ("train", "--lerning-rate", "--lr"),
        ("train", "--learning-rate", "--lr"),
        ("train", "--learning_rate", "--lr"),
        ("train", "-lr", "--lr"),
        ("train", "--lr-rate", "--lr"),
        ("train", "--batchsize", "--batch-size"),
        ("train", "--bs", "--batch-size"),
        ("train", "--number-of-epochs", "--epochs"),
        ("train", "--wd", "--weight-decay"),
        ("train", "--arch", "--student"),
        ("train", "--model", "--student"),
        ("train", "--output", "--out"),
        ("train", "--gpu", "--device"),
        ("train", "--num-workers", "--workers"),
        ("dump", "--model", "--teacher"),
        ("dump", "--topk", "--top-k"),
        ("dump", "--k", "--top-k"),
        ("derive", "-k", "--top-k"),
        ("evaluate", "--arch", "--student"),
        ("export", "--output", "--out"),
    ],
)
def test_another_word_for_an_option_is_understood(
    command: str, word: str, meant: str, tmp_path: Path
) -> None:
    assert (
        refused(command, word, "1", cwd=tmp_path) == f"{command} has no option {word}; did you mean {meant}?"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("trian", "train"),
        ("distill", "train"),
        ("eval", "evaluate"),
        ("test", "evaluate"),
        ("extract", "dump"),
        ("check", "verify"),
        ("benchmark", "bench"),
    ],
)
def test_another_word_for_a_command_is_understood(word: str, meant: str, tmp_path: Path) -> None:
    assert refused(word, "x", cwd=tmp_path) == f"no command {word!r}; did you mean {meant}?"


TEACHER = ("dump", "--teacher", "digits_tiny")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("xyzzy",), "no command 'xyzzy'; `logitcache --help` lists all"),
        (("--config", "x"), "name a command, such as dump or train; `logitcache --help` lists all"),
        (("--teacher", "x", "dump"), "--teacher comes after the command: logitcache dump --teacher …"),
        (("dump", "--config", "x"), "--config comes before the command: logitcache --config … dump"),
        (("dump",), "dump needs --teacher: vit_l, resnet50, wrn_40_2, timm:NAME, module:function …"),
        (("dump", "vit_l"), "dump needs --teacher; did you mean --teacher vit_l?"),
        (
            ("dump", "--teacher"),
            "--teacher needs a value: vit_l, resnet50, wrn_40_2, timm:NAME, module:function …",
        ),
        (("info",), "info needs CACHE: A cache: path or URL"),
        (
            ("info", "a", "b"),
            "info takes CACHE alone, found 'b' too; `logitcache info --help` lists its options",
        ),
        ((*TEACHER, "--top-k", "many"), "--top-k: expected a whole number, found 'many'"),
        (("train", "--epochs", "1.5"), "--epochs: expected a whole number, found '1.5'"),
        (("train", "--lr", "high"), "--lr: expected a number, found 'high'"),
        ((*TEACHER, "--input-size", "-3"), "--input-size: expected a whole number of 0 or more, found '-3'"),
        ((*TEACHER, "--split", "tset"), "--split: expected train or test, found 'tset'; did you mean test?"),
        (
            (*TEACHER, "--seeds", "0", "1", "2"),
            "--seeds takes one value, found '1 2' too; several are written 0,1,2",
        ),
        (
            ("train", "--student", "a", "b"),
            "--student takes one value, found 'b' too; name it again for each: --student a --student b",
        ),
        (
            ("train", "--student", "a", "a"),
            "--student takes one value, found 'a' too; name it again for each: --student a --student a",
        ),
        (
            ("train", "--variant", "lr=0.1", "lr=0.2"),
            "--variant takes one value, found 'lr=0.2' too; name it again for each: "
            "--variant lr=0.1 --variant lr=0.2",
        ),
        ((*TEACHER, "--seeds=0", "0"), "--seeds takes one value, found '0' too; several are written 0,0"),
        (
            ("train", "--epochs", "1", "2"),
            "--epochs takes one value, found '2' too",
        ),
        (("train", "--loss", "kd", "1"), "--loss takes one value, found '1' too; quote what holds a space"),
        (
            ("train", "a model"),
            "train takes options alone, found 'a model' too; did you mean --student 'a model'?",
        ),
        (
            ("train", "--lr", "1", "--l", "3"),
            "train has no option --l; did you mean --lr or --weight-decay?",
        ),
        (
            ("train", "--resume", "r"),
            "--resume takes no value, found 'r'; a run is named with --out r",
        ),
        (
            ("train", "--compile=1"),
            "--compile takes no value, found --compile=1; write --compile alone or --no-compile",
        ),
        (("train", "--top-k", "3"), "train has no option --top-k; plan, dump or derive have it"),
        (
            ("train", "--temperature", "4"),
            "train has no option --temperature; it is one of losses, behind their names: --loss 'kd(temperature=4)'",
        ),
        (("train", "c.zarr"), "train takes options alone, found 'c.zarr' too; did you mean --cache c.zarr?"),
        (
            ("dump", "c.zarr"),
            "dump needs --teacher: vit_l, resnet50, wrn_40_2, timm:NAME, module:function …; "
            "a cache is named with --out c.zarr",
        ),
        (
            ("dump", "."),
            "dump needs --teacher: vit_l, resnet50, wrn_40_2, timm:NAME, module:function …",
        ),
        (
            (*TEACHER, "c.zarr"),
            "dump takes options alone, found 'c.zarr' too; did you mean --out c.zarr?",
        ),
        (
            ("train", "."),
            "train takes options alone, found '.' too; `logitcache train --help` lists its options",
        ),
        (("train", "vit"), "train takes options alone, found 'vit' too; did you mean --student vit?"),
        (("verify", "--deep"), "verify has no option --deep; `logitcache verify --help` lists all"),
        (("train", "--xyzzy"), "train has no option --xyzzy; `logitcache train --help` lists all"),
        (
            ("train", "n" * 300),
            f"train takes options alone, found {'n' * 300!r} too; did you mean --student {'n' * 300}?",
        ),
        (("train", "--out="), "--out: the path is empty; name a place to write to"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    assert refused(*words, cwd=tmp_path) == told


def test_a_wrong_default_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "logitcache.toml").write_text('[train]\nepochs = "many"\n')
    assert (
        refused("train", cwd=tmp_path)
        == "--epochs: expected a whole number, found 'many', among the defaults"
    )
    (tmp_path / "logitcache.toml").write_text('[train]\nnesterov = "x"\n')
    assert (
        refused("train", cwd=tmp_path) == "--nesterov: expected true or false, found 'x', among the defaults"
    )


@pytest.mark.parametrize("seeds", ["0-2", "00-2", "1-2", "0,1,2", "0..2"])
def test_several_seeds_of_students_are_variants(seeds: str, tmp_path: Path) -> None:
    for words in (("--seed", seeds), (f"--seed={seeds}",)):
        line = refused("train", "--student", "digits_tiny", *words, cwd=tmp_path)
        assert line == (
            f"--seed: expected a whole number, found {seeds!r}; it is one seed: several students by seed are "
            "--variant seed=0 --variant seed=1"
        )


@pytest.mark.parametrize("flag", ["--epochs", "--batch-size", "--workers"])
def test_no_number_is_read_out_of_a_range(flag: str, tmp_path: Path) -> None:
    line = refused("train", "--student", "digits_tiny", flag, "0-2", cwd=tmp_path)
    assert line.startswith(f"{flag}: expected a whole number")
    assert "found '0-2'" in line


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "train --student digits_tiny --loss kl --cache c.zarr"),
        (1, "train --student digits_tiny --loss ce --variant learning_rate="),
        (1, "train --student digits_tiny --loss ce --seeds 9-0"),
        (1, "dump --teacher digits_tiny --top-k 0"),
        (1, "dump --teacher digits_tiny --seeds 9-0"),
        (1, "dump --teacher digits_tiny --background snowy"),
        (2, "train --student digits_tiny --epochs many"),
        (2, "dump --teacher digits_tiny --split neither"),
        (2, "dump"),
        (2, "train --nothing"),
        (2, "evaluate run --batch-size 0"),
    ],
)
def test_the_parser_ends_with_2_and_a_value_that_means_nothing_with_1(
    code: int, words: str, tmp_path: Path
) -> None:
    ended = logitcache(*words.split(), cwd=tmp_path)
    assert ended.exit_code == code, ended.output
    assert [line for line in ended.stderr.splitlines() if line.startswith("logitcache: ")]
