"""A command line that is wrong: one line that says what was expected, what was found, and what may be meant."""

import os
import re
import shlex
from typing import Any

from logitcache.errors import join_alternatives
from logitcache.synonyms import find_meant

from .help_page import argument_name, list_choices, value_name

OF_A_LOSS = {"temperature", "temp", "t", "tau", "alpha", "beta"}  # options of losses, not of `train`


def describe_usage_error(error: Any, words: list[str]) -> str:
    """Say what is wrong with a command line.

    Args:
        error: click's, which is told by what it holds: typer brings a click of its own.
        words: of the command line, after the program's name.
    """
    context, message = error.ctx, error.message
    if context is None:  # it is of no command
        return str(message)
    option, name = getattr(error, "param", None), getattr(error, "option_name", None)
    own = words[words.index(context.info_name) + 1 :] if context.info_name in words else words
    if name is not None and "requires an argument" in message:
        return _describe_missing_value(context, name)
    if name is not None and "not take a value" in message:
        found = next((word for word in own if word.startswith(f"{name}=")), name)
        return f"{name} takes no value, found {found}; write {name} alone{_or_no(context, name)}"
    if name is not None:
        return _describe_unknown_option(context, _find_word(own, name))
    if option is not None and type(error).__name__ == "MissingParameter":
        return _describe_missing(context, option, own)
    if option is not None:
        return _describe_bad_value(error, option, own)
    if extra := re.search(r"unexpected extra argument\(?s?\)? \((.*)\)$", message):
        return _describe_extra_words(context, [extra[1]] if extra[1] in own else extra[1].split(), own)
    if unknown := re.search(r"No such command '(.*?)'", message):
        return describe_unknown_command(unknown[1], context.command.commands)
    if message.startswith("Missing command"):
        return "name a command, such as dump or train; `logitcache --help` lists all"
    return str(error.format_message())


def describe_unknown_command(name: str, commands: Any) -> str:
    """Say that there is no such command, and which may be meant."""
    meant = find_meant(name, commands)
    advice = f"did you mean {join_alternatives(meant)}?" if meant else "`logitcache --help` lists all"
    return f"no command {name!r}; {advice}"


def _describe_unknown_option(context: Any, word: str) -> str:
    path, command = context.command_path, context.command
    flags = [flag for option in command.params for flag in (*option.opts, *option.secondary_opts)]
    root = context.find_root()
    above = [flag for option in root.command.params for flag in option.opts]
    others = {
        name: [flag for option in one.params for flag in option.opts]
        for name, one in root.command.commands.items()
        if one is not command
    }
    if context is not root and word in above:
        return f"{word} comes before the command: {root.command_path} {word} … {context.info_name}"
    having = [name for name, known in others.items() if word in known]
    if context is root and having:
        such = "dump" if "dump" in having else having[0]
        return f"{word} comes after the command: {path} {such} {word} …"
    begin = f"{context.info_name} has no option {word}"
    if meant := find_meant(word, [flag for flag in flags if flag.startswith("--")]):
        return f"{begin}; did you mean {join_alternatives(meant)}?"
    if context.info_name == "train" and word.lstrip("-").lower() in OF_A_LOSS:
        return f"{begin}; it is one of losses, behind their names: --loss 'kd(temperature=4)'"
    if having:
        return f"{begin}; {join_alternatives(having)} {'have' if len(having) > 1 else 'has'} it"
    return f"{begin}; `{path} --help` lists all"


def _describe_missing_value(context: Any, flag: str) -> str:
    option = _find_option(context, flag)
    return f"{flag} needs a value{_explain(option, context)}"


def _describe_missing(context: Any, option: Any, words: list[str]) -> str:
    name = argument_name(option) if option.param_type_name == "argument" else option.opts[-1]
    advice = _explain(option, context)
    if option.param_type_name == "option" and words and not words[0].startswith("-"):
        if flag := _find_flag_of_caches(context, words[0]):
            advice += f"; a cache is named with {flag} {shlex.quote(words[0])}"
        elif not _is_place(words[0]):
            advice = f"; did you mean {name} {shlex.quote(words[0])}?"
    return f"{context.info_name} needs {name}{advice}"


def _describe_bad_value(error: Any, option: Any, words: list[str]) -> str:
    context = error.ctx
    name = argument_name(option) if option.param_type_name == "argument" else max(option.opts, key=len)
    list_errors = getattr(error.__cause__, "errors", None)  # pydantic's
    details = list_errors()[0] if list_errors else {}
    if not details or (details["type"] == "value_error" and not list_choices(option, context)):
        return f"{name}: {error.message.removeprefix('Value error, ')}"
    kind = {"N": "a whole number", "X": "a number"}.get(value_name(option, context), "")
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kind = kind or kinds.get(details["type"].split("_")[0], "another value")
    if least := re.search(r"(greater|less) than or equal to (\S+)", details["msg"]):
        kind += f" of {least[2]} or {'more' if least[1] == 'greater' else 'less'}"
    choices = list_choices(option, context)
    found = details["input"]
    expected = join_alternatives(choices) if choices else kind
    meant = find_meant(str(found), choices)[:1] if choices else []
    where = "" if any(word.partition("=")[0] in option.opts for word in words) else ", among the defaults"
    hints = [f"; did you mean {m}?" for m in meant] or [hint_at_variants(context, option)]
    return f"{name}: expected {expected}, found {found!r}{where}{hints[0]}"


def hint_at_variants(context: Any, option: Any) -> str:
    """Say how students of several seeds are trained, where what is wrong is the seed of `train`."""
    several = "; it is one seed: several students by seed are --variant seed=0 --variant seed=1"
    return several if (context.info_name, option.name) == ("train", "seed") else ""


def _describe_extra_words(context: Any, extra: list[str], words: list[str]) -> str:
    at = _find_extra_word(context, extra[0], words)
    before = next((word.partition("=")[0] for word in reversed(words[:at]) if word.startswith("-")), "")
    option = _find_option(context, before)
    found = " ".join(extra)
    takes = [argument_name(one) for one in context.command.params if one.param_type_name == "argument"]
    begin = f"{context.info_name} takes {' and '.join(takes) or 'options'} alone, found {found!r} too"
    flag = "" if takes else _find_flag_of_caches(context, extra[0])
    if context.info_name == "train" and not before and not _is_place(extra[0]):
        flag = "--student"
    if flag and not (before and flag == before):
        return f"{begin}; did you mean {flag} {shlex.quote(extra[0])}?"
    if option is None:
        return f"{begin}; `{context.command_path} --help` lists its options"
    if option.is_flag:
        out = f"; a run is named with --out {shlex.quote(extra[0])}" if option.name == "resume" else ""
        return f"{before} takes no value, found {extra[0]!r}{out}"
    value = words[at - 1].removeprefix(f"{before}=")
    if option.multiple:
        again = " ".join(f"{before} {shlex.quote(word)}" for word in (value, *extra))
        return f"{before} takes one value, found {found!r} too; name it again for each: {again}"
    begin = f"{before} takes one value, found {found!r} too"
    if value_name(option, context) in ("N", "X"):
        return begin
    if re.fullmatch(r"[\d,.-]+", "".join([value, *extra])):
        return f"{begin}; several are written {','.join([value, *extra])}"
    return f"{begin}; quote what holds a space"


def _find_extra_word(context: Any, extra: str, words: list[str]) -> int:
    """Return where a word stands that is no option's value."""
    for at, word in enumerate(words):
        option = _find_option(context, words[at - 1]) if at and "=" not in words[at - 1] else None
        if word == extra and (option is None or option.is_flag):
            return at
    return 0


def _find_word(words: list[str], flag: str) -> str:
    """Return the word that click took for this option: of -lr it says -l."""
    if flag.startswith("--"):
        return flag
    return next((word.partition("=")[0] for word in words if word.startswith(flag)), flag)


def _find_option(context: Any, flag: str) -> Any:
    flag = flag.partition("=")[0]
    return next((one for one in context.command.params if flag in (*one.opts, *one.secondary_opts)), None)


def _is_place(word: str) -> bool:
    """Tell whether a word is a path or a URL, and no name of a model."""
    return "://" in word or word.rstrip("/").endswith(".zarr") or os.path.exists(word)


def _find_flag_of_caches(context: Any, word: str) -> str:
    """Return the option by which a command takes a cache, where a word names one; else ""."""
    if not word.rstrip("/").endswith(".zarr") and not os.path.isfile(os.path.join(word, "zarr.json")):
        return ""
    return next((flag for flag in ("--cache", "--out") if _find_option(context, flag)), "")


def _explain(option: Any, context: Any) -> str:
    if option is None:
        return ""
    choices = list_choices(option, context) if option.param_type_name == "option" else []
    text = join_alternatives(choices) if choices else (option.help or "").rstrip(".")
    return f": {text}" if text else ""


def _or_no(context: Any, flag: str) -> str:
    option = _find_option(context, flag)
    return f" or {option.secondary_opts[0]}" if option is not None and option.secondary_opts else ""
