"""The report's section on brightness, of comparisons made up here: its numbers and verdicts are those of the rows."""

import functools
import io
import json
import statistics

import numpy as np
import pytest
import test_report
from PIL import Image
from scipy import stats
from test_report import BRIGHT, LEAN, MAIN, TABLE, Page, close, damaged, dump, make

from noisesched.comparison import html, plots, report, results, text
from noisesched.comparison.results import LOOK, Condition, How, Task
from noisesched.evaluation import image_stats

quick = test_report.quick  # the fixture
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


TRAILING, LEADING = (How("ddim", "none", spacing) for spacing in ("trailing", "leading"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """(rows, comparison, page) of PLAN under the schedules of training."""
    folder = tmp_path_factory.mktemp("plan")
    rows = make(folder, **PLAN, keep=own)
    comparison = results.read(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda figure: b"")
        return rows, comparison, Page(html.page(report.compose(comparison, "")))


def tables(page, *columns):
    """[[row]] of the tables that have these columns, as dictionaries."""
    found = [table for table in page.tables if set(columns) <= set(table[0])]
    return [[dict(zip(table[0], row, strict=True)) for row in table[1:]] for table in found]


# -- the numbers


def test_the_table_has_the_data_first_and_then_every_network_at_its_most_calls(plan):
    rows, _, page = plan
    (real, floor, *lines), every = tables(page, BRIGHT, "brightness spread")
    assert close(real["brightness spread"], REAL["real"]["brightness_spread"]) and real["contrast"] == floor["contrast"]
    share = "black, relative to real images"
    assert (real[share], floor[share]) == ("1.00 (10.0%)", "1.20 (12.0%)") and (real[BRIGHT], floor[BRIGHT]) == ("-", "1.25")
    assert len(lines) == 3 * 2 and {line["calls"] for line in lines} == {"25"} and "saturation" not in lines[0]
    for line in lines:
        where = {"run": "condition", "schedule": "schedule", "spacing": "spacing", "calls": "calls"}
        chosen = [row for row in rows if all(str(row[name]) == line[column] for name, column in where.items())]
        for name, over in (("brightness_spread", 1), ("clipped", 1), ("black", 0.1), ("white", 0.1), ("contrast", 1)):
            values = [row["appearance"][name] / over for row in chosen]
            mean, std = line[name.replace("_", " ") + ", relative to real images" * (over != 1)].split(" ± ")
            assert len(values) == 3 and close(mean, statistics.fmean(values)) and close(std, statistics.stdev(values))
        for name in ("black", "white"):
            share = statistics.fmean(row["appearance"][name] for row in chosen)
            assert close(line[f"{name} images"].partition("%")[0], 100 * share)
    assert len(every) == 2 + 3 * 2 * 2  # behind a line, all calls


def test_sampling_seeds_are_averaged_before_training_seeds(tmp_path):
    varied = lambda row: described(5 * row["seed"], 0, 50 + 10 * row["train_seed"])
    keep = lambda row: (row["train_seed"], row["seed"]) != (1, 1)
    make(tmp_path, told=("log_snr",), drawn=("linear",), seeds=(0, 1), look=varied, real=REAL, **LEAN, keep=keep)
    cell = Condition("curve_log_snr", "", "linear", "log_snr"), Task("cosine", *TRAILING, 5)
    found = results.read(tmp_path).summary(LOOK("black"))[cell]
    assert found == (pytest.approx((0.025 + 0 + 0.025) / 3), pytest.approx(np.std([0.025, 0, 0.025], ddof=1)), 3)


def test_verdicts_are_those_of_the_stated_rule(plan):
    _, comparison, page = plan
    _, _, *lines = tables(page, "brightness spread")[0]
    said = {(line["condition"], line["spacing"]): (line["black images"], line["white images"]) for line in lines}
    assert said["leaking", "trailing"] == ("0.0%, too few", "0.0%, too few")
    assert said["whole", "trailing"] == ("11.0%, recovered", "10.0%, recovered")
    assert said["bright", "leading"] == ("0.0%, too few", "30.0%, too many")
    (abstract,) = text.recovered(comparison, report.home(comparison).values())
    assert "from 1 of 6 ways" in abstract and abstract in page.text
    assert f"22 black, a share known to ± {200 * (24 * 180 / 204**3) ** 0.5:.1f}%" in page.text
    assert "Of the 200 real images, both halves together, 11.0% black and 9.0% white" in page.text


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
    (cell,) = comparison.cells
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
    assert text.recovery(comparison, cell, "black") == expected == (said if real != (2, 2) else expected)


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
    comparison = results.read(tmp_path)
    said = list(text.recovered(comparison, report.home(comparison).values()))
    assert len(said) == told and all("from 1 of 1 way to" in line for line in said)


def test_the_schedule_shown_is_that_of_training():
    tasks = [Task(schedule, *TRAILING, n) for schedule in ("cosine", "linear", TABLE) for n in (5, 25)]
    of = lambda drawn, tasks: report.at_home(Condition("a", "", drawn, "log_snr"), tasks)
    assert of(TABLE, tasks) == tasks[5] and of("linear", tasks) == tasks[3]
    assert of("linear", tasks[:2] + tasks[4:]) == tasks[5]  # the table of that curve
    assert of("flow", tasks) == tasks[1] and of("linear", tasks[:3]) == tasks[2]


def test_a_network_without_its_own_schedule_is_said_to_be_shown_under_another(tmp_path, quick):
    make(tmp_path, **PLAN, keep=lambda row: own(row) or row["run"] == "leaking" and row["schedule"] == ZERO)
    assert "but leaking under" not in quick(tmp_path).text
    make(tmp_path, **PLAN, keep=lambda row: row["schedule"] == ZERO)
    assert f"trained with, but leaking under {ZERO}, at 25 network" in quick(tmp_path).text


def test_colour_images_have_a_saturation_and_a_new_statistic_has_its_column(tmp_path, quick, monkeypatch):
    highest = image_stats.Statistic(lambda images: images.max() / 255, "the brightest pixel", relative=False)
    monkeypatch.setitem(image_stats.STATISTICS, "highest", highest)
    real = {half: described(9, 9, 99, 3) for half in ("real", "floor")}
    make(tmp_path, told=("log_snr",), drawn=("linear",), look=lambda row: described(0, 1, 50, 3), real=real, **LEAN)
    shown = quick(tmp_path)
    line, _, samples, *_ = tables(shown, "highest")[0]
    assert line["highest"] == "1.00" and samples["highest"] == "1.00 ± 0"
    assert close(line["saturation"], real["real"]["saturation"]) and "highest: the brightest pixel." in shown.text


# -- guidance, and what is not there


def guided(row):
    return own(row) and (row["guidance"] == "none" or (row["run"], row["calls"], row["spacing"]) == ("whole", 5, "trailing"))


def test_guidance_has_a_table_and_no_line_among_the_others(tmp_path, quick):
    rows = make(tmp_path, **PLAN, guidances=("none", "cfg(3)", "cfg(3, rescaled(0.7))"), keep=guided)
    complete(tmp_path)
    shown = quick(tmp_path)
    ((real, floor, *lines),) = tables(shown, "guidance", "contrast", MAIN)
    assert [line["guidance"] for line in lines] == ["none", "cfg(3)", "cfg(3, rescaled(0.7))"]
    where = ("condition", "spacing", "calls", "schedule")
    assert {tuple(map(line.get, where)) for line in lines} == {("whole", "trailing", "5", ZERO)}
    values = [row["metrics"][MAIN] for row in rows if row["guidance"] == "cfg(3)"]
    assert close(lines[1][MAIN].split(" ± ")[0], statistics.fmean(values)) and floor[MAIN] == "1.25" and real[MAIN] == "-"
    assert set(report.home(results.read(tmp_path))) == {
        (Condition(run, "", LEAK if run == "leaking" else ZERO, "log_snr"), how)
        for run in ("leaking", "whole", "bright")
        for how in (TRAILING, LEADING)
    }
    assert "6 ways to train" in shown.text and "The comparison is unfinished" not in shown.text


def test_schedules_of_their_own_for_each_run_leave_no_empty_tables_or_pictures(tmp_path, monkeypatch):
    changes = {"leaking": {"weighting": "eps"}, "whole": {"model.width": 8}}  # no two runs differ in one thing alone
    make(tmp_path, **PLAN | {"settings": PLAN["settings"] | changes}, guidances=("none", "cfg(3)"), keep=guided)
    complete(tmp_path)
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    blocks = report.compose(results.read(tmp_path), "")
    shown, drawn = Page(html.page(blocks)), {block.picture for block in blocks}
    assert "sampled under 1 of 2 inference schedules" in shown.text and all(len(table) > 1 for table in shown.tables)
    assert {"heat_map_2", "brightness_1", "brightness_spreads", "guidance", "guided_images"} <= drawn
    assert not {"heat_map_3", "quality_3", "levels_3", "differences_1", "brightness_2"} & drawn  # guidances share one


def test_runs_that_differ_in_a_schedule_alone_and_share_none_are_not_paired(tmp_path, quick):
    make(tmp_path, **PLAN | {"drawn": (LEAK, ZERO), "labels": ["leaking", "whole"], "settings": {}}, keep=own)
    shown = quick(tmp_path)
    assert text.unpaired(results.read(tmp_path)) in shown.text and not tables(shown, "the first is")


@pytest.mark.parametrize("lacking", ["rows", "real"])
def test_comparisons_of_before_have_no_such_section(tmp_path, quick, lacking):
    make(tmp_path, **PLAN | ({"look": None} if lacking == "rows" else {"real": None}))
    shown = quick(tmp_path)
    assert "Brightness" not in shown.text and not tables(shown, "brightness spread") and "black" not in shown.text


def test_rows_of_before_are_in_no_number_and_counted(tmp_path, quick):
    make(tmp_path, **PLAN | {"look": lambda row: look(row) if row["run"] == "whole" else None}, keep=own)
    shown = quick(tmp_path)
    assert "24 rows of an earlier version without a description of the images" in shown.text
    assert {line["condition"] for line in tables(shown, "brightness spread")[0][2:]} == {"whole"}


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


def test_histograms_hold_the_shares_of_all_seeds(plan, monkeypatch):
    _, comparison, _ = plan
    monkeypatch.setattr(plots, "png", lambda figure: figure)
    axes = plots.distributions(comparison, report.home(comparison)).axes
    assert len(axes) == 3 * 2
    assert [axis.get_title("left") for axis in axes[:2]] == ["ddim, trailing spacing", "ddim, leading spacing"]
    data, samples = (patch.get_data().values for patch in axes[2].patches)  # "whole", trailing
    assert data.sum() == pytest.approx(1) and data[0] == pytest.approx(0.11) and data[-1] == pytest.approx(0.09)
    assert samples.sum() == pytest.approx(1) and samples[0] == pytest.approx(0.11) and samples[-1] == pytest.approx(0.10)


def test_histograms_show_something_where_a_network_was_not_sampled_so(plan):
    _, comparison, _ = plan
    cells = {place: cell for place, cell in report.home(comparison).items() if (place[0].run, place[1]) != ("bright", LEADING)}
    with Image.open(io.BytesIO(plots.distributions(comparison, cells))) as image:
        assert min(image.size) > 300 and np.asarray(image.convert("L")).std() > 5
