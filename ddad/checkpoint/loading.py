"""Loads a pipeline into the installed classes: no code of a checkpoint is run, and every weight is accounted for."""

import hashlib
import importlib
import inspect
import json
import logging
import math
import threading
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from packaging.version import InvalidVersion, Version
from safetensors import safe_open

import ddad
from ddad.checkpoint.names import CHECKSUMS_NAME, INDEX_NAME, VERSIONS_NAME
from ddad.checkpoint.settings import check_settings

logger = logging.getLogger(__name__)

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
ANSWER_SECONDS = 20
WEIGHT_TYPES = ("F16", "BF16", "F32", "F64")
FETCHED = ["*.json", "*.safetensors"]  # of a repository: no code
# An index is some kilobytes; a file of this size was made to exhaust memory.
LARGEST_JSON = 8 * 2**20


def load_pipeline(cls: Any, pretrained_model_name_or_path: Any, accept_settings: bool = False, **kwargs: Any) -> Any:
    """Loads a pipeline of class `cls`; see its `from_pretrained`.

    Args:
        cls: the class.
        pretrained_model_name_or_path: a folder, or the id of a repository.
        accept_settings: whether settings that were changed since they were saved are loaded.
        kwargs: as `from_pretrained`'s.

    Raises:
        OSError: if a file is missing, damaged or was changed, or a weight is missing.
        ValueError: if the repository is of another kind, or a setting makes no sense.
    """
    kwargs.pop("trust_remote_code", None)
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("Weights are loaded from safetensors only: leave out `use_safetensors=False`.")
    dtype = read_dtype(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)))
    device = one_device(kwargs.pop("device_map", None))
    hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for name in kwargs:
        if name not in known:
            allowed = ", ".join(["dtype", "torch_dtype", "device_map", *HUB_OPTIONS, *known])
            raise TypeError(f"`from_pretrained` takes no argument {name!r}; it takes {allowed}.")
    folder = find_whole_folder(pretrained_model_name_or_path, hub, accept_settings)
    settings = read_index(cls, folder)
    compare_versions(folder)
    components = {name: kwargs.pop(name) for name in cls.component_classes if name in kwargs}
    for name, expected in cls.component_classes.items():
        entry = settings.pop(name, None)
        if name in components:
            continue
        if name in cls._optional_components and (entry is None or entry == [None, None]):
            continue
        if entry is None or tuple(entry) != expected:
            raise ValueError(f"{folder / cls.config_name}: `{name}` must be {list(expected)}, found {entry}.")
        component_dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
        components[name] = load_component(cls, folder, name, component_dtype)
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ValueError(f"{folder / cls.config_name} has settings of another version: {', '.join(unknown)}.")
    check_settings(cls, "the pipeline", {**settings, **kwargs})
    pipe = cls(**components, **{**settings, **kwargs})
    return pipe if device is None else pipe.to(device)


def one_device(device_map: Any) -> torch.device | None:
    """The device that a `device_map` names.

    Raises:
        ValueError: if it names none, or more than one.
    """
    if device_map is None:
        return None
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"`device_map` must be one device, such as 'cuda' or 'cpu', found {device_map!r}: the networks call each"
            " other at every step and belong together."
        ) from None


def find_folder(name: Any, hub: dict[str, Any]) -> Path:
    """The checkpoint's folder, downloaded if it is on the Hub: settings and weights, no code.

    Raises:
        OSError: if it is neither a folder nor the id of a repository.
        ValueError: if the name of a file leads out of the repository (huggingface_hub).
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if len(folder.parts) != 2 or folder.is_absolute():
        raise OSError(f"{folder} is neither a folder nor the id of a repository on the Hub (user/name).")
    if Path(folder.parts[0]).is_dir():  # a slip of the pen, and nothing to ask strangers for
        near = sorted(path.name for path in Path(folder.parts[0]).iterdir() if path.is_dir())
        there = f" It holds {', '.join(near[:8])}." if near else ""
        raise OSError(f"There is no {folder.name} in the folder {folder.parts[0]}.{there}")
    return Path(
        snapshot_download(folder.as_posix(), allow_patterns=FETCHED, **without_waiting(folder.as_posix(), hub))
    )


def without_waiting(repository: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The same options, or those for what is in the cache, if the Hub does not answer in time.

    `snapshot_download` waits for its first answer without end.
    """
    if hub.get("local_files_only") or constants.is_offline_mode():
        return hub
    try:
        HfApi().model_info(repository, revision=hub.get("revision"), token=hub.get("token"), timeout=ANSWER_SECONDS)
    except Exception as error:  # all else `snapshot_download` meets again, and knows what to do
        if "Timeout" in type(error).__name__:  # the API has no name for the HTTP library's classes
            logger.warning("The Hub does not answer: %s is taken from the cache, if it is there.", repository)
            return {**hub, "local_files_only": True}
    return hub


def find_whole_folder(name: Any, hub: dict[str, Any], accept_settings: bool) -> Path:
    """The same, its files compared with their check sums; what arrived damaged from the Hub is loaded once more.

    It would stay in the cache otherwise, and every further try would fail.

    Raises:
        OSError: as `find_folder` and `check_files`.
    """
    folder = find_folder(name, hub)
    try:
        check_files(folder, accept_settings)
    except OSError as error:
        if Path(name).is_dir() or hub.get("local_files_only"):
            raise
        logger.warning("%s It is downloaded once more.", error)
        folder = find_folder(name, {**hub, "force_download": True})
        check_files(folder, accept_settings)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        OSError: if it is damaged, or larger than such a file can be.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise OSError(f"{path} is refused: it has {path.stat().st_size:,} bytes, which no such file needs.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} is damaged ({error}): download the checkpoint again.") from None
    if not isinstance(value, dict):
        raise OSError(f"{path} is damaged (it holds no table of values): download the checkpoint again.")
    return value


def compare_versions(folder: Path) -> None:
    """Says if a later version of ddad saved the checkpoint; it loads if it needs nothing new."""
    path = folder / VERSIONS_NAME
    if not path.is_file():
        return
    saved, installed = str(read_json(path).get("ddad", "")), ddad.__version__
    try:
        newer = Version(saved) > Version(installed)
    except InvalidVersion:
        return
    if newer:
        logger.warning("%s was saved by ddad %s; this is %s: if it does not load, upgrade.", folder, saved, installed)


def read_index(cls: Any, folder: Path) -> dict[str, Any]:
    """Components and settings of a checkpoint.

    Raises:
        OSError: if the index is damaged.
        ValueError: if it is that of another pipeline.
    """
    index = read_json(folder / cls.config_name)
    class_name = index.pop("_class_name", None)
    if not isinstance(class_name, list) or class_name[-1] != cls.__name__:
        raise ValueError(f"{folder} holds a checkpoint of {class_name}, not of {cls.__name__}.")
    return {key: value for key, value in index.items() if not key.startswith("_")}


def check_files(folder: Path, accept_settings: bool = False) -> None:
    """Compares every file of weights and settings with the check sum that was recorded when it was saved.

    Args:
        folder: the checkpoint.
        accept_settings: whether settings may have been changed.

    Raises:
        OSError: if a file is missing, was changed, or was not there when the checkpoint was saved; or if an index of
            split weights names files outside its folder.
    """
    if not (folder / INDEX_NAME).is_file():
        raise OSError(f"{folder} holds no checkpoint: {INDEX_NAME} is missing.")
    settings = [folder / INDEX_NAME, *folder.glob("*/*config.json"), *folder.glob("*/*.index*.json")]
    for path in settings:
        names = read_json(path).get("weight_map", {})
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise OSError(f"{path} is refused: it names weights outside its folder.")
    weights = {path.relative_to(folder).as_posix(): path for path in folder.glob("*/*.safetensors")}
    for path in weights.values():
        check_types(path)
    path = folder / CHECKSUMS_NAME
    if not path.is_file():
        return
    recorded, present = read_json(path), weights
    if INDEX_NAME in recorded and not accept_settings:
        present = weights | {path.relative_to(folder).as_posix(): path for path in settings}
    for name in sorted(recorded.keys() | present.keys()):
        if name in present:
            check_sum(present[name], recorded.get(name), folder)
        elif not (accept_settings and name.endswith(".json")):
            raise OSError(f"The checkpoint {folder} is incomplete: {name} is missing. Get that file again.")


def check_sum(path: Path, recorded: str | None, folder: Path) -> None:
    """Raises an OSError for a file of a checkpoint with another check sum than was recorded, or none."""
    if recorded is None:
        raise OSError(f"{path} does not belong to the checkpoint: {CHECKSUMS_NAME} does not name it.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == recorded:
            return
    advice = "download it again"
    if path.suffix == ".json":
        advice = f"if that is what you want, accept it with `ddad refresh {folder}`, otherwise {advice}"
    raise OSError(f"{path} was changed since it was saved (its sha256 differs): {advice}.")


def check_types(path: Path) -> None:
    """Looks at the header of a file of weights.

    Raises:
        OSError: if the file is damaged, or weights are whole numbers, which would be rounded without a word.
    """
    try:
        with safe_open(path, "pt") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - it is no table
    except Exception as error:  # whatever the parser raises for what it is given
        raise OSError(f"{path} is damaged ({error}): download it again.") from None
    for key, dtype in types.items():
        if dtype not in WEIGHT_TYPES and not key.endswith("num_batches_tracked"):
            raise OSError(f"{path} is refused: {key} is of type {dtype}; weights are {', '.join(WEIGHT_TYPES)}.")


def component_class(cls: Any, name: str) -> Any:
    """The installed class of a component."""
    module, class_name = cls.component_classes[name]
    return getattr(importlib.import_module(f"ddad.{module}"), class_name)


# diffusers and accelerate load weights with torch's own functions exchanged for the whole process: modules that
# another thread builds meanwhile would stay without weights, and two loads at once restore each other's exchange.
_loading = threading.RLock()


def load_weights(built: Any, folder: Path, **options: Any) -> Any:
    """A component with weights, from safetensors, as its `from_pretrained` gives it; safe in threads.

    One is loaded at a time, and none without memory of its own at first (`low_cpu_mem_usage`), since a module that is
    built elsewhere in the meantime would have none either.

    Args:
        built: its class.
        folder: holds it.
        options: as its `from_pretrained`'s.
    """
    with _loading:
        return built.from_pretrained(
            folder, **{"use_safetensors": True, "low_cpu_mem_usage": False, "local_files_only": True, **options}
        )


SMALL = 1_000_000  # weights, of which no memory runs out


def check_size(built: Any, folder: Path) -> None:
    """Raises an OSError if settings ask for far more weights than files hold, before any memory is taken for them.

    A few that are missing are named when the component is loaded.

    Args:
        built: the class of the component.
        folder: holds it.
    """
    try:
        with torch.device("meta"):  # in this thread alone
            model = built.from_config(read_json(folder / built.config_name))
    except Exception:
        return  # what is wrong with the settings is said by who builds it
    asked = sum(value.numel() for value in model.state_dict().values())
    held = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            held += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    if asked > 2 * held + SMALL:
        raise OSError(
            f"The checkpoint's {folder} cannot be loaded: its settings ask for {asked:,} weights, and its files hold"
            f" {held:,}: download it again."
        )


def load_component(cls: Any, folder: Path, name: str, dtype: torch.dtype | None) -> Any:
    """One component.

    Raises:
        OSError: if it is missing or damaged, or a weight is missing, unknown or of another shape.
        ValueError: if a setting makes no sense.
    """
    built = component_class(cls, name)
    path = folder / name / built.config_name
    if not path.is_file():
        raise OSError(f"The checkpoint {folder} is incomplete: {name}/{built.config_name} is missing.")
    check_settings(built, str(folder / name), read_json(path))
    if not issubclass(built, torch.nn.Module):
        return built.from_pretrained(folder / name)
    check_size(built, folder / name)
    try:
        component, info = load_weights(built, folder / name, torch_dtype=dtype, output_loading_info=True)
    except Exception as error:
        raise OSError(f"The checkpoint's {folder / name} cannot be loaded: {' '.join(str(error).split())}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            keys = ", ".join(sorted(map(str, info[kind]))[:3])
            raise OSError(
                f"The checkpoint's {folder / name} has {len(info[kind])} {kind.replace('_', ' ')} ({keys}, ...):"
                " download it again."
            )
    return torch.nn.Module.to(component, dtype or torch.float32)  # a file may hold several types


def read_dtype(dtype: Any) -> Any:
    """A floating-point type as an object or by name, or a table of these by component.

    Raises:
        ValueError: for anything else; diffusers would take float32 without a word.
    """
    if isinstance(dtype, dict):
        return {name: read_dtype(one) for name, one in dtype.items()}
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be such as torch.float16 or 'float16', found {dtype!r}.")
    return found


def refresh(cls: Any, folder: Path) -> Any:
    """Writes the code and the settings of this version into a checkpoint; settings that were changed are accepted.

    Returns:
        The pipeline.

    Raises:
        OSError, ValueError: as `load_pipeline`.
    """
    pipe = load_pipeline(cls, folder, accept_settings=True)
    for name, component in pipe.components.items():
        if component is None:
            continue
        component.save_config(folder / name)
        path = folder / name / component.config_name
        settings = read_json(path)
        # diffusers keeps settings that an earlier version had and this one has not.
        classes = [base for base in type(component).__mro__ if "__init__" in vars(base)]
        known = {key for base in classes for key in inspect.signature(vars(base)["__init__"]).parameters}
        kept = {key: value for key, value in settings.items() if key in known or key.startswith("_")}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    pipe.save_config(folder)
    return pipe
