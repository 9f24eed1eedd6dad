"""What follows when a visitor says that a verdict was wrong: learn again, fit the category, or move the threshold."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ddad.app.categories import label_choices
from ddad.app.own_parts import OwnPart
from ddad.app.part import YourPart
from ddad.app.places import Places
from ddad.app.single_events import MOMENT, SingleImage, unless_overtaken
from ddad.app.uploads import output_path
from ddad.app.visits import Judged, Run, Stopped, Visit
from ddad.app.words import as_text, refused
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


class Lists(NamedTuple):
    """The components outside the tab for one image that a correction may change.

    Attributes:
        category: the page's choice.
        known: the names in it.
        own: the visitor's own of them.
        given: the photographs under Your part.
    """

    category: gr.Dropdown
    known: gr.State
    own: gr.BrowserState
    given: gr.File


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
        lists: what changes beside it.
    """

    def __init__(self, part: YourPart, single: SingleImage, lists: Lists):
        self.part, self.single, self.lists = part, single, lists

    @property
    def places(self) -> Places:
        """The components that show an inspection."""
        return self.single.places

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
            progress: called with the progress.

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
        if (inside := self.part.categories.get(category).judge.inside) is not None:  # it looks where it looked
            new = self.part.look_where(new, inside[0, 0].numpy() > 0)
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

    @unless_overtaken
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
    ) -> Iterator[dict[Any, Any]]:
        """The verdict on the image that is shown is wrong."""
        single, places = self.single, self.places
        visit = single.visits.of(request)
        with visit.lock:
            judged, category, path = visit.judged, visit.category, visit.path
        if judged is None or path is None:
            yield places.nothing
            return
        run = visit.again(moment)
        yield visit.show(run, {places.answer: "Taking that in ...", places.doubt: gr.Button(visible=False)})
        try:
            outcome = self.apply(visit, category, [judged], given, run, progress)
        except Stopped:
            outcome = Outcome("Stopped: nothing was changed.")
        except gr.Error as error:
            outcome = Outcome(refused(error))
        visit.corrected.pop(path, None)
        here = visit.run is run  # else the visitor has gone on: what was learnt is in the list, and nothing else moves
        changes = self.changes(visit, category, outcome, known, own, choose=here)
        if not here:
            yield changes or places.nothing
            return
        words = outcome.words
        if outcome.category is not None:
            run = visit.begin(outcome.category, path, visit.moment)
            words += f" This image scored {judged.image_score:.1f} before."
        visit.note = words
        yield visit.show(run, {places.shown: run.number}) | changes
        yield from single.finish(visit, run, opacity, truth, progress)

    def changes(
        self,
        visit: Visit,
        category: str,
        outcome: Outcome,
        known: list[str],
        own: list[str] | None,
        choose: bool = True,
    ) -> dict[Any, Any]:
        """What changes beside the tabs, by component; a category that was learnt again takes the old one's place."""
        changed: dict[Any, Any] = {}
        new, lists = outcome.category, self.lists
        if new is not None:
            names = [new if name == category else name for name in known]
            names += [] if new in names else [new]
            visit.settings.pop(category, None)
            changed |= {
                lists.known: names,
                lists.own: [*(name for name in own or [] if name != category), new],
                lists.category: gr.Dropdown(choices=label_choices(names), **({"value": new} if choose else {})),
            }
        if outcome.given is not None:
            changed[lists.given] = outcome.given
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
    ) -> tuple[Any, ...]:
        """All verdicts that the visitor marked as wrong: what changed in words, the button, and each of `Lists`."""
        visit = self.single.visits.of(request)
        wrong = [one for one in visit.corrected.values() if Path(one.path).is_file()]
        words, changes = "Nothing is marked as wrong.", {}
        if wrong:
            run = visit.begin_other()
            try:
                outcome = self.apply(visit, category, wrong, given, run, progress)
                visit.corrected.clear()
                words, changes = outcome.words, self.changes(visit, category, outcome, known, own)
                words += " Inspect the images again to see what it says now." if outcome.category else ""
            except Stopped:
                words = "Stopped: nothing was changed."
            except gr.Error as error:
                words = refused(error)
        return words, gr.Button(visible=False), *(changes.get(place, gr.skip()) for place in self.lists)


def add_corrections(work: Corrections, places_of_marks: Sequence[tuple[gr.Button, Any]]) -> None:
    """Connects the buttons.

    Args:
        work: what they do.
        places_of_marks: the buttons that take in what was marked on several images, each with where words stand.
    """
    single, places, lists = work.single, work.places, work.lists
    hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    inputs = [lists.known, lists.own, lists.given, single.opacity, places.truth, single.moment]
    corrected = places.doubt.click(
        work.correct_shown, inputs, [*places.all, *lists], js=MOMENT, trigger_mode="multiple",
        show_progress_on=places.answer, **hidden,
    )  # fmt: skip
    corrected.then(single.settle, places.shown, places.all, show_progress="hidden", **hidden)
    for button, words in places_of_marks:
        button.click(work.correct_marked, [*lists], [words, button, *lists], show_progress_on=words, **hidden)
