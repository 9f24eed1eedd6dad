"""What a threshold promises, and the command that chooses one."""

import json

import numpy as np
import pytest
import scipy.stats

from ddad import DDADCalibration, DDADPipeline
from ddad.calibration.promise import expect_false_alarms, photographs_missing, promise
from ddad.calibration_ddad import student_quantile
from ddad.cli import main
from ddad.commands.shared import parse_rate
from tests.conftest import create_tiny_pipeline


def test_students_quantile_is_that_of_the_tables():
    for freedom in (1, 2, 3, 4, 5, 8, 20, 48):
        for above in (0.3, 0.1, 0.05, 0.01, 0.005):
            assert student_quantile(above, freedom) == pytest.approx(scipy.stats.t.isf(above, freedom), rel=2e-5)


@pytest.mark.parametrize("law", [scipy.stats.norm, scipy.stats.gumbel_r])
@pytest.mark.parametrize("judges", [60, 100, 240])
def test_beyond_its_scores_a_threshold_follows_their_tail(law, judges):
    """In the mean about as much lies above as was asked for; a plain quantile lets far more pass."""
    scores = law.ppf(np.random.default_rng(0).random((3000, judges)))
    for rate in (0.01, 0.005):
        found = law.sf(DDADCalibration.limit(scores, rate))
        assert 0.4 * rate < found.mean() < 1.9 * rate
        plain = law.sf(np.quantile(scores, 1 - rate, axis=1)).mean()
        assert found.mean() < plain or judges * rate > 1
    limits = [DDADCalibration.limit(scores[0], rate) for rate in (0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005)]
    assert limits == sorted(limits)


def test_a_promise_says_what_is_missing_for_it():
    assert photographs_missing(83, 0.01) == 17 and photographs_missing(100, 0.01) == 0
    assert "17 more good photographs are needed for 1 %" in promise(83, 0.01) and "needed" not in promise(83, 0.05)
    (mean, low, high), (_, few_low, few_high) = expect_false_alarms(235, 0.05), expect_false_alarms(60, 0.05)
    assert low < mean < high and few_high - few_low > 1.5 * (high - low)


def test_rates_are_read_as_people_write_them():
    assert parse_rate("1%") == parse_rate("1 %") == parse_rate("0.01") == 0.01 and parse_rate("0.5%") == 0.005
    for text in ("0", "60%", "one", "", "nan", "-1%", "1"):
        with pytest.raises(ValueError, match="may fail"):
            parse_rate(text)


def test_a_call_asks_for_false_alarms(tiny_pipe, picture):
    few, many = (tiny_pipe(picture, false_alarms=rate, denoise=False).threshold for rate in (0.01, 0.2))
    assert few > tiny_pipe.threshold > many
    assert tiny_pipe(picture, false_alarms=0.05, denoise=False).threshold == pytest.approx(tiny_pipe.threshold)
    with pytest.raises(ValueError, match="Give `threshold` or `false_alarms`"):
        tiny_pipe(picture, false_alarms=0.05, threshold=1.0)
    with pytest.raises(ValueError, match=r"\(0, 0.5\], found 5"):
        tiny_pipe(picture, false_alarms=5)


def test_the_command_prints_promises_and_saves_a_choice(striped_data, tmp_path, capsys):
    pipe = create_tiny_pipeline()
    pipe.save_pretrained(tmp_path / "tiny")
    checkpoint, output = str(tmp_path / "tiny"), str(tmp_path / "new")
    assert main(["threshold", checkpoint, "--false-alarms", "1%", "--output", output]) == 0
    said = capsys.readouterr().out
    assert "| 5 % (now) |" in said and "94 more good photographs are needed for 1 %" in said
    saved = DDADPipeline.from_pretrained(output)
    assert saved.threshold == pytest.approx(pipe.calibration.threshold(pipe.judgement(), 0.01), rel=1e-3)
    assert saved.calibration.false_alarms == pytest.approx(0.01)
    flags = ["--data", str(striped_data), "--miss-costs", "20", "--defects", "0.05"]
    assert main(["threshold", checkpoint, *flags]) == 0
    said = capsys.readouterr().out
    assert "| found | false alarms |" in said and " of 4 |" in said
    assert "a threshold of" in said and "costs least" in said
    image = str(next((striped_data / "test" / "good").iterdir()))
    flags = ["--checkpoint", checkpoint, "--no-denoise", "--output", str(tmp_path / "results")]
    assert main(["predict", image, *flags, "--false-alarms", "1%"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["threshold"] == pytest.approx(saved.threshold, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--miss-costs", "20"], "needs labelled images"),
        (["--output", "new"], "say which by --false-alarms"),
    ],
)
def test_what_the_command_cannot_do_it_says(tmp_path, capsys, flags, said):
    create_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    assert main(["threshold", str(tmp_path / "tiny"), *flags]) == 2
    assert said in capsys.readouterr().err
