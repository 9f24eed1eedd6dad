"""What commands share: loading a checkpoint."""

import typing


def load_pipeline(checkpoint: str, device: str | None) -> typing.Any:
    """The pipeline, on the device asked for or on the GPU where there is one."""
    import torch

    from ddad.pipeline import DDADPipeline

    pipe = DDADPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
