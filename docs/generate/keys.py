"""The keys of the control panel as tables: the schema's types and ranges, the defaults and the comments of conf/."""

from __future__ import annotations

import re
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from headstart.config import schema
from headstart.config.check import VARIANTS

from .conf_files import CONF, comments_of, header, key_comments, values_of

IDENTITY = ("name", "source")  # which choice it is, set by GROUP=NAME
# Where conf/ has no comment, or one about a single choice.
MEANINGS = {
    "data.batch_size": "see `batch_size`",
    "data.folds": "see `folds`",
    "data.root": "the folder that the data are in, or are downloaded to",
    "data.download": "fetch the data if they are not there",
    "data.image_column": "the column of the table that names the files",
    "data.label_column": "the column of the table that holds the labels",
    "data.interpolation": "how images are resized",
    "data.std": "their standard deviations",
    "model.library": "where the network comes from",
    "model.name": "its name there",
    "optimizer.lr": "see `lr`",
    "optimizer.weight_decay": "of weights; norms and biases do not decay. With `lbfgs` also `auto`, see its file",
    "optimizer.momentum": "of the gradients",
    "scheduler.factor": "what the learning rate is multiplied by",
    "scheduler.patience": "epochs without improvement before that",
    "scheduler.step_size": "epochs between two changes",
    "trainer.max_epochs": "see `epochs`",
}


class Key(NamedTuple):
    """A key of one choice of a group."""

    name: str
    accepts: str
    default: str
    meaning: str


def key_tables() -> str:
    """Return tables of all keys: the schema's types and ranges, with the defaults and the comments of conf/."""
    panel = CONF / "train.yaml"
    values, comments = yaml.safe_load(panel.read_text(encoding="utf-8")), key_comments(panel)
    single, groups = [], []
    for name, hint in get_type_hints(schema.Config).items():
        if not is_dataclass(hint):
            single.append(_key(schema.Config, name, values[name], comments.get(name, "")))
        elif (CONF / name).is_dir():
            groups.append(f"### `{name}`\n\n{_choices(name)}\n{_group(name, hint)}")
        else:
            own = _keys(hint, values[name], {key.removeprefix(f"{name}."): text for key, text in comments.items()})
            groups.append(f"### `{name}`\n\n{_table(key._replace(name=f'{name}.{key.name}') for key in own)}")
    launchers = f"### `launcher`\n\n{_choices('launcher')}"
    return "\n".join([f"### Single keys\n\n{_table(single)}", *groups, launchers])


def _choices(group: str) -> str:
    """Return a table of a group's files, each with the comment that it opens with."""
    rows = []
    for path in sorted((CONF / group).glob("[!_]*.yaml")):
        values = values_of(group, path)
        description = header(path) or (f"{values['library']}'s `{values['name']}`" if group == "model" else "")
        rows.append(f"| `{group}={path.stem}` | {_cell(_prose(description))} |")
    return "| choice | |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def _group(group: str, base: Any) -> str:
    """Return a table of the keys that the choices of a group have, each key once."""
    keys: dict[str, dict[str, Key]] = {}  # by key and choice
    for path in sorted((CONF / group).glob("[!_]*.yaml")):
        values = values_of(group, path)
        kind = base
        if group in VARIANTS:
            chosen_by, kinds = VARIANTS[group]
            kind = kinds[values[chosen_by]]
        for key in _keys(kind, values, comments_of(group, path)):
            if group in ("model", "sweep") or key.name not in IDENTITY:
                keys.setdefault(key.name, {})[path.stem] = key
    choices = len(list((CONF / group).glob("[!_]*.yaml"))) if group != "logger" else 0
    rows = []
    for name, by_choice in keys.items():
        usual = Counter(key.default for key in by_choice.values()).most_common(1)[0][0]
        others = {choice: key.default for choice, key in by_choice.items() if key.default != usual}
        default = "; ".join([usual, *(f"{choice}: {value}" for choice, value in others.items())])
        if group == "model" and name != "weights":
            default = "the choice's"
        only = f"{', '.join(f'`{choice}`' for choice in by_choice)}: " if len(by_choice) < choices else ""
        key = max(by_choice.values(), key=lambda key: (len(key.accepts), len(key.meaning)))
        meaning = MEANINGS.get(f"{group}.{name}", key.meaning)
        rows.append(Key(f"{group}.{name}", key.accepts, default, only + meaning))
    return _table(rows) if rows else ""


def _keys(kind: Any, values: dict[str, Any], comments: dict[str, str], above: str = "") -> list[Key]:
    """Return the keys of a schema that have a value in conf/, those of nested schemas with dots in their names."""
    keys = []
    hints = get_type_hints(kind)
    for f in fields(kind):
        name = f"{above}{f.name}"
        nested = next((part for part in (hints[f.name], *get_args(hints[f.name])) if is_dataclass(part)), None)
        if f.name not in values:
            continue
        if nested and isinstance(values[f.name], dict):
            keys += _keys(nested, values[f.name], comments, f"{name}.")
        elif not nested:
            keys.append(_key(kind, f.name, values[f.name], comments.get(name, ""))._replace(name=name))
    return keys


def _key(kind: Any, name: str, value: Any, comment: str) -> Key:
    """Return the description of one field of a schema."""
    field = next(f for f in fields(kind) if f.name == name)
    hint = get_type_hints(kind)[name]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    accepts = field.metadata.get("expected") or ", ".join(
        _type(option) for option in options if option is not type(None)
    )
    if type(None) in options:
        accepts += ", or `null`"
    default = "required" if value == "???" else f"`{_yaml(value)}`"
    return Key(name, accepts, default, _prose(comment))


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    names = {bool: "`true`, `false`", int: "a whole number", float: "a number", str: "text"}
    return names.get(hint) or {list: "a list", dict: "names by label"}.get(get_origin(hint) or hint, str(hint))


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)).removesuffix("...\n").strip()


def _table(keys: Iterable[Key]) -> str:
    cells = (f"`{key.name}` | {_cell(key.accepts)} | {_cell(key.default)} | {_cell(key.meaning)}" for key in keys)
    return "| key | accepts | default | |\n| --- | --- | --- | --- |\n" + "".join(f"| {row} |\n" for row in cells)


def _prose(comment: str) -> str:
    """Return a comment as Markdown: its commands as code, its asterisks as they are."""
    commands = r"(python train\.py [^\n]*|pip install -e \"[^\"]*\"|`[^`]*`)"
    parts = re.split(commands, comment)
    return "".join(
        (part if part[0] == "`" else f"`{part.strip()}`") if index % 2 else part.replace("*", r"\*")
        for index, part in enumerate(parts)
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
