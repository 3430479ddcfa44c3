"""The report of comparisons made up here, with a known effect: its numbers are those of an independent computation."""

import functools
import hashlib
import io
import itertools
import json
import random
import re
import statistics
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from scipy import stats

from noisesched import __main__, schedules
from noisesched.comparison import html, plots, report, results, text
from noisesched.comparison import pairs as pairing
from noisesched.comparison.results import Condition, How, Task

MAIN, BRIGHT, RECALL = "frechet(classifier, n=256)", "brightness(n=256)", "recall(classifier, n=256)"
TABLE = "discrete(linear(beta_min=0.1), num_steps=1000)"
TOLD = ("log_snr", "timestep", "none")


HOW = ("ddim", "none", "trailing")
NOISE = (file := io.BytesIO(), Image.effect_noise((160, 20), 99).save(file, "PNG"))[0].getvalue()


def jitter(*what):
    """A number in [-1, 1] that is a function of what it belongs to."""
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:4]) / 2**31 - 1


def value(metric, label, drawn, told, translation, schedule, calls, train_seed, seed):
    """Under other schedules than linear, timesteps cost 6; being told nothing costs nothing; runs called "good" gain 3. A seed
    moves all alike, up to 9."""
    base = 300 / calls + 5 * (schedule != "linear") + 9 * jitter("seed", train_seed) + 12
    effect = 6 * (told == "timestep" and schedule != "linear") - 3 * (label == "good")
    noise = 0.4 * jitter(metric, label, drawn, told, translation, schedule, calls, train_seed, seed)
    if metric == RECALL:
        return 0.9 - (base + effect + noise) / 100
    return base + effect + noise if metric == MAIN else 0.1 * abs(noise) + 0.01


def make(
    folder,
    *,
    told=TOLD,
    drawn=("linear", TABLE),
    labels=None,
    train_seeds=(0, 1, 2),
    schedules=("linear", "cosine"),
    methods=("ddim",),
    calls=(5, 25),
    seeds=(0,),
    translations=("nearest", "raw"),
    metrics=(MAIN, BRIGHT, RECALL),
    refused=lambda row: None,
    keep=lambda row: True,
    evaluated=True,
    images=True,
    settings=None,
    made=lambda calls: calls,
    split="test",
    reference="train",
    spacings=("trailing",),
    guidances=("none",),
    look=None,
    real=None,
):
    """A folder as `compare` leaves it; returns its rows. `settings`: {label: {setting: value}} that are not those of all runs.

    `look`: what samples look like, a function of the row; `real`: the real images, {"real": .., "floor": ..}; without: not said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "previews").mkdir(exist_ok=True)
    runs, rows, keys = {}, [], []
    for drawn_index, (schedule_drawn, kind) in enumerate(itertools.product(drawn, told)):
        label = labels[drawn_index] if labels else f"{'table' if 'discrete' in schedule_drawn else 'curve'}_{kind}"
        workdirs = [str(folder / "runs" / f"{drawn_index}" / f"seed{seed}") for seed in train_seeds]
        runs[label] = {
            "drawn": schedule_drawn,
            "told": kind,
            "table": TABLE if kind == "timestep" else "",
            "workdirs": workdirs,
            "num_parameters": 163_000,
            "train_steps": 2000,
            "batch_size": 64,
            "train_seeds": list(train_seeds),
            "evaluations": dict.fromkeys(workdirs, None if evaluated else "not asked for"),
            "seconds": [100.0 + 10 * seed for seed in train_seeds],
        }
        runs[label]["config"] = configuration(runs[label], (settings or {}).get(label, {}))
        for seed in train_seeds:
            if evaluated:
                evaluate(folder / "evaluations" / label / f"seed{seed}", kind, seed, split)
        for train_seed, schedule, method, n, seed, translation, guidance, spacing in itertools.product(
            train_seeds, schedules, methods, calls, seeds, translations if kind == "timestep" else (None,), guidances, spacings
        ):
            key = f"{len(keys):08x}"
            keys.append(key)
            clamped = kind == "timestep" and schedule == "cosine" and translation != "raw"
            row = {
                "key": key,
                "run": label,
                "train_seed": train_seed,
                "workdir": workdirs[train_seeds.index(train_seed)],
                "checkpoint": 2000,
                "drawn": schedule_drawn,
                "told": kind,
                "schedule": schedule,
                "method": method,
                "spacing": spacing,
                "guidance": guidance,
                "levels": n,
                "calls": n,
                "network_calls": made(n),
                "seed": seed,
                "translation": translation,
                "outside": {"levels": 2 * clamped, "by": 2.1 * clamped, "handled": "clamped" if clamped else None},
                "num_images": 256,
                "metrics": {},
                "refused": None,
                "seconds": 1.5,
                "preview": None,
                "log_snrs": np.linspace(-9, 7, n).tolist(),
            }
            row["refused"] = refused(row)
            if not row["refused"]:
                row["metrics"] = {
                    name: value(name, label, schedule_drawn, kind, translation, schedule, n, train_seed, seed) for name in metrics
                }
                row["preview"] = f"previews/{key}.png" if images else None
                row |= {"appearance": look(row)} if look else {}
            if keep(row):
                rows.append(row)
                if row["preview"]:
                    (folder / row["preview"]).write_bytes(NOISE)
    asked = {"schedules": schedules, "metrics": [re.sub(r"\(n=.*|, n=\d+", "", name) for name in metrics], "parameters": "ema"}
    dump(folder / "config.json", {"command": "noisesched compare --config=x.py --out=here", "comparison": asked, "keys": keys})
    dump(folder / "runs.json", runs)
    dump(
        folder / "reference.json",
        {
            "floor": {name: 1.25 if name != RECALL else 0.7 for name in metrics},
            "about": {"split": reference, "n": 256, "extractors": {"classifier": {"accuracy": 0.98}}},
        }
        | ({"appearance": real} if real else {}),
    )
    (folder / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def configuration(run, changes):
    """A run's configuration, with settings such as {"model.width": 8} changed."""
    config = {
        "seed": 0,
        "schedule": run["drawn"],
        "weighting": "v",
        "data": {"name": "digits", "split": "train", "image_size": 8, "channels": 1, "num_workers": 0},
        "conditioning": {"kind": run["told"], "table": run["table"], "translation": "nearest"},
        "model": {"prediction": "v", "width": 16, "multipliers": [1, 2, 2]},
        "training": {"num_steps": run["train_steps"], "batch_size": run["batch_size"], "log_every": 100},
        "preview": {"every": 0, "schedule": run["drawn"]},
    }
    for name, value in changes.items():
        *groups, last = name.split(".")
        functools.reduce(dict.__getitem__, groups, config)[last] = value
    return config


def evaluate(folder, told, seed, split):
    log_snr = np.linspace(-12, 10, 23)
    v = 0.1 + 0.6 / np.cosh(log_snr / 4) + 0.05 * (told == "none") + 0.01 * jitter(told, seed)
    folder.mkdir(parents=True)
    dump(
        folder / "evaluation.json",
        {
            "checkpoint": 2000,
            "split": split,
            "num_images": 297,
            "noises": 16,
            "request": {"seed": 0},
            "bits_per_dim": {
                "value": 2.5 + 0.25 * seed,
                "std_error": 0.01 * (1 + seed),
                "diffusion": 2.0 + 0.25 * seed,
                "std_error_images": 0.05,
                "untrained": {"share": 0.25},
            },
            "profile": {
                "log_snr": log_snr.tolist(),
                "v": v.tolist(),
                "eps": (v / (1 + np.exp(-log_snr))).tolist(),
                "bits_per_dim": 2.02 + 0.25 * seed,
                "bits_per_dim_std_error": 0.02,
            },
            "last_level": {"log_snr": -5.5, "eps": 0.01, "v": 0.3, "x": 0.25 + 0.01 * seed, "constant_x": 0.5, "gain": 0.25},
            "zero_snr": {
                "spread": None,
                "brightness_spread": None,
                "off_mean": None,
                "data_std": 0.5,
                "reason": "it predicts eps",
            },
        },
    )


def dump(path, content):
    path.write_text(json.dumps(content))


# -- reading what was written


class Page(HTMLParser):
    """The tables [[cells of a row]] of a page, its text, tags and the addresses that it would load or lead to."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.tags, self.addresses, self.cell, self.style = [], "", [], [], False, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.cell |= tag in ("td", "th")
        self.style |= tag == "style"

    def handle_endtag(self, tag):
        self.cell &= tag not in ("td", "th")
        self.style &= tag != "style"

    def handle_data(self, text):
        if self.cell:
            self.tables[-1][-1][-1] += text
        elif not self.style:
            self.text += text

    def table(self, *header):
        """The rows of the one table whose header has all these columns, as dictionaries."""
        (found,) = [table for table in self.tables if set(header) <= set(table[0])]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def read(folder):
    return Page((folder / "report" / "report.html").read_text())


def cell(rows, **where):
    """{training seed: mean of the main number over sampling seeds}, independently of the package."""
    found = [row for row in rows if all(row[name] == wanted for name, wanted in where.items()) and row["metrics"]]
    return {
        seed: statistics.fmean(row["metrics"][MAIN] for row in found if row["train_seed"] == seed)
        for seed in sorted({row["train_seed"] for row in found})
    }


def close(text, expected):
    """Whether a number as it is printed is the expected one, rounded to the digits that it has."""
    text = text.replace(",", "")
    return abs(float(text) - expected) <= 0.5001 * 10.0 ** -len(text.partition(".")[2])


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(folder, rows, page) of a finished comparison, whose report is written."""
    folder = tmp_path_factory.mktemp("full")
    rows = make(folder)
    report.run(folder, say=lambda text: None)
    return folder, rows, read(folder)


DRAWINGS = ("heat_maps", "against_calls", "difference_maps", "profiles", "levels", "strips", "distributions", "guidance_maps")


@pytest.fixture
def quick(monkeypatch):
    """`quick(folder)`: the page of a comparison's report without its pictures; `draw`: they are drawn, but not rendered."""

    def page(folder, draw=False):
        monkeypatch.setattr(plots, "png", lambda figure: b"")
        for name in () if draw else DRAWINGS:
            monkeypatch.setattr(plots, name, lambda *args: b"")
        return Page(html.page(report.compose(results.read(folder), "")))

    return page


def of(table, *columns):
    """The rows of a table by some of their columns."""
    return {tuple(line[name] for name in columns): line for line in table}


def sides(line, rows, **where):
    """{training seed: main number} of both sides of a line about a difference."""
    for side in (line["first"], line["second"]):
        run, _, translation = side.partition(", ")
        yield cell(rows, run=run, translation=translation or None, **where)


LEAN = {"images": False, "evaluated": False}
MEAN, INTERVAL, VERDICT = "difference ± standard error", "95 % interval", "the first is"


# -- the numbers


def test_every_cell_is_the_mean_and_spread_of_its_rows(full):
    _, rows, page = full
    table = page.table("condition", "notes")
    assert len(table) == (4 + 4) * 2 * 2  # three runs and one more translation, twice; schedules; calls
    for line in table:
        run, _, translation = line["condition"].partition(", ")
        values = cell(rows, run=run, translation=translation or None, schedule=line["schedule"], calls=int(line["calls"]))
        mean, std = line[MAIN].split(" ± ")
        assert close(mean, statistics.fmean(values.values())) and close(std, statistics.stdev(values.values()))
        assert line["rows"] == "3"
        assert (line["notes"] == "3 clamped") == (translation == "nearest" and line["schedule"] == "cosine")


def test_every_verdict_is_that_of_a_paired_t_test(full):
    _, rows, page = full
    table = page.table("first", "second", "schedule", VERDICT)
    assert len(table) == 2 * 5 * 2 * 2  # log_snr with two translations and none, each translation with none; twice; the cells
    for line in table:
        first, second = sides(line, rows, schedule=line["schedule"], calls=int(line["calls"]))
        found = stats.ttest_rel(list(first.values()), list(second.values()))
        mean = statistics.fmean(first[seed] - second[seed] for seed in first)
        assert close(line[MEAN].split(" ± ")[0], mean)
        for shown, limit in zip(line[INTERVAL].split(" to "), found.confidence_interval(0.95), strict=True):
            assert close(shown, limit)
        assert line[VERDICT] == ("no difference seen" if found.pvalue > 0.05 else "better" if mean < 0 else "worse")


def test_verdicts_by_every_number_are_counts_of_paired_t_tests(full):
    _, rows, page = full
    for line in page.table("first", "second", RECALL):
        counts = [0, 0, 0]
        for schedule, calls in itertools.product(("linear", "cosine"), (5, 25)):
            values = [
                [
                    row["metrics"][RECALL]
                    for row in rows
                    if (row["run"], row["schedule"], row["calls"], row["translation"] or "") == at
                ]
                for side in (line["first"], line["second"])
                for run, _, translation in [side.partition(", ")]
                for at in [(run, schedule, calls, translation)]
            ]
            found = stats.ttest_rel(*values)
            counts[2 if found.pvalue > 0.05 else 0 if found.statistic > 0 else 1] += 1  # of recall, more is better
        assert line[RECALL] == " / ".join(map(str, counts))


def test_the_known_effect_is_found_where_it_is(full):
    found = of(full[2].table("first told", "second told"), "first told", "second told", "schedules")
    mean = lambda line: float(line[MEAN].split(" ± ")[0])
    for translation in ("nearest", "raw"):
        others = found["log_snr", f"timestep ({translation})", "others"]
        assert others[VERDICT] == "better" and mean(others) == pytest.approx(-6, abs=0.5)
        assert abs(mean(found["log_snr", f"timestep ({translation})", "of training"])) < 0.5
        assert found[f"timestep ({translation})", "none", "others"][VERDICT] == "worse"
    assert abs(mean(found["log_snr", "none", "others"])) < 0.5


def test_an_average_is_over_both_ways_of_drawing_and_all_calls(full):
    _, rows, page = full
    by_seed = {seed: [] for seed in (0, 1, 2)}
    for name, calls, seed in itertools.product(("curve", "table"), (5, 25), by_seed):
        a, b = (
            cell(rows, run=f"{name}_{kind}", translation=translation, schedule="cosine", calls=calls)[seed]
            for kind, translation in (("log_snr", None), ("timestep", "raw"))
        )
        by_seed[seed].append(a - b)
    expected = stats.ttest_1samp([statistics.fmean(values) for values in by_seed.values()], 0).confidence_interval(0.95)
    line = of(page.table("first told", "second told"), "first told", "second told", "schedules")[
        "log_snr", "timestep (raw)", "others"
    ]
    assert all(close(shown, limit) for shown, limit in zip(line[INTERVAL].split(" to "), expected, strict=True))
    assert line["cells"] == "4 of 4" and line["seeds"] == "3"


def test_the_numbers_of_the_abstract_are_those_of_the_rows_and_tables(full):
    folder, rows, page = full
    abstract = re.search("(?s)<blockquote>(.*?)</blockquote>", (folder / "report" / "report.html").read_text())[1]
    names = ("run", "translation", "schedule")
    means = {
        key: statistics.fmean(cell(rows, calls=25, **dict(zip(names, key, strict=True))).values())
        for key in {tuple(row[name] for name in names) for row in rows}
    }
    ends = re.search(r"from (\S+) ± \S+ \((.*?) under (\w+)\) to (\S+) ± \S+ \((.*?) under (\w+)\)", abstract).groups()
    for (mean, name, schedule), key in zip(
        (ends[:3], ends[3:]), (min(means, key=means.get), max(means, key=means.get)), strict=True
    ):
        assert close(mean, means[key]) and (name, schedule) == (", ".join(filter(None, key[:2])), key[2])
    assert f"{len(rows)} of {len(rows)} rows" in abstract and abstract.count("<p>") <= 10
    told = [line for line in page.table("first told", "second told") if line["first told"] == "log_snr"]
    assert len(told) == 6 and all(line[MEAN] in abstract for line in told)


def test_seeds_that_move_all_runs_alike_do_not_hide_a_difference(full):
    """The spread over seeds is larger than the effect, yet the paired difference is seen."""
    comparison = results.read(full[0])
    pairs, task = pairing.pairs(comparison), Task("cosine", *HOW, 25)
    (number,) = [
        n for n, pair in enumerate(pairs) if (str(pair.first), str(pair.second)) == ("curve_log_snr", "curve_timestep, raw")
    ]
    found = pairing.judged(pairing.differences(comparison, pairs, MAIN), MAIN).loc[(number, *task)]
    assert comparison.summary(MAIN)[pairs[number].first, task].std > 4 * found["error"] and found["verdict"] == "better"


@pytest.mark.parametrize(
    "values, low, high",
    [
        ([-1.0, -1.1, -0.9], "better", "worse"),
        ([1.0, 1.1, 0.9], "worse", "better"),
        ([5.0], "one seed", "one seed"),
        ([0.0, 0.0], "no difference seen", "no difference seen"),
        ([-2.0, -2.0], "better", "worse"),
        ([-1.0, 1.5], "no difference seen", "no difference seen"),
    ],
)
def test_what_is_better_follows_the_metric(values, low, high):
    found = [pairing.judged(pd.DataFrame([values]), name).iloc[0] for name in (MAIN, BRIGHT, RECALL)]
    assert [row["verdict"] for row in found] == [low, low, high]
    if len(set(values)) > 1:
        limits = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found[0]["low"], found[0]["high"]) == pytest.approx(tuple(limits))


def test_a_difference_of_nothing_is_told_as_such(tmp_path, quick):
    rows = make(tmp_path, told=("log_snr", "none"), drawn=("linear",), calls=(5,), **LEAN)
    for row in rows:
        row["metrics"] = dict.fromkeys(row["metrics"], 2.5)
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = quick(tmp_path)
    assert "Told log_snr rather than none: exactly 0 under" in page.text
    assert {(line[MEAN], line[INTERVAL], line[VERDICT]) for line in page.table("first", "second", VERDICT)} == {
        ("0 ± 0", "0 to 0", "no difference seen")
    }


def test_sampling_seeds_are_averaged_and_paired_before_anything_else(tmp_path):
    keep = lambda row: not (row["told"] == "none" and row["train_seed"] == 1 and row["seed"] == 1)
    rows = make(tmp_path, seeds=(0, 1), drawn=("linear",), keep=keep, **LEAN)
    comparison = results.read(tmp_path)
    a, b = (Condition(f"curve_{kind}", "", "linear", kind) for kind in ("log_snr", "none"))
    task, where = Task("cosine", *HOW, 5), {"schedule": "cosine", "calls": 5}
    expected = statistics.fmean(cell(rows, run="curve_log_snr", **where).values())
    assert comparison.summary(MAIN)[a, task][::2] == (pytest.approx(expected), 3)
    pairs = pairing.pairs(comparison)
    (number,) = [n for n, pair in enumerate(pairs) if pair[:2] == (a, b)]
    found = pairing.differences(comparison, pairs, MAIN).loc[(number, *task)]
    only = [cell(rows, run=f"curve_{kind}", train_seed=1, seed=0, **where)[1] for kind in ("log_snr", "none")]
    assert found[1] == pytest.approx(only[0] - only[1])  # the sampling seed that both have
    both = [cell(rows, run=f"curve_{kind}", **where)[2] for kind in ("log_snr", "none")]
    assert found[2] == pytest.approx(both[0] - both[1])


def test_an_average_leaves_out_cells_that_lack_a_seed():
    nan = float("nan")
    mean, count = pairing.averaged(pd.DataFrame({0: [1.0, 5.0, 9.0], 1: [2.0, nan, 6.0], 2: [nan, nan, nan]}))
    assert count == 2 and mean.iloc[0].tolist() == [5.0, 4.0]
    assert pairing.averaged(pd.DataFrame({0: [1.0, nan], 1: [nan, 2.0]})) == (None, 0)


@pytest.mark.parametrize(
    "drawn, schedule, same",
    [
        ("linear", "linear(beta_min=0.1)", True),
        ("discrete(linear)", "linear", True),
        ("discrete(linear(beta_min=0.1), num_steps=50)", "linear", True),
        ("discrete(cosine)", "cosine", True),
        ("linear", "scaled_linear", False),
        ("linear", "zero_terminal(linear)", False),
        ("cosine", "shifted(cosine, by=-0.5)", False),
        (TABLE, "linear(beta_max=15)", False),
    ],
)
def test_the_schedule_of_training_is_known_also_as_a_table(drawn, schedule, same):
    assert results.own(drawn, schedule) == same


def test_numbers_have_three_digits_and_a_mean_those_that_its_spread_allows():
    numbers = {0.0: "0", 4.5678: "4.57", 45.678: "45.7", 456.78: "457", 45678.9: "45,679", -0.012345: "-0.0123"}
    numbers |= {1.2e-7: "1.2e-07", 3.2e7: "3.2e+07"}
    assert {value: text.number(value) for value in numbers} == numbers
    means = {(30.123, 1.5678): "30.1 ± 1.6", (-5.98765, 0.00812): "-5.988 ± 0.008", (-0.00216, 0.01977): "-0.002 ± 0.020"}
    means |= {(110, 10): "110 ± 10", (12345.6, 78.9): "12,346 ± 79", (4.5678, float("nan")): "4.57", (2.0, 0.0): "2.00 ± 0"}
    means |= {(1e-7, 1e-8): "1.0e-07 ± 1.0e-08", (float("nan"), float("nan")): "-"}
    assert {given: text.plus_minus(*given) for given in means} == means


def test_evaluations_are_averaged_over_seeds_and_have_their_errors(full):
    page = full[2]
    line = page.table("gain over the mean")[0]
    assert line["last log-SNR of training"] == "-5.5" and line["x error of the data's mean"] == "0.500 ± 0"
    assert (
        line["x error"] == "0.260 ± 0.010"
        and line["at zero SNR: answers vary by"] == "-"
        and line["standard deviation of the data"] == "0.500 ± 0"
    )
    line = page.table("bits per dimension")[0]
    assert line["bits per dimension"] == "2.75 ± 0.25" and line["share of bits from levels never drawn"] == "25.0%"
    error = np.sqrt((0.01**2 + 0.02**2 + 0.03**2) / 3)
    assert close(line["Monte-Carlo error"], error) and line["diffusion term"] == f"2.250 ± {error:.3f}"
    assert line["diffusion term by the profile"] == "2.270 ± 0.020"
    assert f"{0.02 / np.hypot(0.01, 0.02):.1f} standard errors" in page.text
    assert f"{error:.4f} " in page.text and "0.0500 " in page.text


def test_costs_are_sums_of_the_rows(full):
    _, rows, page = full
    *lines, total = page.table("network calls x images")
    assert int(total["network calls x images"].replace(",", "")) == sum(row["network_calls"] * 256 for row in rows)
    assert lines[0]["training, seconds each"] == "110 ± 10" and close(total["training, seconds each"], 6 * 330)


# -- the two files


def test_the_page_needs_nothing_but_itself(full):
    folder, _, page = full
    content = (folder / "report" / "report.html").read_text()
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "http" not in re.sub(r"base64,[^\"]*", "", content)
    anchors = set(re.findall(r'id="([^"]*)"', content))
    assert {address[1:] for address in page.addresses if address.startswith("#")} == anchors and len(anchors) > 8


def test_every_picture_is_in_the_markdown_folder_and_shows_something(full):
    folder = full[0] / "report"
    named = re.findall(r"\]\((report_pictures/[a-z0-9_]+\.png)\)", (folder / "report.md").read_text())
    assert sorted(named) == sorted(f"report_pictures/{path.name}" for path in (folder / "report_pictures").iterdir())
    kinds = {re.match(r"\w+?(?=_\d|\.)", name.partition("/")[2])[0] for name in named}
    assert kinds == {"heat_map", "quality", "differences", "profiles", "levels", "images"}
    assert full[2].tags.count("img") == len(named)
    for name in named:
        with Image.open(folder / name) as image:
            assert min(image.size) > 300 and np.asarray(image.convert("L")).std() > 5
    assert not list(folder.rglob("*.tmp"))


def test_markdown_and_page_have_the_same_tables(full):
    written = (full[0] / "report" / "report.md").read_text()
    lines = [line for line in written.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert len(lines) == sum(len(table) for table in full[2].tables)


def test_the_same_comparison_gives_the_same_bytes(tmp_path, monkeypatch):
    make(tmp_path, told=("log_snr",), drawn=("linear",), calls=(5,))
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    pages = [report.run(tmp_path, say=lambda text: None).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_a_comparison_of_earlier_code_is_read(monkeypatch, tmp_path):
    folder = ROOT / "tests" / "data" / "before_the_house" / "compare"
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    report.run(folder, tmp_path, say=lambda text: None)
    rows = [json.loads(line) for line in (folder / "compare.jsonl").read_text().splitlines()]
    page = Page((tmp_path / "report.html").read_text())
    table = page.table("condition", "notes")
    assert len(table) == len(rows) == 4
    found = of(table, "schedule", "calls")
    for row in rows:
        assert all(close(found[row["schedule"], str(row["calls"])][name], value) for name, value in row["metrics"].items())
    assert "Brightness" in page.text and page.table("bits per dimension")[0]["seeds"] == "1"


# -- comparisons that are not complete, or not like the study


def test_an_unfinished_comparison_says_so_and_a_torn_line_is_left_out(tmp_path, quick):
    rows = make(tmp_path, keep=lambda row: row["train_seed"] < 2 or row["calls"] == 5, **LEAN)
    with open(tmp_path / "compare.jsonl", "a") as file:
        file.write('{"key": "0000')
    page = quick(tmp_path, draw=True)
    assert len(rows) == 80 and "80 of 96 rows. The comparison is unfinished." in page.text
    assert "16 of 96 rows are not there yet" in page.text and "No run has been evaluated: not asked for." in page.text
    assert {line["rows"] for line in page.table("condition", "notes")} == {"2", "3"}


def test_runs_with_fewer_seeds_are_not_said_to_have_as_many(tmp_path):
    make(tmp_path, keep=lambda row: row["train_seed"] == 0 or row["told"] == "none", **LEAN)
    assert "6 ways of training, 1 to 3 seeds" in text.scope(results.read(tmp_path))


def test_one_seed_gives_no_error_and_no_verdict(tmp_path, quick):
    make(tmp_path, train_seeds=(7,), **LEAN)
    page = quick(tmp_path, draw=True)
    table = page.table("first", "second", "schedule", VERDICT)
    assert table and all(line[VERDICT] == "one seed" and line[INTERVAL] == "-" for line in table)
    assert not any(" ± " in value for line in table + page.table("condition", "notes") for value in line.values())
    assert "better in" not in page.text and "nan" not in page.text


def test_runs_that_differ_in_two_things_are_not_paired(tmp_path, quick):
    changes = {"labels": ["a", "b"], "settings": {"b": {"model.width": 8}}, "metrics": (BRIGHT,), "calls": (5,)}
    make(tmp_path, told=("log_snr", "none"), drawn=("linear",), **changes, **LEAN)
    page = quick(tmp_path)
    assert pairing.pairs(results.read(tmp_path)) == () and not any(VERDICT in table[0] for table in page.tables)
    assert {line["run"]: line["differs in"] for line in page.table("differs in")} == {"a": "model.width 16", "b": "model.width 8"}
    assert "networks that differ in model.width" in page.text


WEIGHTING = {
    "told": ("log_snr",),
    "drawn": ("linear",) * 3,
    "labels": ["uniform", "min_snr", "good"],
    "settings": {"uniform": {"weighting": "eps"}, "min_snr": {"weighting": "min_snr(gamma=5)"}},
}


def test_runs_that_differ_in_another_setting_are_paired_by_it(tmp_path, quick):
    rows = make(tmp_path, **WEIGHTING, **LEAN)
    page = quick(tmp_path, draw=True)
    found = of(page.table("first has", "second has"), "first has", "second has", "schedules")
    assert {key[:2] for key in found} == {
        ("weighting min_snr(gamma=5)", "weighting eps"),
        ("weighting v", "weighting eps"),
        ("weighting v", "weighting min_snr(gamma=5)"),
    }
    by_seed = {
        seed: statistics.fmean(
            a[seed] - b[seed]
            for n in (5, 25)
            for a, b in [[cell(rows, run=run, schedule="cosine", calls=n) for run in ("good", "uniform")]]
        )
        for seed in (0, 1, 2)
    }
    line = found["weighting v", "weighting eps", "others"]
    assert close(line[MEAN].split(" ± ")[0], statistics.fmean(by_seed.values())) and line[VERDICT] == "better"
    expected = stats.ttest_1samp(list(by_seed.values()), 0).confidence_interval(0.95)
    assert all(close(shown, limit) for shown, limit in zip(line[INTERVAL].split(" to "), expected, strict=True))
    assert (
        f"With weighting v rather than eps: {line[MEAN]}" in page.text and "told" not in page.text.lower().split("likelihood")[0]
    )


def test_what_leaves_the_network_as_it_is_does_not_part_runs(tmp_path):
    make(tmp_path / "a", **LEAN)
    make(tmp_path / "b", **LEAN, settings={"curve_none": {"training.log_every": 7, "preview.every": 500, "data.num_workers": 4}})
    pairs = [pairing.pairs(results.read(tmp_path / name)) for name in "ab"]
    assert pairs[0] == pairs[1] and len(pairs[0]) == 10 and {pair.factor for pair in pairs[0]} == {"conditioning"}
    assert all(pair.first.drawn == pair.second.drawn for pair in pairs[0])


def test_two_tables_of_timesteps_are_told_apart(tmp_path):
    other = "discrete(linear, num_steps=50)"
    runs = {"labels": ["long", "short"], "settings": {"short": {"conditioning.table": other}}}
    make(tmp_path, told=("timestep",) * 2, drawn=("linear",), translations=("nearest", "raw"), **runs, **LEAN)
    pairs = pairing.pairs(results.read(tmp_path))
    assert [tuple(map(str, pair[:2])) for pair in pairs] == [(f"long, {how}", f"short, {how}") for how in ("nearest", "raw")]
    assert pairs[0].values == (f"timestep (table {TABLE}, nearest)", f"timestep (table {other}, nearest)")


def test_schedules_of_both_are_those_of_training_where_runs_differ_in_them(tmp_path, quick):
    where = {"schedules": ("linear", "cosine", "flow"), "calls": (5,)}
    make(tmp_path, told=("log_snr",), drawn=("linear", "cosine"), labels=["a", "b"], **where, **LEAN)
    lines = quick(tmp_path).table("first has", "second has")
    assert [(line["schedules"], line["cells"]) for line in lines] == [("of training", "2 of 2"), ("others", "1 of 1")]
    assert lines[0]["first has"] == "training schedule cosine"


def test_guidance_is_a_column_of_its_own(tmp_path, quick):
    rows = make(tmp_path, told=("log_snr",), drawn=("linear",), calls=(5,), guidances=("none", "cfg(3)"), **LEAN)
    for row in rows:
        row["metrics"][MAIN] += 100 * (row["guidance"] != "none")
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = quick(tmp_path)
    table = page.table("condition", "guidance", "notes")
    assert [line["guidance"] for line in table].count("cfg(3)") == 2 == len(table) / 2 and "method" not in table[0]
    for line in table:
        values = cell(rows, guidance=line["guidance"], schedule=line["schedule"])
        assert close(line[MAIN].split(" ± ")[0], statistics.fmean(values.values()))


# -- of which images


@pytest.mark.parametrize(
    "split, trained, held",
    [
        ("test", "train", "none"),
        ("train", "train", "all"),
        ("train[:10%]", "train", "all"),
        ("train[90%:]", "train[:90%]", "none"),
        ("train[-10%:]", "train[:90%]", "none"),
        ("train[80%:]", "train[:90%]", "some"),
        ("train", "train[:90%]", "some"),
        ("train[100:200]", "train[:100]", "none"),
        ("train[100:200]", "train[:90%]", "maybe"),
        ("train[-9:]", "train[:-9]", "none"),
        ("train+test", "train", "some"),
        ("test+validation", "train", "none"),
        ("train", "all", "maybe"),
        ("all", "train", "maybe"),
        ("train[1shard:]", "train[:1shard]", "maybe"),
        ("train [ : 90% ]", "train[0:90%]", "all"),
        ("", "train", "none"),
        ("train[:5%]+test", "train[50%:]", "none"),
        ("train[:]", "train", "all"),
    ],
)
def test_splits_are_disjoint_only_where_they_are_seen_to_be(split, trained, held):
    assert text.overlap(split, trained) == held


def test_splits_overlap_as_sets_of_images_do():
    """Of 100 images, in percent: what is told for two slices holds for the images in them."""
    draw = random.Random(0)
    for _ in range(300):
        (a, b), (c, d) = (sorted(draw.sample(range(0, 101, 10), 2)) for _ in range(2))
        share = len(set(range(a, b)) & set(range(c, d))) / (b - a)
        assert text.overlap(f"train[{a}%:{b}%]", f"train[{c}%:{d}%]") == ("all" if share == 1 else "some" if share else "none")


@pytest.mark.parametrize("split", ["test", "train", "train[50%:]"])
def test_the_report_says_which_images_the_bits_are_of(tmp_path, quick, split):
    parts = {"curve_log_snr": {"data.split": "train[:40%]"}} if "[" in split else None
    make(tmp_path, told=("log_snr", "none"), drawn=("linear",), images=False, calls=(5,), split=split, settings=parts)
    said = {
        "test": "which the networks were not trained on",
        "train": "which the networks were trained on",
        "train[50%:]": "which those of curve_none were trained on and which those of curve_log_snr were not trained on",
    }[split]
    assert quick(tmp_path).text.count(f"297 images of '{split}', {said}") >= 3  # under the picture, the tables, in the limits


def test_copies_of_what_was_trained_on_are_warned_of_where_they_would_score_well(tmp_path):
    said = {}
    for reference in ("train", "test", "train+test"):
        make(tmp_path / reference, reference=reference, told=("log_snr",), drawn=("linear",), calls=(5,), **LEAN)
        said[reference] = [*text.real(results.read(tmp_path / reference))]
    assert said["test"] == [] and len(said["train"]) == len(said["train+test"]) == 1


def test_evaluations_that_are_not_there_have_their_reason(tmp_path, quick):
    make(tmp_path, told=("log_snr",), drawn=("linear",), images=False, calls=(5,))
    runs = json.loads((tmp_path / "runs.json").read_text())
    runs["curve_log_snr"]["evaluations"][runs["curve_log_snr"]["workdirs"][1]] = "estimates are not finite"
    dump(tmp_path / "runs.json", runs)
    page = quick(tmp_path)
    assert "Not evaluated: curve_log_snr, seed 1 (estimates are not finite)." in page.text
    assert page.table("bits per dimension")[0]["seeds"] == "2"


# -- levels and calls as they were


def test_levels_are_those_that_were_sampled_whatever_has_become_of_a_file(tmp_path, quick):
    gone = "piecewise('gone.txt')"
    rows = make(tmp_path, schedules=("linear", gone), told=("log_snr",), drawn=("linear",), **LEAN)
    comparison = results.read(tmp_path)
    (condition,) = comparison.conditions
    assert comparison.levels((condition, Task(gone, *HOW, 5))).tolist() == [-9, -5, -1, 3, 7]
    assert not results.own("linear", gone) and results.own(gone, "piecewise( 'gone.txt' )")
    assert not results.own("cosine", f"shifted({gone}, by=1)")
    quick(tmp_path, draw=True)
    older = [{name: value for name, value in row.items() if name != "log_snrs"} for row in rows]
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in older))
    found = results.read(tmp_path).levels((condition, Task("linear", *HOW, 5)))
    assert found == pytest.approx(np.asarray(schedules.levels("linear", 5)))


def test_a_budget_is_not_said_to_be_the_calls_that_were_made(tmp_path, quick):
    make(tmp_path, methods=("heun",), drawn=("linear",), calls=(6, 10), made=lambda calls: calls - 1, **LEAN)
    page = quick(tmp_path)
    assert "At 9 network calls (at most 10), frechet" in page.text and "with at most 6 and 10 network calls" in page.text
    assert {line["calls"] for line in page.table("condition", "notes")} == {"5 (at most 6)", "9 (at most 10)"}


def test_methods_that_make_other_numbers_of_calls_are_said_to(tmp_path):
    rows = make(tmp_path, methods=("ddim", "heun"), drawn=("linear",), calls=(10,), **LEAN)
    for row in rows:
        row["network_calls"] -= row["method"] == "heun"
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = results.read(tmp_path)
    assert text.budget(comparison, 10) == "9 and 10 network calls (at most 10)"
    assert text.budget(comparison, 10, How("ddim", "none", "trailing")) == "10 network calls"
    assert text.budget(comparison, 10, How("heun", "none", "trailing")) == "9 network calls (at most 10)"


def test_a_single_cell_is_neither_best_nor_worst(tmp_path, quick):
    make(tmp_path, told=("log_snr",), drawn=("linear",), schedules=("cosine",), calls=(1,), train_seeds=(0,), **LEAN)
    page = quick(tmp_path, draw=True)
    assert [line[""] for line in page.table("calls", "")] == ["only"]
    assert not re.search(r"\b1 \w+s\b", page.text)


def test_rows_of_some_budgets_alone_are_no_fault(tmp_path, quick):
    make(tmp_path, drawn=("linear",), keep=lambda row: row["schedule"] == "linear" or row["calls"] == 5, **LEAN)
    assert "12 of 48 rows are not there yet" in quick(tmp_path, draw=True).text


def test_infinite_levels_are_said_to_be_infinite(tmp_path):
    rows = make(tmp_path, **LEAN)
    clamped = [row for row in rows if row["outside"]["handled"]]
    clamped[0]["outside"]["by"] = clamped[1]["outside"]["by"] = "inf"
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (said,) = text.levels(results.read(tmp_path))
    assert said.startswith("12 rows") and "-inf is among them in 2 rows, in the others up to 2.1" in said


HOSTILE = ['<script>alert("1")</script>', "a|b *c* $d$ `e` [f](http://x)", "_under $x$ & </details>"]


def test_hostile_labels_are_text(tmp_path, monkeypatch):
    attack = "<img src=http://x onerror=1>"
    refused = lambda row: attack if row["calls"] == 5 and row["told"] == "none" else None
    make(tmp_path, labels=HOSTILE, drawn=("linear",), refused=refused, **LEAN)
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    report.run(tmp_path, say=lambda text: None)
    page = read(tmp_path)
    assert "script" not in page.tags and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {line["run"] for line in page.table("levels drawn in training")} == set(HOSTILE) and attack in page.text
    written = (tmp_path / "report" / "report.md").read_text()
    assert "<script" not in written and "<img" not in written and not re.search(r"(?<!\\)\]\(http", written)
    assert written.count("<details>") == written.count("</details>")


def test_what_was_refused_is_in_no_mean(tmp_path, quick):
    rows = make(tmp_path, refused=lambda row: "too noisy" if row["schedule"] == "cosine" and row["train_seed"] else None, **LEAN)
    kept = [line for line in quick(tmp_path, draw=True).table("condition", "notes") if line["schedule"] == "cosine"]
    assert kept and all("2 refused" in line["notes"] and "±" not in line[MAIN] for line in kept)
    run, _, translation = kept[0]["condition"].partition(", ")
    only = cell(rows, run=run, translation=translation or None, schedule="cosine", calls=int(kept[0]["calls"]))
    assert list(only) == [0] and close(kept[0][MAIN], only[0])


def test_several_methods_are_kept_apart(tmp_path, quick):
    make(tmp_path, methods=("ddim", "heun"), drawn=("linear",), calls=(5,), **LEAN)
    page = quick(tmp_path, draw=True)
    assert {line["method"] for line in page.table("condition", "notes")} == {"ddim", "heun"}
    assert page.tags.count("img") == 2 * 5  # each has its heat map, quality, differences, levels and images


def test_a_metric_that_is_better_when_higher_can_be_the_main_one(tmp_path, quick):
    make(tmp_path, metrics=(RECALL, MAIN), **LEAN)
    page = quick(tmp_path)
    line = of(page.table("first told"), "first told", "second told", "schedules")["log_snr", "timestep (raw)", "others"]
    assert line[VERDICT] == "better" and float(line[MEAN].split(" ± ")[0]) == pytest.approx(0.06, abs=0.005)
    best, worst = (float(line[RECALL].split(" ± ")[0]) for line in page.table("calls", "", "condition")[:2])
    assert best > worst


def test_rows_of_earlier_requests_are_left_out(tmp_path, quick):
    make(tmp_path, drawn=("linear",), **LEAN)
    config = json.loads((tmp_path / "config.json").read_text())
    dump(tmp_path / "config.json", config | {"keys": config["keys"][:-2]})
    page = quick(tmp_path)
    assert "46 of 46 rows" in page.text and "2 rows of earlier requests" in page.text


def test_a_row_made_again_stands_for_the_older_one_and_infinite_numbers_are_in_no_mean(tmp_path):
    rows = make(tmp_path, **LEAN)
    again, broken = (
        {**row, "metrics": dict.fromkeys(row["metrics"], value)} for row, value in zip(rows, (1e3, "inf"), strict=False)
    )
    with open(tmp_path / "compare.jsonl", "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in (again, broken)))
    comparison = results.read(tmp_path)
    assert len(comparison.frame) == len(rows) and comparison.frame.set_index("key")[MAIN][again["key"]] == 1e3
    counts = [summary.n for summary in comparison.summary(MAIN).values()]
    assert sorted(set(counts)) == [2, 3] and counts.count(2) == 1 and comparison.frame["strange"].sum() == 3


def test_a_main_number_that_is_nowhere_finite_leaves_the_others(tmp_path, quick):
    rows = make(tmp_path, drawn=("linear",), calls=(5,), **LEAN)
    for row in rows:
        row["metrics"][MAIN] = "inf"
    (tmp_path / "compare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = quick(tmp_path, draw=True)
    assert {line[MAIN] for line in page.table("condition", "notes")} == {"-"} and "24 numbers infinite" in page.text
    assert all("±" in line[RECALL] for line in page.table("condition", "notes"))


def test_seeds_that_were_evaluated_at_other_levels_have_lines_of_their_own(tmp_path, monkeypatch):
    make(tmp_path, told=("log_snr",), drawn=("linear",), calls=(5,), images=False)
    path = tmp_path / "evaluations" / "curve_log_snr" / "seed1" / "evaluation.json"
    damaged(path, "profile", value=json.loads(path.read_text())["profile"] | {"log_snr": [0, 1], "v": [1, 2], "eps": [3, 4]})
    monkeypatch.setattr(plots, "png", lambda figure: figure)
    lines = plots.profiles(results.read(tmp_path)).axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [23, 2] and lines[1].get_ydata().tolist() == [1, 2]
    seeds = [json.loads((path.parent.parent / f"seed{n}" / path.name).read_text())["profile"]["v"] for n in (0, 2)]
    assert lines[0].get_ydata() == pytest.approx(np.mean(seeds, axis=0))


# -- mistakes


@pytest.mark.parametrize("name", ["config.json", "runs.json", "reference.json", "compare.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    make(tmp_path, **LEAN)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^[^\n]*{name} is missing: give the --compare=DIR[^\n]*$"):
        results.read(tmp_path)


def damaged(path, *keys, value):
    """A JSON file (or the first line of one) with the entry at `keys` changed, or removed for `value` None."""
    first, *rest = path.read_text().split("\n")
    inner = content = json.loads(first)
    for key in keys[:-1]:
        inner = inner[key]
    inner.pop(keys[-1]) if value is None else inner.update({keys[-1]: value})
    path.write_text("\n".join([json.dumps(content), *rest]))


@pytest.mark.parametrize(
    "name, keys, value, said",
    [
        ("compare.jsonl", ("metrics",), None, "line 1 is damaged: it has no 'metrics'"),
        ("compare.jsonl", ("calls",), "5", "line 1 is damaged: 'calls' cannot be '5'"),
        ("compare.jsonl", ("calls",), True, "line 1 is damaged: 'calls' cannot be True"),
        ("compare.jsonl", ("metrics", MAIN), "high", "must be a number; got 'high'"),
        ("compare.jsonl", ("metrics", "beauty(n=256)"), 1.0, "unknown metric 'beauty'"),
        ("compare.jsonl", ("run",), "other", "lacks the run 'other' of compare.jsonl"),
        ("compare.jsonl", ("calls",), 25, "holds two numbers for"),
        ("config.json", ("keys",), None, "has no 'keys'"),
        ("config.json", ("keys",), ["none"], "holds no row yet of those that config.json asks for"),
        ("config.json", ("comparison", "metrics"), None, "has no 'metrics'"),
        ("reference.json", ("floor", MAIN), "low", "cannot be 'low'"),
        ("reference.json", ("about", "extractors"), [1], "cannot be"),
        ("runs.json", ("curve_log_snr", "drawn"), "lineal", "unknown schedule 'lineal'"),
        ("compare.jsonl", ("schedule",), "\ud800", "half a character"),
        ("config.json", ("keys",), [{"a": 1}], "keys is damaged: 0 cannot be {'a': 1}"),
        ("config.json", ("comparison", "parameters"), ["ema"], "is damaged: 'parameters' cannot be ['ema']"),
        ("runs.json", ("curve_log_snr", "workdirs"), [3], "workdirs is damaged"),
        ("runs.json", ("curve_log_snr", "seconds"), [1, 2, 3, 4], "workdirs is damaged: it has no 3"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, name, keys, value, said):
    make(tmp_path, told=("log_snr",), **LEAN)
    damaged(tmp_path / name, *keys, value=value)
    with pytest.raises(ValueError) as error:
        results.read(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_line_is_named(tmp_path):
    make(tmp_path, **LEAN)
    lines = (tmp_path / "compare.jsonl").read_text().split("\n")
    (tmp_path / "compare.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]))
    with pytest.raises(ValueError, match="compare.jsonl, line 2: "):
        results.read(tmp_path)


def test_a_damaged_evaluation_is_named_and_costs_itself_alone(tmp_path):
    make(tmp_path, images=False)
    path = tmp_path / "evaluations" / "curve_log_snr" / "seed0" / "evaluation.json"
    damaged(path, "profile", "v", value=[1.0])
    found = results.read(tmp_path).networks
    (said,) = found["reason"].dropna()
    assert "log_snr, eps and v of its profile must be as many numbers each" in said and found["reason"].isna().sum() == 17


@pytest.mark.parametrize("preview", ["../../etc/passwd", "previews/../x.png", "/etc/passwd"])
def test_a_preview_from_elsewhere_is_not_read(tmp_path, preview):
    with pytest.raises(ValueError, match="is not in previews/"):
        plots.preview(tmp_path, {"preview": preview})


def test_a_preview_that_is_missing_or_damaged_is_named_and_an_empty_cell(tmp_path, monkeypatch):
    names = ("linear", "cosine", "flow", "sigmoid")
    refused = lambda row: "too noisy" if row["schedule"] == "sigmoid" else None
    rows = make(tmp_path, told=("log_snr",), drawn=("linear",), schedules=names, calls=(5,), refused=refused)
    first = {row["schedule"]: row for row in reversed(rows)}
    (tmp_path / first["linear"]["preview"]).unlink()
    (tmp_path / first["cosine"]["preview"]).write_bytes(b"no picture")
    with pytest.raises(FileNotFoundError, match="png is missing"):
        plots.preview(tmp_path, first["linear"])
    with pytest.raises(OSError, match="png is no picture that can be read"):
        plots.preview(tmp_path, first["cosine"])
    monkeypatch.setattr(plots, "png", lambda figure: [text.get_text() for text in figure.axes[0].texts])
    comparison = results.read(tmp_path)
    (condition,) = comparison.conditions
    places = {(0, column): (condition, Task(name, *HOW, 5)) for column, name in enumerate(names)}
    assert plots.strips(comparison, [str(condition)], names, places) == ["not there", "cannot be read", "refused"]


def test_if_all_was_refused_there_is_no_report(tmp_path):
    make(tmp_path, refused=lambda row: "no table goes there", **LEAN)
    with pytest.raises(ValueError, match="none of its 96 rows has a number, all were refused: no table goes there"):
        report.run(tmp_path)
    assert not (tmp_path / "report").exists()


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(["report", f"--compare={tmp_path}"])
    assert end.value.code == 2
    assert re.fullmatch(r"noisesched: error: \S+config.json is missing: [^\n]+\n", capsys.readouterr().err)


# -- the document

PIECES = (
    *("<b>", "</details>", "<!--", "<a href=http://x>", "&amp;", "&#60;", "[a](http://b)", "![a](b)", "[a][b]", "[a]: b", "]("),
    *(
        "*",
        "**",
        "_",
        "__",
        "`",
        "``",
        "~~",
        "$",
        "\\",
        "|",
        "#",
        "##",
        "-",
        "+",
        ">",
        "=",
        "1.",
        "2)",
        "---",
        "===",
        "```",
        "~~~",
    ),
    *(
        "a",
        "b_c",
        "http://x",
        "<http://x>",
        "javascript:alert(1)",
        " ",
        " ",
        "\n",
        "\n\n",
        "\t",
        "\u2028",
        "é",
        "[x]",
        "{}",
        "!",
        '"',
    ),
)


def test_no_text_means_anything_in_markdown():
    """Whatever text is put into a document is read from the page as it was, and makes no tag."""
    draw, texts = random.Random(0), []
    for _ in range(500):
        texts.append("".join(draw.choices(PIECES, k=draw.randint(1, 7))))
    expected = [" ".join(text.split()) for text in texts]
    blocks = {
        html.paragraph: ("p", {"p"}),
        lambda text: html.items([text]): ("li", {"ul", "li"}),
        lambda text: html.abstract([text]): ("p", {"blockquote", "p"}),
        lambda text: html.table([{"a": text, "b": "x"}]): ("td", {"table", "thead", "tbody", "tr", "th", "td"}),
    }
    for make_block, (tag, allowed) in blocks.items():
        for given, wanted in zip(texts, expected, strict=True):
            rendered = Page(html.page([html.title("t", "l"), make_block(given)]).partition("</nav>")[2])
            shown = rendered.tables[0][1][0] if tag == "td" else rendered.text.strip()
            assert shown == wanted, given
            assert set(rendered.tags) <= allowed and not rendered.addresses, given


def test_what_is_no_markup_stays_as_it_is():
    for plain in ("log_snr 8.84 train[:90%] 2 < 3 & 4", "a|b", "a__b", "frechet(classifier, n=256)", "1.2e-07"):
        assert html.paragraph(plain).markdown == plain
    assert html.code("```\ncode").markdown == "````\n```\ncode\n````"


def test_columns_of_numbers_are_set_to_the_right():
    rows = [["1.5 ± 0.2", "x", "-", "3 refused"], ["-0.1", "2", "1e-07", "-"]]
    table = html.table([dict(zip("abcd", row, strict=True)) for row in rows])
    assert "\n| ---: | --- | ---: | ---: |\n" in table.markdown
