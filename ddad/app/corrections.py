"""What follows when a visitor says that a verdict was wrong: learn again, fit the category, or move the threshold."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ddad.app.categories import label_choices
from ddad.app.own_parts import OwnPart
from ddad.app.part import YourPart
from ddad.app.uploads import output_path
from ddad.app.visits import Judged, Run, Stopped, Visit
from ddad.app.words import as_text, refused
from ddad.app.work import MOMENT, SingleImage
from ddad.calibration.advice import count_of
from ddad.datasets.lookalikes import LEAST_IMAGES

# A threshold that would fail more of the good parts than this tells nothing.
MOST_FAILING = 0.5
BELOW = 0.999  # of a missed defect's score: where the threshold goes that finds it


@dataclass(frozen=True)
class Outcome:
    """What became of corrections.

    Attributes:
        words: what changed, for the visitor.
        category: the new one, where something was learnt.
        given: the photographs under Your part, where some were added there.
    """

    words: str
    category: str | None = None
    given: list[str] | None = None


def keep_good(paths: Sequence[str], before: int) -> list[str]:
    """Copies of images that are known to be good, under names that say nothing: that of a camera's file may."""
    return [
        str(shutil.copy(path, output_path(f"corrected_{number}{Path(path).suffix.lower()}")))
        for number, path in enumerate(paths, start=before + 1)
    ]


class Corrections:
    """What the buttons do.

    Args:
        part: what learns.
        single: the tab that shows one image.
    """

    def __init__(self, part: YourPart, single: SingleImage):
        self.part, self.single = part, single

    # ------------------------------------------------------------------------------------------------- what is changed

    def apply(
        self,
        visit: Visit,
        category: str,
        wrong: Sequence[Judged],
        given: Sequence[str] | None,
        run: Run,
        progress: gr.Progress,
    ) -> Outcome:
        """Changes what can be changed by verdicts that were wrong.

        A visitor's own category learns again, with what was called defective and is good, and without photographs that
        show a defect. Another category has no photographs here: the good ones are put under Your part. A defect that
        was missed lowers the threshold.

        Args:
            visit: the visitor.
            category: that judged.
            wrong: images and what was said of them.
            given: the photographs under Your part.
            run: what the visitor may stop.
            progress: told of the progress.

        Raises:
            Stopped: if the visitor stopped it.
            gr.Error: if nothing can be learnt of these images.
        """
        good = [one.path for one in wrong if one.is_anomalous]
        missed = [one for one in wrong if not one.is_anomalous]
        part = self.part.parts.get(category)
        if part is not None and part.photographs.are_kept:
            unfit = part.photographs.names_of([one.path for one in missed])
            if good or unfit:
                return self.learn_again(category, part, good, unfit, run, progress)
        words, added = [], None
        if good:
            added = [*(given or []), *keep_good(good, len(given or []))]
            words.append(self.tell_given(part, len(good), len(added)))
        if missed:
            words.append(self.lower_threshold(visit, category, missed))
        return Outcome("\n\n".join(words), given=added)

    def learn_again(
        self,
        category: str,
        part: OwnPart,
        good: Sequence[str],
        unfit: Sequence[str],
        run: Run,
        progress: gr.Progress,
    ) -> Outcome:
        """The same part from more photographs, or fewer."""
        before = self.part.categories.get(category).judge.threshold
        changed = part.photographs.with_changes(keep_good(good, len(part.photographs.files)), unfit)
        new, facts, _ = self.part.learn(changed, part.category, part.name, run, progress)
        done = [f"{count_of(len(good), 'photograph')} added as good"] if good else []
        done += [f"{as_text(', '.join(unfit))} left out"] if unfit else []
        words = (
            f"**Learnt again from {facts['images']} photographs: {' and '.join(done)}.** The threshold was"
            f" {before:.1f} and is {facts['threshold']:.1f} now."
        )
        return Outcome(words, new)

    @staticmethod
    def tell_given(part: OwnPart | None, count: int, total: int) -> str:
        """What is said where photographs were put under Your part."""
        why = "this category's own photographs are not here"
        if part is not None:
            why = "its photographs have been deleted since, as all images are after an hour"
        missing = LEAST_IMAGES - total
        then = (
            f"give {missing} more photographs of good parts there, then press *Learn*"
            if missing > 0
            else "press *Learn* there"
        )
        return (
            f"**Noted: {count_of(count, 'good part')} that {'was' if count == 1 else 'were'} called defective.**"
            f" Nothing is changed yet: {why}. {'It lies' if count == 1 else 'They lie'} under *Your part* now"
            f" ({count_of(total, 'photograph')}); to fit the category to your parts, choose *The category above* and"
            f" {then}."
        )

    def lower_threshold(self, visit: Visit, category: str, missed: Sequence[Judged]) -> str:
        """Moves the visitor's threshold below what was missed, where it then still tells good parts."""
        settings = self.single.settings_of(visit, category)
        scores = self.single.good_scores(category, settings)
        lowest = min(one.image_score for one in missed)
        # A step below, in either direction of the sign.
        limit = math.floor((lowest - (1 - BELOW) * abs(lowest)) * 1000) / 1000
        before = missed[0].threshold
        count, fail, failed = len(scores), sum(s > limit for s in scores), sum(s > before for s in scores)
        if limit <= 0 or (count and fail > MOST_FAILING * count):
            return (
                f"**No threshold finds this defect.** It scores {lowest:.1f}, as good parts do: of {count} good ones"
                f" {fail} score higher. Nothing was changed; more photographs of good parts, or a sharper picture, may"
                " help."
            )
        visit.settings[category] = replace(settings, threshold=limit)
        return (
            f"**The threshold is {limit:.1f} now, before it was {before:.1f}**, so that this is found, in all tabs"
            f" until you leave the page. The price: of {count} good parts {fail} lie above it, before {failed}. *What"
            " if* has the way back."
        )

    # ------------------------------------------------------------------------------------------------ under a verdict

    def correct_shown(
        self,
        known: list[str],
        own: list[str] | None,
        given: list[str] | None,
        opacity: float,
        truth: str | None,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[dict[Any, Any], dict[str, Any]]]:
        """The verdict on the image that is shown is wrong.

        Yields:
            What the tab shows, and what else changes, by name: `category`, `known`, `own`, `given`.
        """
        single, places = self.single, self.single.places
        visit = single.visits.of(request)
        with visit.lock:
            judged, category, path = visit.judged, visit.category, visit.path
        if judged is None or path is None:
            return
        run = visit.again(moment)
        yield visit.show(run, {places.answer: "Taking that in ...", places.doubt: gr.Button(visible=False)}), {}
        try:
            outcome = self.apply(visit, category, [judged], given, run, progress)
        except Stopped:
            outcome = Outcome("Stopped: nothing was changed.")
        except gr.Error as error:
            outcome = Outcome(refused(error))
        others = self.changes(visit, category, outcome, known, own)
        visit.corrected.pop(path, None)
        if visit.run is not run:  # the visitor has gone on: what was learnt is in the list, and nothing else moves
            others.pop("chosen", None)
            yield {}, others
            return
        words = outcome.words
        if outcome.category is not None:
            run = visit.begin(outcome.category, path, visit.moment)
            before = f"{judged.image_score:.1f}"
            words += f" This image scored {before} before."
        visit.note = words
        yield visit.show(run, {places.shown: run.number}), others
        for view in single.finish(visit, run, opacity, truth, progress):
            yield view, {}

    def changes(
        self, visit: Visit, category: str, outcome: Outcome, known: list[str], own: list[str] | None
    ) -> dict[str, Any]:
        """What changes on the page beside the tabs; a category that was learnt again takes the place of the old."""
        changed: dict[str, Any] = {}
        new = outcome.category
        if new is not None:
            names = [new if name == category else name for name in known]
            names += [] if new in names else [new]
            visit.settings.pop(category, None)
            changed |= {
                "known": names,
                "own": [*(name for name in own or [] if name != category), new],
                "choices": label_choices(names),
                "chosen": new,
            }
        if outcome.given is not None:
            changed["given"] = outcome.given
        return changed

    # ----------------------------------------------------------------------------------------------- several at once

    def correct_marked(
        self,
        category: str,
        known: list[str],
        own: list[str] | None,
        given: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, dict[str, Any]]:
        """All verdicts that the visitor marked as wrong; what changed in words, and what changes on the page."""
        visit = self.single.visits.of(request)
        wrong = [one for one in visit.corrected.values() if Path(one.path).is_file()]
        if not wrong:
            return "Nothing is marked as wrong.", {}
        run = visit.begin_other()
        try:
            outcome = self.apply(visit, category, wrong, given, run, progress)
        except Stopped:
            return "Stopped: nothing was changed.", {}
        except gr.Error as error:
            return refused(error), {}
        visit.corrected.clear()
        words = outcome.words
        if outcome.category is not None:
            words += " Inspect the images again to see what it says now."
        return words, self.changes(visit, category, outcome, known, own)


def add_corrections(
    work: Corrections,
    category: gr.Dropdown,
    known: gr.State,
    own: gr.BrowserState,
    given: gr.File,
    places_of_marks: Sequence[tuple[gr.Button, Any]],
) -> None:
    """Connects the buttons.

    Args:
        work: what they do.
        category: the page's choice.
        known: the names in it.
        own: the visitor's own of them.
        given: the photographs under Your part.
        places_of_marks: the buttons that take in what was marked on several images, each with where words stand.
    """
    single = work.single
    places = single.places
    page = {"known": known, "own": own, "given": given}

    def on_page(changes: dict[str, Any]) -> dict[Any, Any]:
        """What changes, by component."""
        view: dict[Any, Any] = {page[name]: value for name, value in changes.items() if name in page}
        if "choices" in changes:
            chosen = {"value": changes["chosen"]} if "chosen" in changes else {}
            view[category] = gr.Dropdown(choices=changes["choices"], **chosen)
        return view

    def correct_shown(
        known: list[str],
        own: list[str] | None,
        given: list[str] | None,
        opacity: float,
        truth: str | None,
        moment: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:
        try:
            for view, changes in work.correct_shown(known, own, given, opacity, truth, moment, request, progress):
                yield view | on_page(changes) or places.nothing
        except Stopped:
            yield places.nothing

    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    inputs = [known, own, given, single.opacity, places.truth, single.moment]
    corrected = places.doubt.click(
        correct_shown, inputs, [*places.all, category, known, own, given], js=MOMENT, trigger_mode="multiple",
        show_progress_on=places.answer, **hidden,
    )  # fmt: skip
    corrected.then(single.settle, places.shown, places.all, show_progress="hidden", **hidden)

    def correct_in(button: gr.Button, words: Any) -> None:
        """Connects one of the buttons for several images."""

        def correct_marked(
            category: str,
            known: list[str],
            own: list[str] | None,
            given: list[str] | None,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008
        ) -> dict[Any, Any]:
            text, changes = work.correct_marked(category, known, own, given, request, progress)
            return {words: text, button: gr.Button(visible=False)} | on_page(changes)

        outputs = [words, button, category, known, own, given]
        button.click(correct_marked, [category, known, own, given], outputs, show_progress_on=words, **hidden)

    for button, words in places_of_marks:
        correct_in(button, words)
