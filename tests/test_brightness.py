"""The report's section on brightness, of comparisons made up here: its numbers and verdicts are those of the rows."""

import functools
import json
import statistics

import numpy as np
import pytest
from scipy import stats
from test_report import BRIGHT, LEAN, MAIN, TABLE, close, damaged, dump, make, read

from noisesched.comparison import brightness, heatmaps, plots, report, results
from noisesched.comparison.results import Condition, Task
from noisesched.evaluation import image_stats

LEAK, ZERO = "discrete(scaled_linear, num_steps=1000)", "discrete(scaled_linear, num_steps=1000, zero_terminal=True)"


@functools.lru_cache
def described(blacks, whites, spread, channels=1, n=100):
    """What n images look like, of which so many are black and white and the others' means are spread evenly."""
    means = [*[0] * blacks, *[255] * whites, *np.linspace(127.5 - spread, 127.5 + spread, n - blacks - whites)]
    images = np.repeat(np.round(means).astype(np.uint8), 4 * channels).reshape(n, 2, 2, channels)
    images[blacks + whites :, 0] += 5  # some contrast, which leaves the mean as it is
    images[blacks + whites :, 1] -= 5
    return image_stats.describe(images)


REAL = {"real": described(10, 10, 100), "floor": described(12, 8, 100)}


def look(row):
    """Only "whole" has black images and white ones, as many as the data but for a few, that differ by seed; others have none."""
    seed = row["train_seed"]
    if row["run"] == "whole" and row["spacing"] == "trailing":
        return described(10 + seed, 11 - seed, 90 + seed)
    return described(0, 30, 60 + seed) if row["run"] == "bright" else described(0, 0, 40 + 3 * seed + row["calls"])


PLAN = {
    "told": ("log_snr",),
    "drawn": (LEAK, ZERO, ZERO),
    "labels": ["leaking", "whole", "bright"],
    "schedules": (LEAK, ZERO),
    "spacings": ("trailing", "leading"),
    "settings": {"bright": {"weighting": "min_snr(gamma=5)"}},
    "look": look,
    "real": REAL,
    **LEAN,
}


def own(row):
    return row["schedule"] == row["drawn"]


def complete(folder):
    """Makes a comparison that lacks some combinations one in which they were never asked for."""
    keys = [json.loads(line)["key"] for line in (folder / "compare.jsonl").read_text().splitlines()]
    dump(folder / "config.json", json.loads((folder / "config.json").read_text()) | {"keys": keys})


@pytest.fixture
def page(monkeypatch):
    """`page(folder)`: the page of a comparison's report, whose pictures are drawn but not rendered."""
    for module in (plots, heatmaps):
        monkeypatch.setattr(module, "png", lambda figure: b"")

    def written(folder):
        report.run(folder, say=lambda text: None)
        return read(folder)

    return written


# -- the numbers


def test_the_table_has_the_data_first_and_then_every_network_at_its_most_calls(tmp_path, page):
    rows = make(tmp_path, **PLAN, keep=own)
    found = page(tmp_path)
    tables = [table for table in found.tables if "brightness spread" in table[0]]
    real, floor, *lines = [dict(zip(tables[0][0], row, strict=True)) for row in tables[0][1:]]
    assert close(real["brightness spread"], REAL["real"]["brightness_spread"]) and real["contrast"] == floor["contrast"]
    share = "black, over the real images'"
    assert (real[share], floor[share]) == ("1.00 (10.0%)", "1.20 (12.0%)") and (real[BRIGHT], floor[BRIGHT]) == ("0", "1.25")
    assert len(lines) == 3 * 2 and {line["calls"] for line in lines} == {"25"} and "saturation" not in tables[0][0]
    for line in lines:
        chosen = [
            row
            for row in rows
            if all(
                str(row[name]) == line[key]
                for name, key in (("run", "condition"), ("schedule", "schedule"), ("spacing", "spacing"), ("calls", "calls"))
            )
        ]
        for name, over in (("brightness_spread", 1), ("clipped", 1), ("black", 0.1), ("white", 0.1), ("contrast", 1)):
            values = [row["appearance"][name] / over for row in chosen]
            mean, std = line[name.replace("_", " ") + ", over the real images'" * (over != 1)].split(" ± ")
            assert len(values) == 3 and close(mean, statistics.fmean(values)) and close(std, statistics.stdev(values))
    assert len(tables[1]) == 3 + 3 * 2 * 2  # behind a line, all calls


def test_sampling_seeds_are_averaged_before_training_seeds(tmp_path):
    varied = lambda row: described(5 * row["seed"], 0, 50 + 10 * row["train_seed"])
    make(
        tmp_path,
        told=("log_snr",),
        drawn=("linear",),
        seeds=(0, 1),
        look=varied,
        real=REAL,
        **LEAN,
        keep=lambda row: (row["train_seed"], row["seed"]) != (1, 1),
    )
    comparison = results.read(tmp_path)
    found = comparison.look(Condition("curve_log_snr", "linear", "log_snr", None), Task("cosine", "ddim", "trailing", 5), "black")
    assert found == (pytest.approx((0.025 + 0 + 0.025) / 3), pytest.approx(np.std([0.025, 0, 0.025], ddof=1)), 3)


def test_verdicts_are_those_of_the_stated_rule(tmp_path, page):
    make(tmp_path, **PLAN, keep=own)
    text = page(tmp_path).text
    assert "Of the 200 real images, both halves together, 11.0% black and 9.0% white" in text
    assert "Too few black and white images with ddim, trailing spacing: leaking (0.0% and 0.0%)." in text
    assert "Black and white recovered with ddim, trailing spacing: whole (11.0% and 10.0%)." in text
    assert "Too few black images, too many white images with ddim, trailing spacing: bright (0.0% and 30.0%)." in text
    assert (
        "Black and white images come out as often as among the real ones from 1 of 6 ways to train and sample: whole with "
        "ddim, trailing spacing."
    ) in text
    assert f"Among 200 real images are 22 black, a share known to ± {200 * (24 * 180 / 204**3) ** 0.5:.1f}%" in text
    assert f"The spread of brightness is {REAL['real']['brightness_spread']:.3f} among the real images; of samples, " in text


@pytest.mark.parametrize(
    "blacks, real, seeds, said",
    [
        ((0, 0, 0), (2, 2), 3, "too few"),
        ((10, 11, 9), (10, 10), 3, "recovered"),
        ((16, 17, 15), (10, 10), 3, "too many"),
        ((0, 20, 10), (10, 10), 3, "undecided"),  # so far apart that a mean of 0 would pass
        ((0, 0, 0), (0, 0), 3, "undecided"),
        ((3, 3, 3), (0, 0), 3, "too many"),
        ((0, 0, 0), (1, 1), 3, "undecided"),
        ((5,), (10, 10), 1, "recovered"),
        ((2,), (10, 10), 1, "too few"),
        ((18,), (10, 10), 1, "recovered"),
    ],
)
def test_a_share_is_judged_by_the_interval_of_its_difference(tmp_path, blacks, real, seeds, said):
    make(
        tmp_path,
        told=("log_snr",),
        drawn=("linear",),
        schedules=("linear",),
        calls=(5,),
        train_seeds=tuple(range(seeds)),
        **LEAN,
        look=lambda row: described(blacks[row["train_seed"]], 0, 90),
        real={half: described(n, 5, 100) for half, n in zip(("real", "floor"), real, strict=True)},
    )
    comparison = results.read(tmp_path)
    ((condition, task),) = comparison.cells
    share, q = statistics.fmean(real) / 100, statistics.fmean(blacks) / 100
    k, own, freedom = sum(real), (blacks[0] + 2) * (102 - blacks[0]) / 104**3, np.inf
    if seeds > 1:
        own = statistics.variance(blacks) / 1e4 / 3
    variance = (k + 2) * (202 - k) / 204**3
    if seeds > 1 and own:
        freedom = (variance + own) ** 2 / (own**2 / 2)
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance + own)
    expected = (
        ("undecided" if share <= reach else "recovered") if abs(q - share) <= reach else ("too few" if q < share else "too many")
    )
    assert brightness.recovery(comparison, condition, task, "black")[0] == expected == (said if real != (2, 2) else expected)


@pytest.mark.parametrize("real, told", [(0, 0), (20, 1)])
def test_the_abstract_is_silent_where_nothing_can_be_told(tmp_path, real, told):
    make(
        tmp_path,
        told=("log_snr",),
        drawn=("linear",),
        schedules=("linear",),
        calls=(5,),
        train_seeds=(0,),
        **LEAN,
        look=lambda row: described(real, real, 100),
        real={half: described(real, real, 100) for half in ("real", "floor")},
    )
    sentences = list(brightness.abstract(results.read(tmp_path)))
    assert len(sentences) == told and all("from 1 of 1 way to" in text for text in sentences)


def test_the_schedule_shown_is_that_of_training():
    tasks = [Task(schedule, "ddim", "trailing", n) for schedule in ("cosine", "linear", TABLE) for n in (5, 25)]
    of = lambda drawn, tasks: brightness.at_home(Condition("a", drawn, "log_snr", None), tasks)
    assert of(TABLE, tasks) == tasks[5] and of("linear", tasks) == tasks[3]
    assert of("linear", tasks[:2] + tasks[4:]) == tasks[5]  # the table of that curve
    assert of("flow", tasks) == tasks[1] and of("linear", tasks[:3]) == tasks[2]


def test_a_network_without_its_own_schedule_is_said_to_be_shown_under_another(tmp_path, page):
    make(tmp_path, **PLAN, keep=lambda row: own(row) or row["run"] == "leaking" and row["schedule"] == ZERO)
    assert "but leaking under" not in page(tmp_path).text
    make(tmp_path, **PLAN, keep=lambda row: row["schedule"] == ZERO)
    text = page(tmp_path).text
    assert f"Each network under the schedule that it was trained with, but leaking under {ZERO}, at 25 network" in text


def test_colour_images_have_a_saturation_and_a_new_statistic_has_its_column(tmp_path, page, monkeypatch):
    highest = image_stats.Statistic(lambda images: images.max() / 255, "the brightest pixel", relative=False)
    monkeypatch.setitem(image_stats.STATISTICS, "highest", highest)
    real = {half: described(9, 9, 99, 3) for half in ("real", "floor")}
    make(tmp_path, told=("log_snr",), drawn=("linear",), look=lambda row: described(0, 1, 50, 3), real=real, **LEAN)
    text = page(tmp_path)
    head, line, _, samples, *_ = next(table for table in text.tables if "highest" in table[0])
    assert line[head.index("highest")] == "1.00" and samples[head.index("highest")] == "1.00 ± 0"
    assert close(line[head.index("saturation")], real["real"]["saturation"]) and "highest: the brightest pixel." in text.text


# -- guidance, and what is not there


def guided(row):
    return own(row) and (row["guidance"] == "none" or (row["run"], row["calls"], row["spacing"]) == ("whole", 5, "trailing"))


def test_guidance_has_a_table_and_no_line_among_the_others(tmp_path, page):
    rows = make(tmp_path, **PLAN, guidances=("none", "cfg(3)", "cfg(3, rescaled(0.7))"), keep=guided)
    complete(tmp_path)
    text = page(tmp_path)
    real, floor, *lines = text.table("guidance")
    assert [line["guidance"] for line in lines] == ["none", "cfg(3)", "cfg(3, rescaled(0.7))"]
    where = ("condition", "method", "calls", "schedule")
    assert {tuple(map(line.get, where)) for line in lines} == {("whole", "ddim", "5", ZERO)}
    values = [row["metrics"][MAIN] for row in rows if row["guidance"] == "cfg(3)"]
    assert close(lines[1][MAIN].split(" ± ")[0], statistics.fmean(values)) and floor[MAIN] == "1.25" and real[MAIN] == "-"
    assert set(brightness.shown(results.read(tmp_path))) == {
        (Condition(run, LEAK if run == "leaking" else ZERO, "log_snr", None), ("ddim", spacing))
        for run in ("leaking", "whole", "bright")
        for spacing in ("trailing", "leading")
    }
    assert "6 ways to train" in text.text and "The comparison is unfinished" not in text.text


def test_schedules_of_their_own_for_each_run_leave_no_empty_tables_or_pictures(tmp_path, page):
    changes = {"leaking": {"weighting": "eps"}, "whole": {"model.width": 8}}  # no two runs differ in one thing alone
    make(tmp_path, **PLAN | {"settings": PLAN["settings"] | changes}, guidances=("none", "cfg(3)"), keep=guided)
    complete(tmp_path)
    text = page(tmp_path)
    assert "sampled under 1 of 2 inference schedules each with" in text.text
    assert "do under the schedules that they were trained with?" in text.text and all(len(table) > 1 for table in text.tables)
    drawn = {path.stem for path in (tmp_path / "report" / "report_pictures").iterdir()}
    assert {"heat_map_2", "brightness_1", "brightness_spreads", "guidance", "guided_images"} <= drawn
    assert not {"heat_map_3", "quality_3", "levels_3", "differences_1", "brightness_2"} & drawn  # guidances share one


def test_runs_that_differ_in_a_schedule_alone_and_share_none_are_not_paired(tmp_path, page):
    make(tmp_path, **PLAN | {"drawn": (LEAK, ZERO), "labels": ["leaking", "whole"], "settings": {}}, keep=own)
    assert "that differ in one thing alone have a number under the same inference schedule: nothing is" in page(tmp_path).text


@pytest.mark.parametrize("lacking", ["rows", "real"])
def test_comparisons_of_before_have_no_such_section(tmp_path, page, lacking):
    make(tmp_path, **PLAN | ({"look": None} if lacking == "rows" else {"real": None}))
    text = page(tmp_path)
    assert "Brightness" not in text.text and not any("brightness spread" in table[0] for table in text.tables)
    assert "black" not in text.text


def test_rows_of_before_are_in_no_number_and_counted(tmp_path, page):
    make(tmp_path, **PLAN | {"look": lambda row: look(row) if row["run"] == "whole" else None}, keep=own)
    text = page(tmp_path)
    assert "24 rows of an earlier version without a description of the images: in no number on brightness." in text.text
    tables = [table for table in text.tables if "brightness spread" in table[0]]
    assert {row[0] for row in tables[0][3:]} == {"whole"}


@pytest.mark.parametrize(
    "name, keys, value, said",
    [
        ("compare.jsonl", ("appearance",), [1], "line 1 is damaged: 'appearance' cannot be [1]"),
        ("compare.jsonl", ("appearance", "black"), "much", "line 1 is damaged: 'black' must be a number from 0 to 1; got 'much'"),
        ("compare.jsonl", ("appearance", "histogram"), None, "line 1 is damaged: 'histogram' must be 20 whole numbers"),
        ("compare.jsonl", ("guidance",), 3, "line 1 is damaged: 'guidance' cannot be 3"),
        ("reference.json", ("appearance",), "black", "reference.json is damaged: 'appearance' cannot be 'black'"),
        (
            "reference.json",
            ("appearance", "floor"),
            None,
            "appearance, 'floor' is damaged: a description of images is a dictionary",
        ),
        ("reference.json", ("appearance", "real", "contrast"), 7, "appearance, 'real' is damaged: 'contrast' must be a number"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, name, keys, value, said):
    make(tmp_path, told=("log_snr",), drawn=("linear",), calls=(5,), look=lambda row: described(1, 1, 50), real=REAL, **LEAN)
    damaged(tmp_path / name, *keys, value=value)
    with pytest.raises(ValueError) as error:
        results.read(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


# -- the pictures


def test_histograms_hold_the_shares_of_all_seeds(tmp_path, monkeypatch):
    make(tmp_path, **PLAN, keep=own)
    comparison, drawn = results.read(tmp_path), []
    monkeypatch.setattr(plots, "png", drawn.append)
    brightness.histograms.distributions(comparison, brightness.shown(comparison))
    axes = drawn[0].axes
    assert len(axes) == 3 * 2
    assert [axis.get_title("left") for axis in axes[:2]] == ["ddim, trailing spacing", "ddim, leading spacing"]
    data, samples = (patch.get_data().values for patch in axes[2].patches)  # "whole", trailing
    assert data.sum() == pytest.approx(1) and data[0] == pytest.approx(0.11) and data[-1] == pytest.approx(0.09)
    assert samples.sum() == pytest.approx(1) and samples[0] == pytest.approx(0.11) and samples[-1] == pytest.approx(0.10)


def test_pictures_show_something(tmp_path):
    from PIL import Image

    make(tmp_path, **PLAN, keep=lambda row: own(row) and (row["run"], row["spacing"]) != ("bright", "leading"))
    comparison = results.read(tmp_path)
    for draw in (brightness.histograms.distributions, brightness.histograms.spreads):
        (tmp_path / "a.png").write_bytes(draw(comparison, brightness.shown(comparison)))
        with Image.open(tmp_path / "a.png") as image:
            assert min(image.size) > 300 and np.asarray(image.convert("L")).std() > 5
