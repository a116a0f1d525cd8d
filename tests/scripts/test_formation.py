"""The study of formation: its verdict on tables made by hand, its flags, and one small run from end to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from house import ROOT
from saved import read_measured
from tables import judge, measured
from worlds import known_worlds

from clsprobe.analysis.contract import check_study
from clsprobe.analysis.formation.cuts import (
    DRAWS,
    EVERYTHING,
    INTACT,
    KEY,
    ONLY,
    PREDICTIONS,
    REFITTED,
    RETRAINED,
    Gathering,
    Window,
    divide,
    split_halves,
)
from clsprobe.analysis.formation.knockout import measure_agreement
from clsprobe.analysis.formation.wording import describe_writing
from clsprobe.analysis.sweep.refits import HALVES
from clsprobe.formation import Formation
from clsprobe.probes.errors import InputError

TASK = "file:made:label"
NO_REFITS = pd.DataFrame(columns=[*REFITTED])


def retrained(
    layer=4, *, intact=0.9, off=0.5, lower=0.9, upper=0.5, untrained=(0.9, 0.9), draws=DRAWS, n=400, task=TASK
):
    """What retrained probes of [CLS] predicted after the cuts that the verdict is about, in the encoder and in
    untrained ones; texts that are right are nested. Of an odd number of layers the middle one changes nothing."""
    below, above = split_halves(layer)
    parts = []
    for control, draw, (low, high) in [
        ("none", -1, (lower, upper)),
        *(("untrained", k, untrained) for k in range(draws)),
    ]:
        shares = {
            INTACT: intact,
            Window(EVERYTHING, 1, layer): off,
            Window(EVERYTHING, *below): low,
            Window(EVERYTHING, *above): high,
            Window(ONLY, *below): high,
            Window(ONLY, *above): low,
            Window(ONLY, 1, layer): intact,
        }
        for cut, share in shares.items():
            key = {"control": control, "draw": draw, **cut._asdict(), "layer": layer, "seed": 0}
            rows = {"row": np.arange(n), "label": "a", "predicted": np.where(np.arange(n) < round(share * n), "a", "b")}
            parts.append(pd.DataFrame({"task": task, **key, **rows}))
    return pd.concat(parts, ignore_index=True).drop_duplicates([*RETRAINED[:-2]])[list(RETRAINED)]


def fixed(layer=4, *, shifts=(0, 0, 0, 0.4), intact=0.9, n=400, task=TASK):
    """What the fixed probe of [CLS] predicted after cuts in single layers, which shift it so."""
    shares = {INTACT: intact, **{Window(EVERYTHING, k, k): intact - shift for k, shift in enumerate(shifts, 1)}}
    parts = []
    for cut, share in shares.items():
        key = dict(zip(KEY, (*cut, layer, "cls"), strict=True))
        rows = {"row": np.arange(n), "label": "a", "predicted": np.where(np.arange(n) < round(share * n), "a", "b")}
        parts.append(pd.DataFrame({"task": task, **key, "seed": 0, **rows}))
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)]


def judge_cuts(*args, **more):
    return judge(Formation(), fixed(), retrained=retrained(*args, **more), refitted=NO_REFITS)


@pytest.mark.parametrize(
    ("layer", "below", "above"), [(2, "layer 1", "layer 2"), (5, "layers 1 to 2", "layers 4 to 5")]
)
@pytest.mark.parametrize(
    ("values", "outcome", "halves", "statement"),
    [
        (
            {"lower": 0.9, "upper": 0.5},
            "yes",
            "The lower half is not necessary, and the upper half is necessary",
            "[CLS] gathers it later than in untrained encoders:",
        ),
        (
            {"lower": 0.6, "upper": 0.9},
            "no",
            "The lower half is necessary, and the upper half is not necessary",
            "[CLS] gathers it earlier than in untrained encoders:",
        ),
        (
            {"lower": 0.9, "upper": 0.6, "untrained": (0.9, 0.6)},
            "no",
            "The lower half is not necessary, and the upper half is necessary",
            "In this [CLS] is no different from untrained encoders:",
        ),
        (
            {"lower": 0.9, "upper": 0.895},
            "no",
            "Neither half is necessary",
            "In this [CLS] is no different from untrained encoders:",
        ),
        (
            {"lower": 0.8, "upper": 0.82},
            "no",
            "Both halves are necessary",
            "[CLS] gathers it no later than in untrained encoders:",
        ),
        (
            {"lower": 0.9, "upper": 0.87},
            "undecided",
            "The lower half is not necessary, and of the upper half it is not certain",
            "It is not certain whether [CLS] gathers it later than in untrained encoders:",
        ),
    ],
    ids=["late", "early", "late as without training", "alike", "not late", "uncertain"],
)  # fmt: skip
def test_the_answer_says_which_half_is_necessary_and_what_training_changed(
    layer, below, above, values, outcome, halves, statement
):
    verdict = judge_cuts(layer, **values, n=1000)
    assert verdict.outcome == outcome
    assert verdict.label == "described"
    lower, upper = values["lower"], values["upper"]
    assert (
        f"a probe of [CLS] at layer {layer}, trained anew after every cut, gets 0.900 of the test texts right, "
        f"{lower:.3f} where [CLS] is cut off from all other tokens in {below}, {upper:.3f} in {above}, and 0.500 in "
        f"layers 1 to {layer}. "
    ) in verdict.sentence
    assert (
        f". {halves}, with a margin of 2 points: the cut costs {100 * (0.9 - lower):.1f} points (" in verdict.sentence
    )
    assert f"{100 * (0.9 - upper):.1f} points (" in verdict.sentence
    assert f". {statement}" in verdict.sentence
    assert f"in {DRAWS} untrained encoders (0.900 right intact)" in verdict.sentence
    trained, untrained = lower - upper, np.subtract(*values.get("untrained", (0.9, 0.9)))
    assert verdict.effect == pytest.approx(trained - untrained, abs=0.001)
    assert verdict.low <= verdict.effect <= verdict.high


def test_where_retrained_probes_lose_nothing_in_either_half_either_suffices():
    sentence = judge_cuts(4, lower=0.9, upper=0.9, n=1000).sentence
    assert ". Neither half is necessary, with a margin" in sentence
    assert ". Either half suffices: of what the cut everywhere takes away, [CLS] keeps 100 % (" in sentence
    assert "gathers it" not in sentence


@pytest.mark.parametrize(("values", "words"), [
    ({"lower": 0.9, "upper": 0.7}, ". The lower half does not suffice, and the upper half suffices: "),
    ({"lower": 0.8, "upper": 0.8}, ". Neither half suffices: "),
    ({"lower": 0.88, "upper": 0.88}, ". It is not certain whether either half suffices: "),
    ({"lower": 0.9, "upper": 0.88}, ". The upper half suffices, and of the lower half it is not certain: "),
    ({"lower": 0.88, "upper": 0.9}, ". The lower half suffices, and of the upper half it is not certain: "),
    ({"lower": 0.88, "upper": 0.7}, ". The lower half does not suffice, and of the upper half it is not certain: "),
])  # fmt: skip
def test_the_answer_says_which_half_suffices(values, words):
    """Of four layers a half is open where the other one is cut."""
    assert words in judge_cuts(4, **values, n=1000).sentence


def test_every_interval_of_an_answer_is_said_to_be_about_something():
    draws = "; with untrained encoders, also over 5 draws of their weights"
    for values, ending in (({"off": 0.895}, draws), ({"draws": 0}, "over the test texts")):
        verdict = judge_cuts(4, **values)
        assert verdict.interval_of.startswith("these probes as they were fitted, over the test texts")
        assert verdict.interval_of.endswith(ending)


def test_where_there_is_nothing_to_lose_no_half_is_named():
    verdict = judge_cuts(4, intact=0.51, off=0.5, lower=0.5, upper=0.51)
    assert "it cannot be said in which layers [CLS] gathers what a probe at layer 4 reads" in verdict.sentence
    assert "0.510 of the test texts right, and 0.500 where [CLS] is cut off" in verdict.sentence
    assert not verdict.is_claim


def test_a_single_layer_has_no_halves():
    table = retrained(2).assign(layer=1)
    table = table[(table.edges == "none") | ((table["first"] == 1) & (table["last"] == 2))]
    verdict = judge(
        Formation(),
        fixed(1, shifts=(0.4,)),
        retrained=table.assign(last=table["last"].clip(upper=1)),
        refitted=NO_REFITS,
    )
    assert "dev reads [CLS] at layer 1, which has no lower and no upper half below it" in verdict.sentence
    assert "0.900 of the test texts right, and 0.500 where [CLS] is cut off there" in verdict.sentence
    assert not verdict.is_claim


def test_without_untrained_encoders_nothing_is_said_of_training():
    verdict = judge_cuts(4, draws=0)
    assert "the upper half is necessary" in verdict.sentence
    assert verdict.sentence.endswith("whether this is later than without training is not known.")
    assert not verdict.is_claim


def test_untrained_encoders_that_differ_make_the_answer_less_certain():
    """Draws are a sample: with all texts alike, their spread alone decides."""
    alike = retrained(4, lower=0.9, upper=0.8, n=1000)
    differ = alike.copy()
    for draw in range(DRAWS):
        rows = (differ.draw == draw) & (differ.edges == EVERYTHING) & (differ["first"] == 3)
        differ.loc[rows & (differ.row >= 1000 * (0.9 - 0.08 * draw)), "predicted"] = "b"
    widths = [np.ptp(Gathering(table, NO_REFITS).compare_halves()[0].interval()) for table in (alike, differ)]
    assert widths[1] > 3 * widths[0]


def test_other_training_texts_make_the_answer_less_certain():
    """Of probes on halves of the training texts, one half of ten loses 40 texts by the upper cut: the variance is a
    fourth of the mean square of that, less the interaction with the test texts."""
    table = retrained(4, lower=0.9, upper=0.8, n=1000)
    upper, parts = Window(EVERYTHING, *split_halves(4)[1]), []
    for control, draw in [("none", -1), *(("untrained", draw) for draw in range(DRAWS))]:
        for window in (INTACT, Window(EVERYTHING, *split_halves(4)[0]), upper):
            halves = pd.DataFrame(np.ones((1000, len(HALVES)), np.float32), columns=[*HALVES])
            if control == "none" and window == upper:
                halves.loc[:39, "half 0"] = 0
            key = {"task": TASK, "control": control, "draw": draw, **window._asdict(), "seed": 0, "n_train": 600}
            parts.append(halves.assign(**key, row=np.arange(1000), group=np.arange(1000)))
    refitted = pd.concat(parts)[list(REFITTED)]
    with_refits, without = Gathering(table, refitted), Gathering(table, NO_REFITS)
    square, interaction = 0.04**2, 0.04 * 0.96 / 999
    for estimate in (with_refits.compare_halves()[0], with_refits.lose(upper)):
        assert estimate.variance["training"] == pytest.approx((square - interaction) / 10 / 4)
    assert "training" not in without.lose(upper).variance
    assert np.ptp(with_refits.compare_halves()[0].interval()) > np.ptp(without.compare_halves()[0].interval())
    verdicts = [judge(Formation(), fixed(), retrained=table, refitted=refits) for refits in (NO_REFITS, refitted)]
    assert verdicts[0].interval_of.startswith("these probes as they were fitted, over the test texts; with")
    assert verdicts[1].interval_of.startswith("the expected difference between such probes, each trained on 600 texts")


def test_seeds_that_split_the_texts_differently_are_compared_each_on_its_own_texts():
    parts = []
    for number in range(2):
        rows = retrained(4, n=300)
        rows = rows[(rows.control == "none") | (rows.draw % 2 == number)]
        parts.append(rows.assign(seed=number, row=rows.row + 200 * number))
    tables = {"retrained": pd.concat(parts, ignore_index=True), "refitted": NO_REFITS}
    gathering = Gathering(*tables.values())
    assert gathering.texts == 500
    assert gathering.lose(Window(EVERYTHING, 1, 4)).effect == pytest.approx(0.4)
    assert judge(Formation(), fixed(), **tables).outcome == "yes"
    assert Formation().show(measured(knockout=fixed(), **tables), TASK)


def test_few_test_texts_are_warned_of():
    (warning,) = judge_cuts(4, n=40).warnings
    assert warning.startswith("Only 40 test texts on made: label")
    assert not judge_cuts(4, n=50).warnings


def test_a_cut_off_cls_that_still_tells_texts_apart_is_not_passed_over():
    table = retrained(4)
    assert "STILL TELLS TEXTS APART" in Formation().note(measured(retrained=table))[0]
    whole = (table["first"] == 1) & (table["last"] == 4) & (table.edges == EVERYTHING)
    table = table.assign(predicted=table.predicted.mask(whole, "b"))
    assert "one class of all texts" in Formation().note(measured(retrained=table))[0]


@pytest.mark.parametrize(("shifts", "sentence"), [
    ((0, 0, 0, 0.4), "is written in block 4 (cut there alone"),
    ((0.01, 0.3, 0.02, 0.4), "is written in blocks 2 and 4 (cut there alone"),
    ((0.1, 0.3, 0.2, 0), "is written in blocks 1, 2 and 3 (cut there alone"),
    ((0.01, 0.02, 0, 0.03), "No cut in a single block certainly shifts the vector by more than 2 points"),
])  # fmt: skip
def test_the_fixed_probe_says_where_the_vector_is_written_and_has_no_outcome(shifts, sentence):
    table = fixed(shifts=shifts)
    assert sentence in describe_writing(table, 0.02)
    assert sentence in Formation().note(measured(knockout=table))[0]
    (exhibit,) = Formation().show(measured(knockout=table), TASK)[:1]
    assert exhibit.caption.startswith("Shift: ")
    assert "not what could still be read" in exhibit.caption
    assert sentence in exhibit.caption
    assert "outcome" not in exhibit.table
    np.testing.assert_allclose(exhibit.table.value, shifts, atol=1e-9)


def test_a_run_without_retrained_probes_says_so_and_shows_what_it_has():
    answer = Formation().answer(measured(knockout=fixed()))
    assert answer.verdict.sentence == "Not answered on made: label: the table retrained was not measured."
    assert [exhibit.caption[:6] for exhibit in answer.exhibits] == ["Shift:"]
    assert "is written in block 4" in answer.notes[0]


def test_what_is_shown_is_what_the_tables_hold():
    table = retrained(4, lower=0.8, upper=0.6)
    necessary, sufficient, windows, encoders, *_ = Formation().show(
        measured(knockout=fixed(), retrained=table, refitted=NO_REFITS), TASK
    )
    accuracies = necessary.table.set_index(["layer", "readout"]).value
    assert accuracies.round(9).to_dict() == {(1, "to 2"): 0.8, (3, "to 4"): 0.6, (1, "to 4"): 0.5}
    assert sufficient.table.set_index(["layer", "readout"]).value[1, "to 2"] == pytest.approx(0.6)
    shares = windows.table.set_index("change")
    assert shares.share["sees only in layers 1 to 2"] == pytest.approx(0.25)
    assert shares["share low"]["sees only in layers 1 to 2"] < 0.25 < shares["share high"]["sees only in layers 1 to 2"]
    assert shares.costs["cut off in layers 3 to 4"] == pytest.approx(0.3)
    assert encoders.table.later.round(9).tolist() == [0.2, 0.0]
    assert "+0.200 (" in encoders.caption
    for exhibit in (necessary, sufficient):
        assert exhibit.draw().axes


def test_there_is_no_share_of_what_is_not_certainly_there():
    table = retrained(4, intact=0.51, off=0.5, lower=0.5, upper=0.51)
    _, _, windows, *_ = Formation().show(measured(knockout=fixed(), retrained=table, refitted=NO_REFITS), TASK)
    assert windows.table.share.isna().all()
    assert "no share: an intact [CLS] is not certainly read better than one that is cut off" in windows.caption


def test_the_interval_of_a_share_is_fiellers_and_covers():
    """Against the roots of his equation, without the two texts that the house adds, where there are many texts; and the
    share of simulations whose interval holds the truth."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        difficulty = random.normal(size=300)
        intact, changed, off = ((difficulty + random.normal(size=300) < limit) * 1.0 for limit in (1.8, 0.7, 0.0))
        value, low, high = divide(((changed - off)[None], None), ((intact - off)[None], None))
        x, y = changed - off, intact - off
        covariance, t = np.cov(x, y) / len(x), 1.97
        a = y.mean() ** 2 - t**2 * covariance[1, 1]
        b = -2 * (x.mean() * y.mean() - t**2 * covariance[0, 1])
        roots = np.sort(np.roots([a, b, x.mean() ** 2 - t**2 * covariance[0, 0]]).real)
        np.testing.assert_allclose((low, high), roots, atol=0.03)
        assert low < value < high
        held += low < 0.4789 < high  # (Phi(0.7 / 2**0.5) - 0.5) / (Phi(1.8 / 2**0.5) - 0.5)
    assert held >= 88


def test_an_answer_from_saved_tables_needs_no_torch(tmp_path):
    retrained().to_parquet(tmp_path / "retrained.parquet")
    NO_REFITS.to_parquet(tmp_path / "refitted.parquet")
    fixed().to_parquet(tmp_path / "knockout.parquet")
    code = (
        "import sys\nsys.path.insert(0, 'tests/support')\nfrom tables import *\nfrom pathlib import Path\n"
        "from clsprobe.formation import Formation\n"
        "names = ['knockout', 'retrained', 'refitted']\n"
        "tables = {name: pd.read_parquet(Path(sys.argv[1], name + '.parquet')) for name in names}\n"
        "answer = Formation().answer(measured(**tables))\n"
        "assert answer.verdict.outcome == 'yes' and len(answer.exhibits) == 5 and not answer.failures\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)


def test_tasks_that_disagree_are_listed():
    tasks = {"file:a:x": {}, "file:b:y": {"lower": 0.5, "upper": 0.9}}
    tables = {
        "knockout": pd.concat([fixed(task=task) for task in tasks]),
        "retrained": pd.concat([retrained(task=task, **values) for task, values in tasks.items()]),
        "refitted": NO_REFITS,
    }
    verdict = Formation().verdict(measured(**tables))
    assert verdict.outcome == "mixed"
    assert {part.outcome for part in verdict.parts.values()} == {"yes", "no"}
    assert "encoders, in points: a: x +40.0 (" in verdict.sentence
    assert verdict.sentence.startswith(
        "Later than in untrained encoders on a: x; no later than in untrained encoders on b: y. "
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readouts": "mean"}, "--readouts: this study is about cls"),
        ({"readouts": "cls,flatten"}, "--readouts: 'flatten' is no vector of a single layer"),
        ({"readouts": "cls,cls+norm"}, "--readouts: 'cls+norm' is no vector of a single layer"),
    ],
)
def test_what_cannot_be_asked_is_told(settings, message):
    with pytest.raises(InputError) as caught:
        Formation(**settings)
    assert str(caught.value).startswith(message)


def test_agreement_is_the_rank_correlation_of_the_profiles():
    random = np.random.default_rng(0)
    rising = np.arange(6.0) + random.normal(size=(300, 6))
    partial = np.where(np.arange(300)[:, None] < 100, rising, np.nan)
    table = measure_agreement(
        {"a": rising, "b": partial, "c": -rising, "flat": np.ones((300, 6)), "noise": random.normal(size=(300, 6))}
    )
    correlations = table.set_index(["one", "other"])
    assert correlations.correlation["a", "b"] == pytest.approx(1)
    assert correlations.low["a", "b"] > 0.8
    assert correlations.correlation["a", "c"] == pytest.approx(-1)
    assert tuple(correlations.loc[("a", "flat"), ["correlation", "low", "high"]]) == (0, 0, 0)
    assert correlations.low["a", "noise"] < 0 < correlations.high["a", "noise"]
    assert ((correlations.low <= correlations.correlation) & (correlations.correlation <= correlations.high)).all()


def test_a_small_run_goes_on_where_it_was_stopped_and_finds_what_was_planted(tmp_path, monkeypatch):
    import planted_transformer as planted

    from clsprobe.analysis.answer import Answer
    from clsprobe.cli import main
    from clsprobe.probes.encoders.loading import load_encoder

    folder = planted.save_model(tmp_path / "model")
    encoder = load_encoder(str(folder), device="cpu")
    planted.plant_copy(encoder, 4, noise=0.02)
    encoder.model.save_pretrained(folder)
    task = planted.make_task(0, count=200)
    pd.DataFrame({"text": task.texts, "label": task.y}).to_csv(tmp_path / "third.csv", index=False)
    out, table = tmp_path / "run", tmp_path / "third.csv"
    monkeypatch.setattr("clsprobe.probes.descent.ROUNDS", 10)  # of the MLPs: what is planted is learned in a few
    pairs = {"file:third:label": planted.make_pairs(0)}
    monkeypatch.setattr("clsprobe.formation.load_pairs", lambda spec, options: pairs)

    def run():
        flags = ["--model", str(folder), "--task", f"file:{table}", "--device", "cpu", "--allow-overlap", "--quiet"]
        with pytest.raises(SystemExit) as stopped:
            main(["formation", *flags, "--out", str(out)])
        return stopped.value.code

    with monkeypatch.context() as patch:
        patch.setattr(Formation, "judge", _interrupted)
        assert run() == 130
    monkeypatch.setattr(Formation, "measure", _interrupted)  # it is not measured again
    assert run() == 0
    answer = Answer.load(out / "answers" / "formation.json")
    assert answer.verdict.outcome == "yes"
    sentence = answer.headline.sentence
    assert ". The upper half is necessary, and of the lower half it is not certain, with a margin" in sentence
    assert ". The lower half does not suffice, and of the upper half it is not certain: " in sentence
    assert ". [CLS] gathers it later than in untrained encoders: the cut in layers 3 to 4 costs " in sentence
    assert {exhibit.plot for exhibit in answer.exhibits} >= {"heatmap", "intervals", "curves", "token_strips"}
    assert "one class of all texts" in answer.notes[0]
    assert "is written in block 4 (cut there alone" in answer.notes[1]
    assert "third: label: swapped between the twins of" in answer.notes[2]
    assert answer.notes[2].endswith("from the other tokens in block 4, whatever [CLS] of layer 3 holds of it.")
    assert any(exhibit.caption.startswith("Where does [CLS] receive") for exhibit in answer.exhibits)
    captions = " ".join(exhibit.caption for exhibit in answer.exhibits)
    for finding in ("where LEACE erased it", "run on from the erased vectors", "How reliable the erasures are",
                    "How far attribution depends on its baseline", "Does attribution name the words"):  # fmt: skip
        assert finding in captions
    assert (out / "report.html").stat().st_size > 10_000
    check_study(Formation(), read_measured(out), worlds=known_worlds("formation"))
    shifts = next(exhibit.table for exhibit in answer.exhibits if exhibit.plot == "intervals").set_index("name").value
    assert shifts["[CLS] from the words, layer 4"] > 0.2
    assert (shifts[[f"[CLS] from the words, layer {layer}" for layer in (1, 2, 3)]].abs() < 0.1).all()
    windows = next(exhibit.table for exhibit in answer.exhibits if "costs" in exhibit.table).set_index("change")
    for kind in ("sees only in", "restored in"):
        shares = windows.share[[f"{kind} layer {layer}" for layer in (1, 2, 3, 4)]]
        assert shares.idxmax() == f"{kind} layer 4"
        assert shares.max() > 0.8
    retrained_rows = pd.read_parquet(out / "tables" / "retrained.parquet")
    assert retrained_rows.groupby("control").draw.unique().map(sorted).to_dict() == {
        "none": [-1], "untrained": [*range(DRAWS)]
    }  # fmt: skip


def _interrupted(*_):
    signal.raise_signal(signal.SIGINT)
