"""The components that show an inspection: what is cleared together, and what belongs to one image."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ddad.app.words import Words


@dataclass(frozen=True)
class Places:
    """The components that show an inspection."""

    image: gr.Image
    truth: gr.Image
    answer: Words
    doubt: gr.Button
    heatmap: gr.Image
    slider: gr.ImageSlider
    histogram: gr.HTML
    regions: gr.Dataframe
    limit: gr.Number
    threshold: gr.Slider
    alpha: gr.Slider
    levels: gr.CheckboxGroup
    tolerance: gr.Radio
    rates: gr.Radio
    promise: Words
    film: gr.Gallery
    animation: gr.Image
    maps: gr.Gallery
    shown: gr.State

    @property
    def nothing(self) -> dict[Any, Any]:
        """Changes nothing."""
        return {self.shown: gr.skip()}

    @property
    def weights(self) -> list[Any]:
        """By what the maps are combined, and for what photographs the threshold is measured."""
        return [self.alpha, self.levels, self.tolerance]

    @property
    def results(self) -> list[Any]:
        """What belongs to one image, and goes with it."""
        return [
            self.answer, self.doubt, self.heatmap, self.slider, self.histogram, self.regions, self.film,
            self.animation, self.maps,
        ]  # fmt: skip

    @property
    def all(self) -> list[Any]:
        """Everything."""
        return [
            self.image, self.truth, *self.results, self.limit, self.threshold, *self.weights, self.rates, self.promise,
            self.shown,
        ]  # fmt: skip

    def cleared(self, answer: str) -> dict[Any, Any]:
        """Nothing of any image, but these words."""
        view = dict.fromkeys(self.results)
        return {
            **view,
            self.histogram: "",
            self.regions: [],
            self.answer: answer,
            self.doubt: gr.Button(visible=False),
        }
