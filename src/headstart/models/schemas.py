"""Pydantic schemas that validate files from untrusted sources: model.json, checkpoints, records of runs and sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from headstart.utils.errors import HeadstartError
from headstart.utils.limits import MAX_SIDE

MAX_HIDDEN = 2**20  # units of a hidden layer
SHOWN = 80  # characters of a wrong value in a message


class Strict(BaseModel):
    """A base model with strict types that rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Open(BaseModel):
    """A base model with strict types that rejects NaN and infinity but accepts unknown keys, which people may read."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def _class_names(names: list[str]) -> list[str]:
    if not all(names):
        raise ValueError("a class has no name")
    if len(set(names)) < len(names):
        raise ValueError("two classes have one name")
    return names


def _text(value: Any) -> str:
    # pydantic's str rejects file names with bytes that are not UTF-8.
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


Text = Annotated[Any, AfterValidator(_text)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


def _channels(**bounds: float) -> Any:
    # A checkpoint has tuples where JSON has lists.
    return Annotated[list[Annotated[float, Field(**bounds)]], Field(min_length=3, max_length=3, strict=False)]


# --- a trained classifier ------------------------------------------------------------------------------------


class Network(Strict):
    """The arguments of `build_backbone`, without weights."""

    library: Literal["headstart", "torchvision", "timm"]
    name: Text


class Linear(Strict):
    """The arguments of a linear head."""

    name: Literal["linear"]


class MLP(Strict):
    """The arguments of a head with a hidden layer."""

    name: Literal["mlp"]
    hidden: int = Field(ge=1, le=MAX_HIDDEN)
    dropout: float = Field(ge=0, lt=1)


class Preprocessed(Strict):
    """The fields of `Preprocessing`."""

    resize: int = Field(ge=1, le=2 * MAX_SIDE)
    crop: Side
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    mean: _channels(ge=-10, le=10)  # type: ignore[valid-type]
    std: _channels(gt=0, le=10)  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocessed:
        if self.crop > self.resize:
            raise ValueError(f"crop={self.crop} is larger than resize={self.resize}")
        return self


class DataDescription(Open):
    """The description of the images that a classifier was trained on."""

    image_column: Text | None = None
    label_column: Text | None = None
    classes: dict[Text, Text] | None = None


class Description(Open):
    """The description of a classifier: everything that is needed to build and use it."""

    model: Network
    head: Annotated[Linear | MLP, Field(discriminator="name")]
    class_names: Annotated[list[Text], Field(min_length=2, strict=False), AfterValidator(_class_names)]
    preprocessing: Preprocessed
    freeze: bool | Text
    temperature: float = Field(default=1.0, gt=0, le=1e6)
    data: DataDescription = Field(default_factory=DataDescription)
    versions: dict[Text, Text] = Field(default_factory=dict)
    metrics: dict[Text, int | float | None] = Field(default_factory=dict)


class ModelFile(Description):
    """The content of model.json."""

    format_version: int
    sha256: dict[Text, Text]


class Checkpoint(Open):
    """The keys of a Lightning checkpoint that headstart reads; `read_checkpoint` checks the tensors."""

    epoch: int = Field(ge=0)
    hyper_parameters: Description
    state_dict: dict[Text, Any]


# --- a run and a job of a sweep ------------------------------------------------------------------------------


class Environment(Open):
    """The content of environment.json."""

    command: list[Text] = Field(default_factory=list)
    folder: Text | None = None
    versions: dict[Text, Text] = Field(default_factory=dict)


class JobRecord(Open):
    """The content of job.json; numbers may be NaN or infinite."""

    model_config = ConfigDict(allow_inf_nan=True)

    digest: Text
    monitor: Text
    settings: dict[Text, bool | int | float | Text | None]
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    reason: Text | None = None


METRICS: TypeAdapter[dict[Text, int | float | None]] = TypeAdapter(
    dict[Text, int | float | None], config=ConfigDict(strict=True)
)
COUNTS: TypeAdapter[dict[Text, int]] = TypeAdapter(dict[Text, int], config=ConfigDict(strict=True))
JSON_OBJECT: TypeAdapter[dict[Text, Any]] = TypeAdapter(dict[Text, Any], config=ConfigDict(strict=True))


# --- messages ------------------------------------------------------------------------------------------------


def check_values(schema: type[BaseModel], values: Any, path: Path, error: type[HeadstartError], remedy: str) -> None:
    """Validate the values of the file at `path` against a schema; `remedy`, a sentence, ends the message.

    Raises:
        HeadstartError: an `error`, if a value is missing, unknown, of another type, or out of range.
    """
    try:
        schema.model_validate(values)
    except ValidationError as problems:
        raise error(f"{path} is damaged or was changed: {_format_first(problems)}. {remedy}") from None
    except RecursionError:
        raise error(f"{path} is damaged or was changed: it is nested too deeply. {remedy}") from None


def _format_first(problems: ValidationError) -> str:
    """Describe the first problem."""
    problem: Mapping[str, Any] = problems.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        return f"there is no key {key}"
    text = repr(problem["input"])
    value = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    expected = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{key}={value}: {expected}" if key else expected
