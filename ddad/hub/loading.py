"""Loads a pipeline into the installed classes: no code of a checkpoint is run, and every weight is accounted for."""

import hashlib
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
CHECKSUMS_NAME = "checksums.json"
# Components that have no weights, and that checkpoints of ddad 0.1 do not have: their defaults are what 0.1 did.
NEW_COMPONENTS = ("denoiser", "image_processor")
# What ddad 0.1 stored in the pipeline and later versions in `normality`.
MOVED_SETTINGS = ("timesteps", "statistics", "threshold_quantile")


def load_pipeline(cls: Any, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
    """Loads a pipeline of class `cls`; see its `from_pretrained`.

    Raises:
        OSError: if a file is missing or damaged, or a weight is missing.
        ValueError: if the repository is of another kind.
    """
    kwargs.pop("trust_remote_code", None)
    dtype, variant = kwargs.pop("torch_dtype", None), kwargs.pop("variant", None)
    hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
    folder = find_folder(pretrained_model_name_or_path, hub)
    settings = read_index(cls, folder)
    check_weights(folder)
    components = {name: kwargs.pop(name) for name in cls.component_classes if name in kwargs}
    moved = {key: settings.pop(key) for key in MOVED_SETTINGS if key in settings}
    for name, expected in cls.component_classes.items():
        found = settings.pop(name, None)
        if name in components:
            continue
        if moved and found is None and name in NEW_COMPONENTS:
            components[name] = component_class(cls, name)()
            continue
        if found is None or tuple(found) != expected:
            raise ValueError(f"{folder / cls.config_name}: `{name}` must be {list(expected)}, found {found}.")
        component_dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
        extra = moved if name == "normality" else {}
        components[name] = load_component(cls, folder, name, component_dtype, variant, extra)
    return cls(**components, **{**settings, **kwargs})


def find_folder(name: Any, hub: dict[str, Any]) -> Path:
    """The checkpoint's folder, downloaded if it is on the Hub.

    Raises:
        OSError: if it is neither a folder nor the id of a repository.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if len(folder.parts) != 2 or folder.is_absolute():
        raise OSError(f"{folder} is neither a folder nor the id of a repository on the Hub (user/name).")
    return Path(snapshot_download(folder.as_posix(), allow_patterns=["*.json", "*.safetensors"], **hub))


def read_index(cls: Any, folder: Path) -> dict[str, Any]:
    """Components and settings of a checkpoint.

    Raises:
        OSError: if the index is missing or damaged.
        ValueError: if it is that of another pipeline.
    """
    path = folder / cls.config_name
    if not path.is_file():
        raise OSError(f"{folder} holds no checkpoint: {cls.config_name} is missing.")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is damaged ({error}): download the checkpoint again.") from None
    class_name = index.pop("_class_name", None)
    if not isinstance(class_name, list) or class_name[-1] != cls.__name__:
        raise ValueError(f"{folder} holds a checkpoint of {class_name}, not of {cls.__name__}.")
    return {key: value for key, value in index.items() if not key.startswith("_")}


def check_weights(folder: Path) -> None:
    """Compares every file of weights with the check sum that was recorded when it was saved.

    Checkpoints of ddad 0.1 have none.

    Raises:
        OSError: if a file is missing, was changed, or was not there when the checkpoint was saved.
    """
    path = folder / CHECKSUMS_NAME
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is damaged ({error}): download the checkpoint again.") from None
    found = {one.relative_to(folder).as_posix(): one for one in folder.glob("*/*.safetensors")}
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            raise OSError(f"The checkpoint {folder} is incomplete: {name} is missing. Download it again.")
        if name not in recorded:
            raise OSError(f"{found[name]} does not belong to the checkpoint: {CHECKSUMS_NAME} does not name it.")
        with found[name].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != recorded[name]:
            raise OSError(f"{found[name]} was changed since it was saved (its sha256 differs): download it again.")


def component_class(cls: Any, name: str) -> Any:
    """The installed class of a component."""
    module, class_name = cls.component_classes[name]
    return getattr(importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.{module}"), class_name)


def load_component(
    cls: Any, folder: Path, name: str, dtype: torch.dtype | None, variant: str | None, settings: dict[str, Any]
) -> Any:
    """One component.

    Raises:
        OSError: if it is missing or damaged, or a weight is missing, unknown or of another shape.
    """
    built = component_class(cls, name)
    if not (folder / name).is_dir():
        raise OSError(f"The checkpoint {folder} is incomplete: the folder {name} is missing.")
    if not issubclass(built, torch.nn.Module):
        return built.from_pretrained(folder / name)
    try:
        component, info = built.from_pretrained(
            folder / name,
            torch_dtype=dtype,
            variant=variant,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except Exception as error:
        raise OSError(f"The checkpoint's {folder / name} cannot be loaded: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            keys = ", ".join(sorted(map(str, info[kind]))[:3])
            raise OSError(
                f"The checkpoint's {folder / name} has {len(info[kind])} {kind.replace('_', ' ')} ({keys}, ...):"
                " download it again."
            )
    return component


def refresh(pipe: Any, folder: Path) -> None:
    """Writes the code and the settings of this version into a checkpoint that `pipe` was loaded from."""
    for name, component in pipe.components.items():
        component.save_config(folder / name)
        path = folder / name / component.config_name
        settings = json.loads(path.read_text(encoding="utf-8"))
        # diffusers keeps settings that an earlier version had and this one has not.
        classes = [one for one in type(component).__mro__ if "__init__" in vars(one)]
        known = {key for one in classes for key in inspect.signature(vars(one)["__init__"]).parameters}
        kept = {key: value for key, value in settings.items() if key in known or key.startswith("_")}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    pipe.save_config(folder)
