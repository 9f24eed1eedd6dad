"""Checkpoints exported once a machine and kept, for what inspects without PyTorch."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch

import ddad
from ddad.checkpoint.installed import DDADPipeline
from ddad.checkpoint.loading import find_folder
from ddad.checkpoint.names import kept_below
from ddad.checkpoint.saving import describe_state
from ddad.runtime.engines import installed
from ddad.runtime.inspector import FORMAT, METADATA_NAME
from ddad.serving.export import Format, compare, export_pipeline, pictures_to_compare


def exported(checkpoint: str | os.PathLike, engine: Format | None = None) -> Path:
    """The folder of a category for `ddad.runtime.load`.

    What is no exported folder itself is exported, compared with its pipeline and kept, by the state of its settings
    and weights.

    Args:
        checkpoint: an exported folder, a checkpoint's folder, or a repository on the Hub.
        engine: that it is for; None takes all that are installed.

    Raises:
        ImportError: if no engine is installed, or what exports.
        OSError: if there is no such checkpoint.
        RuntimeError: if the graph does not say what the pipeline says.
    """
    if (Path(checkpoint) / METADATA_NAME).is_file():
        return Path(checkpoint)
    engines = installed()
    form: Format = engine or ("openvino" if "openvino" in engines else "onnx")
    if form not in engines:
        raise ImportError(f"{form} is not installed: `pip install 'ddad[export{',openvino' * (form != 'onnx')}]'`.")
    folder = find_folder(checkpoint, {})
    state = f"{describe_state(folder)} {ddad.__version__} {FORMAT} {form}"
    kept = kept_below("exports") / f"{folder.name[:40]}-{hashlib.sha256(state.encode()).hexdigest()[:24]}"
    if (kept / METADATA_NAME).is_file():
        return kept
    pipe = DDADPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as fresh:
        made = export_pipeline(pipe, Path(fresh) / kept.name, form)
        for name in [engine] if engine else engines:
            agreement = compare(pipe, made, pictures_to_compare(folder), name)
            if not agreement.holds:
                raise RuntimeError(f"Exported for {name}, {checkpoint} says something else: {agreement}")
        shutil.rmtree(kept, ignore_errors=True)  # what an interruption left
        os.replace(made, kept)
    return kept
