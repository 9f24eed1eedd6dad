"""Methods with networks of their own, trained on the good images for a time that is equal for all."""

import time
from collections.abc import Iterable

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.methods import Images, backbone_input, judged_by, look, network_size
from benchmarks.rivals import Rival, layer_names, packaged_backbones
from ddad import DDADPipeline


class Trained(Rival):
    """A method that learns from batches of good images until its time is over.

    Args:
        pipe: whose backbone and image size it shares.
        seconds: its time.
    """

    name, note, batch_size = "", "", 32

    def __init__(self, pipe: DDADPipeline, seconds: float):
        self.pipe, self.seconds = pipe, seconds
        torch.manual_seed(0)
        with packaged_backbones():
            self.create()

    def create(self) -> None:
        """Builds `model` and what trains it."""
        raise NotImplementedError

    def step(self, images: torch.Tensor) -> None:
        """One step on `[N, 3, L, L]` in [-1, 1]."""
        raise NotImplementedError

    def fit(self, images: Images) -> None:
        """Steps until the time is over; the step during which it ends is the last."""
        store = torch.cat([batch.half() for batch in images.looks()])
        self.model.train()
        started, steps = time.monotonic(), 0
        while time.monotonic() - started < self.seconds:
            self.step(store[torch.randint(len(store), (self.batch_size,))].float())
            steps += 1
        self.note += f"; trained for {self.seconds / 60:.0f} minutes: {steps} steps of {self.batch_size}"
        self.model.eval()


class Stfpm(Trained):
    """A student that learns the teacher's features of good images.

    Source: "Student-Teacher Feature Pyramid Matching for Anomaly Detection" (Wang et al., 2021).
    """

    name, note = "STFPM (anomalib)", "strides 4, 8, 16"

    def create(self) -> None:
        """Stochastic gradient descent with anomalib's settings."""
        from anomalib.models.image.stfpm.loss import STFPMLoss
        from anomalib.models.image.stfpm.torch_model import STFPMModel

        config = judged_by(self.pipe).config
        self.model, self.loss = STFPMModel(layer_names(self.pipe, tuple(config.strides)), config.backbone), STFPMLoss()
        student = self.model.student_model.parameters()
        self.optimizer = torch.optim.SGD(student, lr=0.4, momentum=0.9, weight_decay=0.001)

    def step(self, images: torch.Tensor) -> None:
        """The student follows the teacher, whose statistics are frozen."""
        self.model.teacher_model.eval()
        teacher, student = self.model(backbone_input(judged_by(self.pipe), images))
        self.optimizer.zero_grad()
        self.loss(teacher, student).backward()
        self.optimizer.step()


class CFlow(Trained):
    """Normalizing flows of features, conditioned on their position.

    Source: "CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization via Conditional Normalizing Flows"
    (Gudovskiy et al., 2022).
    """

    name, note, batch_size = "CFlow (anomalib)", "strides 8, 16; 256 positions in an optimiser's step", 8
    positions = 256

    def create(self) -> None:
        """Flows for strides 8 and 16."""
        from anomalib.models.image.cflow.torch_model import CflowModel

        layers = layer_names(self.pipe, (8, 16))
        self.model = CflowModel(judged_by(self.pipe).config.backbone, layers, fiber_batch_size=4096)
        self.optimizer = torch.optim.Adam(self.model.decoders.parameters(), lr=1e-4)

    def step(self, images: torch.Tensor) -> None:
        """Raises the likelihood of every position of the images, some at a time, as anomalib does."""
        from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d

        self.model.encoder.eval()
        with torch.no_grad():
            features = self.model.encoder(backbone_input(judged_by(self.pipe), images))
        for decoder, values in zip(self.model.decoders, features.values(), strict=True):
            count, channels, *size = values.shape
            places = positional_encoding_2d(self.model.condition_vector, *size).expand(count, -1, -1, -1)
            flat, condition = (value.permute(0, 2, 3, 1).flatten(0, 2) for value in (values, places))
            for chosen in torch.randperm(len(flat)).split(self.positions):
                latent, jacobian = decoder(flat[chosen], [condition[chosen]])
                loss = -F.logsigmoid(get_logp(channels, latent, jacobian) / channels).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()


class CutPaste(Trained):
    """The backbone learns to tell images from such with a patch or a strip pasted elsewhere; then one Gaussian.

    Source: "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization" (Li et al., 2021): three
    classes, and the density of the pooled features of whole images. Its maps need a network for each patch: none here.
    """

    name, note, batch_size = "CutPaste + Gaussian", "backbone trained further; no maps", 8

    def create(self) -> None:
        """The backbone with a head for three classes; stochastic gradient descent as in the paper."""
        backbone = timm.create_model(judged_by(self.pipe).config.backbone, pretrained=True, num_classes=0)
        self.model = nn.Sequential(
            backbone, nn.Linear(backbone.num_features, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 3)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.03, momentum=0.9, weight_decay=3e-5)

    @staticmethod
    def paste(images: torch.Tensor, scar: bool) -> torch.Tensor:
        """A patch of 2 to 15 % of each image, or a strip of 2-16 by 10-25 pixels (of 256), pasted at another place."""
        result, side = images.clone(), images.shape[-1]
        for image, target in zip(images, result, strict=True):
            if scar:
                height, width = (
                    round(side / 256 * float(v)) for v in (2 + 14 * torch.rand(()), 10 + 15 * torch.rand(()))
                )
            else:
                area, ratio = 0.02 + 0.13 * torch.rand(()), torch.exp(2.4 * (torch.rand(()) - 0.5))
                height, width = (
                    int(side * min(0.9, float(v))) for v in ((area * ratio).sqrt(), (area / ratio).sqrt())
                )
            height, width = max(1, height), max(1, width)
            (top, to), (left, to_left) = (torch.randint(side - n + 1, (2,)).tolist() for n in (height, width))
            patch = image[:, top : top + height, left : left + width]
            if scar and torch.rand(()) < 0.5:
                patch = patch.transpose(1, 2)[:, :height, :width]
            target[:, to : to + patch.shape[1], to_left : to_left + patch.shape[2]] = patch
        return result

    def step(self, images: torch.Tensor) -> None:
        """Three classes of equal size."""
        batch = torch.cat([images, self.paste(images, scar=False), self.paste(images, scar=True)])
        labels = torch.arange(3).repeat_interleave(len(images))
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(backbone_input(judged_by(self.pipe), batch)), labels).backward()
        self.optimizer.step()

    def codes(self, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        """Pooled features of images, `[N, C]`."""
        return torch.cat([self.model[0](backbone_input(judged_by(self.pipe), one)) for one in batches])

    def fit(self, images: Images) -> None:
        """Trains, then fits the Gaussian."""
        super().fit(images)
        with torch.no_grad():
            codes = self.codes(images.looks())
        self.mean, covariance = codes.mean(dim=0), torch.cov(codes.T)
        self.inverse = torch.linalg.inv(covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance)))

    @torch.no_grad()
    def score(self, images: list[torch.Tensor]) -> tuple[np.ndarray | None, np.ndarray]:
        """Mahalanobis distances."""
        centred = self.codes([look(self.pipe, images)]) - self.mean
        return None, torch.einsum("nc,cd,nd->n", centred, self.inverse, centred).sqrt().numpy()

    def size(self) -> int:
        """The backbone and the Gaussian."""
        return network_size(self.model[0]) + 2 * (self.mean.numel() + self.inverse.numel())
