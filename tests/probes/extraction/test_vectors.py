"""`--vectors`: the vectors of a file are probed row by row, and its content is not trusted."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from safetensors.torch import save_file

from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.sweep.grid import split_task, sweep
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.states import States
from clsprobe.probes.extraction.vectors import Vectors, read_vectors
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.tasks.split import sample_task
from clsprobe.probes.tasks.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")

N, DIM = 300, 4
Y = np.random.default_rng(1).permutation(np.arange(N) % 2)


def draw_vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (N, DIM))


def all_states(vectors: Vectors) -> States:
    rows = np.arange(vectors.shape[0])
    return vectors.states(vectors.layers, vectors.readouts, vectors.check(rows, vectors.layers, vectors.readouts))


def save_npy(path: Path, array: np.ndarray, **options: Any) -> Path:
    np.save(path, array, **options)
    return path


def write_table(path: Path, y: np.ndarray = Y, texts: list[str] | None = None) -> Path:
    rows = [f"{'ab'[k]}" if texts is None else f"{texts[i]},{'ab'[k]}" for i, k in enumerate(y)]
    path.write_text("\n".join(["label" if texts is None else "words,label", *rows]) + "\n")
    return path


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("kind", ["<f8", "<f4", "<f2", ">f4", ">f8", "i1", "u1", "<i2", "<u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_dtype(tmp_path, kind, order):
    stored = np.asarray(draw_vectors() * 50, order=order).astype(kind, order=order)
    states = all_states(read_vectors(save_npy(tmp_path / "v.npy", stored)))
    assert states.cells == [(1, "vector")]
    cell = states.cell(1, "vector")
    assert cell.dtype == np.float32
    assert np.array_equal(cell, stored.astype(np.float32))
    assert np.array_equal(states.cell(1, "vector", np.array([7, 3, 3])), cell[[7, 3, 3]])
    assert states.present.all()
    assert not len(states.truncated)
    assert len(states) == N


def test_axes_are_row_layer_dim(tmp_path):
    array = draw_vectors(N, 3, DIM).astype(np.float32)
    states = all_states(read_vectors(save_npy(tmp_path / "v.npy", array)))
    assert states.cells == [(0, "vector"), (1, "vector"), (2, "vector")]
    for layer in range(3):
        assert np.array_equal(states.cell(layer, "vector"), array[:, layer])


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_tensors_of_every_dtype(tmp_path, kind):
    stored = {
        name: torch.from_numpy(draw_vectors(seed=i) * 50).to(kind) for i, name in enumerate(("pooled", "cls", "a b"))
    }
    save_file(stored, tmp_path / "v.safetensors", metadata={"layer.01/x": "no tensor"})
    states = all_states(read_vectors(tmp_path / "v.safetensors"))
    assert set(states.cells) == {(1, "pooled"), (1, "cls"), (1, "a b")}
    for name, tensor in stored.items():
        assert np.array_equal(states.cell(1, name), tensor.float().numpy())


def test_layers_and_readouts_in_names(tmp_path):
    stored = {f"layer.{layer:02d}/{name}": torch.randn(N, DIM) for layer in (2, 11) for name in ("cls", "token[-1]")}
    save_file(stored, tmp_path / "v.safetensors")
    vectors = read_vectors(tmp_path / "v.safetensors")
    assert vectors.layers == [2, 11]
    states = all_states(vectors)
    for name, tensor in stored.items():
        layer, readout = name.removeprefix("layer.").split("/")
        assert np.array_equal(states.cell(int(layer), readout), tensor.numpy())
    assert vectors.choose_layers([11]) == [11]
    subset = vectors.states([11], ["cls"], vectors.check(np.arange(N), [11], ["cls"]))
    assert subset.cells == [(11, "cls")]
    with pytest.raises(InputError, match=r"--layers 3: v\.safetensors has layers 2, 11\. Choose among them"):
        vectors.choose_layers([3])
    with pytest.raises(InputError, match=r"unknown readout 'clss'\. Did you mean 'cls'\?"):
        vectors.choose_readouts(["clss"])


def test_a_file_is_mapped_and_not_read(tmp_path):
    path = save_npy(tmp_path / "v.npy", np.zeros((100_000, 64), np.float32))
    tracemalloc.start()
    vectors = read_vectors(path)
    vectors.cells[1, "vector"][np.arange(0, 100_000, 100)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # the file is 25.6 MB


# --------------------------------------------------------------------------------------------------- rows and vectors


def accuracy(task: Task, states: States) -> float:
    results = sweep([task], states, {"logistic": LogisticProbe()}, controls=())
    row = results[(results.split == "test") & (results.metric == "accuracy") & (results.control == "none")]
    return float(row.value.iloc[0])


def task_with_holes(tmp_path: Path, **options: Any) -> Task:
    """A table of N rows: every third has no text; the others share one word, except for every tenth."""
    texts = ["" if i % 3 == 0 else f"word{i}" if i % 10 == 1 else "bank" for i in range(N)]
    path = write_table(tmp_path / "d.csv", texts=texts)
    source_options = SourceOptions(text_column="words", vectors="v.npy", drop_empty=True, **options)
    return load(f"file:{path}", source_options).tasks[0]


def plant_labels(y: np.ndarray) -> np.ndarray:
    """Vectors whose first number has the sign of the label, without exception."""
    array = draw_vectors()
    array[:, 0] = np.where(y, 2.0, -2.0) + 0.1 * array[:, 0]
    return array


def test_dropped_rows_do_not_shift_vectors(tmp_path):
    task = task_with_holes(tmp_path)
    assert task.rows is not None
    assert len(task.rows) == N - N // 3
    assert task.rows.tolist() == [i for i in range(N) if i % 3]
    path = write_table(tmp_path / "l.csv")
    (labels_only,) = load(f"file:{path}", SourceOptions(text_column="", vectors="v.npy")).tasks
    subset = Task(task.name, [f"row {i}" for i in task.rows], task.y, rows=task.rows, textless=True)
    states = all_states(read_vectors(save_npy(tmp_path / "v.npy", plant_labels(Y))))
    shifted = all_states(read_vectors(save_npy(tmp_path / "w.npy", plant_labels(np.roll(Y, 1)))))
    for candidate in (labels_only, subset):
        assert accuracy(candidate, states) == 1
        assert accuracy(candidate, shifted) < 0.7  # the check can fail
    assert accuracy(sample_task(subset, 120, seed=0), states) == 1


def test_a_text_may_have_many_vectors(tmp_path):
    """One word in many sentences: a split treats its rows as duplicates, but each row has its own vector."""
    task = task_with_holes(tmp_path)
    side = np.array(["train", "dev", "test"])[np.arange(len(task.y)) % 3]
    states = all_states(read_vectors(save_npy(tmp_path / "v.npy", plant_labels(Y))))
    split = split_task(replace(task, split=side), states, 0, allow_overlap=True)
    assert np.array_equal(split.state_rows, task.rows[split.row_indices])
    assert np.array_equal(states.cell(1, "vector")[split.state_rows][:, 0] > 0, Y[task.rows[split.row_indices]] == 1)
    with pytest.raises(InputError, match="train and test share"):
        split_task(replace(task, split=side), states, 0)


def test_equal_vectors_stay_on_one_side(tmp_path):
    array = draw_vectors()
    array[N // 2 :] = array[: N // 2]
    states = all_states(read_vectors(save_npy(tmp_path / "v.npy", array)))
    rows = np.arange(N)
    task = Task("file:d:label", [f"row {i + 1}" for i in rows], np.array(list("ab"))[Y], rows=rows, textless=True)
    split = split_task(task, states, 0)
    side = dict(zip(split.row_indices.tolist(), split.side.tolist(), strict=True))
    assert all(side[i] == side[i + N // 2] for i in range(N // 2))
    assert any("as far as the encoder can see" in note for note in split.notes)


def test_saved_vectors_give_the_results_of_the_encoder(tmp_path):
    """Vectors of our own extractor, saved and passed by --vectors: all results are equal."""
    words = [word for word in models.WORDS if word.isalpha()]
    draw = np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(draw.choice(words, 12)) for _ in range(120)))
    y = np.array(list("abc"))[np.arange(len(texts)) % 3]
    encoder = load_encoder(str(models.save("bert", tmp_path / "bert")))
    states = Extractor(encoder, ["cls", "mean", "token[2]"])(texts)
    cells = {f"layer.{layer:02d}/{name}": torch.from_numpy(states.cell(layer, name)) for layer, name in states.cells}
    save_file(cells, tmp_path / "v.safetensors")
    task = Task("file:d:label", texts, y)
    read_states = all_states(read_vectors(tmp_path / "v.safetensors"))
    encoder_results = sweep([task], states, {"logistic": LogisticProbe()})
    vector_results = sweep([replace(task, rows=np.arange(len(texts)))], read_states, {"logistic": LogisticProbe()})
    order = ["control", "layer", "readout", "split", "metric"]
    tables = [
        table.drop(columns="model").sort_values(order, ignore_index=True) for table in (encoder_results, vector_results)
    ]
    pd.testing.assert_frame_equal(*tables)


# ------------------------------------------------------------------------------------------------------- broken files


class Evil:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


def npy_bytes(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def safetensors_bytes(entries: dict[str, tuple[str, list[int]]], size: int | None = None) -> bytes:
    """A safetensors file of zeros."""
    width = {"F32": 4, "F16": 2, "I64": 8, "BOOL": 1}
    header, end = {}, 0
    for name, (kind, shape) in entries.items():
        length = int(np.prod(shape)) * width[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + length]}
        end += length
    coded = json.dumps(header).encode()
    return len(coded).to_bytes(8, "little") + coded + bytes(end if size is None else size)


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, draw_vectors())
    return file.getvalue()


def spoil(*rows: int, value: float = np.nan) -> np.ndarray:
    array = draw_vectors()
    array[list(rows), 1] = value
    return array


V = "v.safetensors: "
BROKEN = [  # name, content, the line
    ("v.npy", b"", "v.npy: file is empty. Save it with np.save('vectors.npy', array), or with safetensors."),
    ("v.npy", b"hello", r"v.npy: not a .npy file (it does not start with \x93NUMPY). Save it with"),
    ("v.npy", npz_bytes(), "v.npy: is an archive, such as .npz, whatever its name. Save the array alone with np.save."),
    ("v.npy", pickle.dumps(Evil()), "v.npy: is a pickle, which can run code, whatever its name. Save the array alone"),
    (
        "v.npy",
        npy_bytes(np.array([Evil(), 1], object), allow_pickle=True),
        "v.npy: holds Python objects, which are never unpickled.",
    ),
    ("v.npy", npy_bytes(draw_vectors())[:-1], "v.npy: is cut: its header promises more. Copy or save it again."),
    ("v.npy", npy_bytes(draw_vectors())[:40], "v.npy: is cut: its header promises more. Copy or save it again."),
    ("v.npy", npy_bytes(draw_vectors()).replace(b"descr", b"xescr"), "v.npy: has a damaged header ("),
    ("v.npy", npy_bytes(draw_vectors()).replace(b"(300, 4)", b"(-30, 4)"), "v.npy: "),
    (
        "v.npy",
        npy_bytes(draw_vectors(N)),
        "v.npy: is no table of vectors: its shape is (300,). Its axes are (row, dim) or (row, la",
    ),
    ("v.npy", npy_bytes(draw_vectors(N, 1, 1, 2)), "v.npy: is no table of vectors: its shape is (300, 1, 1, 2)."),
    ("v.npy", npy_bytes(draw_vectors(N, 0)), "v.npy: holds no vectors: its shape is (300, 0)."),
    ("v.npy", npy_bytes(draw_vectors(0, DIM)), "v.npy: holds no vectors: its shape is (0, 4)."),
    (
        "v.npy",
        npy_bytes(draw_vectors(299, DIM)),
        "v.npy: holds 299 vectors, file:d.csv 300 rows. Give one vector for every row, in",
    ),
    (
        "v.npy",
        npy_bytes(draw_vectors(3, N, DIM)),
        "v.npy: holds 3 vectors, file:d.csv 300 rows. Are its axes (layer, row, dim)? Sa",
    ),
    (
        "v.npy",
        npy_bytes(draw_vectors().astype(np.int64)),
        "v.npy: holds int64, ids or labels? Save vectors as float32, float16 or",
    ),
    ("v.npy", npy_bytes(draw_vectors() > 0), "v.npy: holds bool, not numbers to read. Save vectors as float32"),
    ("v.npy", npy_bytes(draw_vectors().astype(complex)), "v.npy: holds complex128, not numbers to read."),
    ("v.npy", npy_bytes(np.zeros(N, [("a", "f4")])), "v.npy: holds [('a', '<f4')], not numbers to read."),
    ("v.npy", npy_bytes(draw_vectors().astype("U3")), "v.npy: holds <U3, not numbers to read."),
    (
        "v.npy",
        npy_bytes(spoil(2, 16)),
        "v.npy: 2 rows hold NaN or what is no finite float32 (rows 3, 17). Mend the vecto",
    ),
    ("v.npy", npy_bytes(spoil(5, value=np.inf)), "v.npy: 1 row holds NaN or what is no finite float32 (row 6). Mend"),
    ("v.npy", npy_bytes(spoil(5, value=1e300)), "v.npy: 1 row holds NaN or what is no finite float32 (row 6). Mend"),
    (
        "v.npy",
        npy_bytes(spoil(*range(40))),
        "v.npy: 40 rows hold NaN or what is no finite float32 (rows 1, 2, 3, 4, 5, 6,",
    ),
    ("v.npy", npy_bytes(np.ones((N, DIM))), "v.npy: all vectors are the same. Give those of another layer or readout."),
    ("v.pt", b"PK", "v.pt: unknown kind of file '.pt'. Known: .npy, .safetensors. Save it with"),
    ("v", b"x", "v: a file without a suffix. Known: .npy, .safetensors."),
    ("v.safetensors", b"", "v.safetensors: file is empty."),
    ("v.safetensors", b"hello", V + "is no whole .safetensors file (Error while deserializing header"),
    ("v.safetensors", (2**60).to_bytes(8, "little") + b"{}", V + "is no whole .safetensors file (Error while des"),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("F32", [N, DIM])}, 99),
        V + "is no whole .safetensors file (Error while des",
    ),
    ("v.safetensors", safetensors_bytes({}), V + "holds no tensor."),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("F32", [N])}),
        V + "tensor 'a' is no table of vectors: its shape is (300,). Its axes",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("F32", [N, 3, 2])}),
        V + "tensor 'a' is no table of vectors: its shape is (300, 3,",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("F32", [N, 0])}),
        V + "tensor 'a' holds no vectors: its shape is (300, 0).",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("I64", [N, 2])}),
        V + "tensor 'a' holds I64, ids or labels? Save vectors as float3",
    ),
    ("v.safetensors", safetensors_bytes({"a": ("BOOL", [N, 2])}), V + "tensor 'a' holds BOOL, not numbers to read."),
    (
        "v.safetensors",
        safetensors_bytes({"layer.01/a": ("F32", [N, 2]), "b": ("F32", [N, 2])}),
        V + "tensor 'b' names no layer, others do. Name it layer.01/b, or give it a file of its own.",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"layer.01/a": ("F32", [N, 2]), "layer.02/b": ("F32", [N, 2])}),
        V + "no tensor 'layer.0",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"layer.01/a": ("F32", [N, 2]), "layer.1/a": ("F32", [N, 2])}),
        V + "two tensors are one cell. Write a layer in one way, as in layer.07/cls.",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("F32", [N, 2]), "b": ("F32", [9, 2])}),
        V + "its tensors have 9 and 300 rows. Give",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"a": ("F32", [N, 2]), "b": ("F32", [N, 3])}),
        V + "its tensors have 2 and 3 dimensions.",
    ),
    (
        "v.safetensors",
        safetensors_bytes({"\x1b[2J\n": ("F32", [N, 2])}),
        V + r"tensor '\x1b[2J\n' has no name for a readout.",
    ),
    ("v.safetensors", safetensors_bytes({"x" * 101: ("F32", [N, 2])}), V + "tensor 'xxxx"),
    (
        "v.safetensors",
        safetensors_bytes({"attention": ("F32", [N, 2])}),
        V + "tensor 'attention' has a name that stands for more",
    ),
]


@pytest.mark.parametrize(("name", "content", "line"), BROKEN, ids=[line[:60] for *_, line in BROKEN])
def test_a_broken_file_gives_a_one_line_error(tmp_path, monkeypatch, capsys, name, content, line):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "d.csv")
    (tmp_path / name).write_bytes(content)
    assert call("run", "--task", "file:d.csv", "--vectors", name, "--out", "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {line}")
    assert errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["d.csv", name])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--vectors", "w.npy"], "--vectors w.npy: no such file. Did you mean v.npy?"),
        (["--vectors", "no/v.npy"], "--vectors no/v.npy: no such file. Did you mean v.npy?"),
        (["--vectors", "."], r"--vectors \.: cannot be read \(is a directory\)"),
        (
            ["--vectors", "v.npy", "--model", "x"],
            "--model: is for an encoder, and --vectors needs none. Leave one of t",
        ),
        (["--vectors", "v.npy", "--max-length", "9"], "--max-length: is for an encoder"),
        (["--vectors", "v.npy", "--long-rows", "drop"], "--long-rows: is for an encoder"),
        (["--vectors", "v.npy", "--dtype", "bfloat16"], "--dtype: is for an encoder"),
        (["--vectors", "v.npy", "--device", "cpu"], "--device: is for an encoder"),
        (["--vectors", "v.npy", "--fast"], "--fast: is for an encoder"),
        (["--vectors", "v.npy", "--layers", "0"], r"--layers 0: v\.npy has layers 1\. Choose among them"),
        (["--vectors", "v.npy", "--readouts", "cls"], r"--readouts: unknown readout 'cls'\. One of: vector"),
        (["--vectors", "v.npy", "--text-column", "text"], r"d\.csv: no column 'text'\. Columns: label"),
        (["--vectors", "v.npy", "--task", "grammar:tense"], "--vectors: grammar: makes its rows itself"),
    ],
)
def test_conflicting_flags_are_an_error(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "d.csv")
    save_npy(tmp_path / "v.npy", draw_vectors())
    assert call("run", "--task", "file:d.csv", *arguments, "--out", "out") == 2
    assert re.match(f"error: {line}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_comparison_needs_its_readouts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "d.csv")
    save_npy(tmp_path / "v.npy", draw_vectors())
    assert call("poolings", "--task", "file:d.csv", "--vectors", "v.npy") == 2
    assert capsys.readouterr().err.startswith("error: v.npy: holds vector; this study compares other readouts with cls")


def test_errors_need_no_torch(tmp_path):
    write_table(tmp_path / "d.csv")
    save_npy(tmp_path / "v.npy", spoil(3))
    code = (
        "import sys\nfrom clsprobe.cli import main\n"
        "try: main(['run', '--task', 'file:d.csv', '--vectors', 'v.npy'])\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "assert not {'torch', 'transformers', 'sklearn', 'umap', 'scipy', 'pandas', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: v.npy: 1 row holds NaN")


def test_unused_rows_may_hold_nan(tmp_path):
    array = draw_vectors()
    array[::3] = np.nan
    vectors = read_vectors(save_npy(tmp_path / "v.npy", array))
    rows = np.array([i for i in range(N) if i % 3])
    ids = vectors.check(rows, [1], ["vector"])
    assert len(np.unique(ids[rows])) == len(rows)
    with pytest.raises(InputError, match="100 rows hold NaN"):
        vectors.check(np.arange(N), [1], ["vector"])


def test_a_file_that_changes_is_detected(tmp_path):
    vectors = read_vectors(save_npy(tmp_path / "v.npy", draw_vectors()))
    vectors.check_unchanged()
    os.utime(tmp_path / "v.npy", ns=(0, 0))
    with pytest.raises(InputError, match=r"v\.npy: changed while being read"):
        vectors.check_unchanged()


# --------------------------------------------------------------------------------------------------------------- runs


def test_a_run_without_texts(tmp_path):
    write_table(tmp_path / "d.csv")
    save_npy(tmp_path / "v.npy", plant_labels(Y).astype(np.float16))
    out = tmp_path / "out"
    flags = ("--task", f"file:{tmp_path / 'd.csv'}", "--vectors", tmp_path / "v.npy", "--out", out, "--quiet")
    assert call("run", *flags) == 0
    results = pd.read_parquet(out / "results.parquet")
    assert {"none", "shuffled", "majority"} <= set(results.control)
    assert not {"length", "bag_of_words", "layer0_mean", "untrained"} & set(results.control)
    assert set(results.model) == {"v.npy"}
    accuracies = results[(results.split == "test") & (results.metric == "accuracy")].set_index("control").value
    assert accuracies["none"] == 1
    assert accuracies["majority"] < 0.7
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "No encoder was run: the vectors are those of v.npy" in page
    assert "untrained encoder, length, bag of words" in page
    assert "Self-check" not in page
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["contents"][str(tmp_path / "v.npy")] == run["model"]["digest"]
    assert run["model"]["dtype"] == "float16"


def test_a_run_with_texts_layers_and_readouts(tmp_path):
    """Texts add baselines; cls and mean count as an encoder's readouts; readout names are escaped."""
    texts = [f"a <b>{k}</b> thing{i}" for i, k in enumerate(Y)]
    write_table(tmp_path / "d.csv", texts=texts)
    names = ("cls", "mean", "<script>x")
    cells = {
        f"layer.{layer:02d}/{name}": torch.from_numpy(draw_vectors(seed=layer)) for layer in (1, 2) for name in names
    }
    cells["layer.02/mean"] = torch.from_numpy(plant_labels(Y))
    save_file(cells, tmp_path / "v.safetensors")
    out = tmp_path / "out"
    flags = ("--task", f"file:{tmp_path / 'd.csv'}", "--vectors", tmp_path / "v.safetensors", "--allow-overlap")
    assert call("run", *flags, "--text-column", "words", "--out", out, "--quiet") == 0
    results = pd.read_parquet(out / "results.parquet")
    assert {"none", "shuffled", "majority", "length", "bag_of_words"} <= set(results.control)
    test = results[(results.split == "test") & (results.metric == "accuracy") & (results.control == "none")]
    assert set(zip(test.layer, test.readout, strict=True)) == {(layer, name) for layer in (1, 2) for name in names}
    assert test.set_index(["layer", "readout"]).value[2, "mean"] == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;" in page
    assert "<script>x" not in page
    assert (out / "answers" / "poolings.json").exists()  # other studies read the same measurement


def test_a_run_is_identified_by_the_content_of_its_vectors(tmp_path):
    from clsprobe.run import Run

    write_table(tmp_path / "d.csv")
    settings = []
    for seed in (0, 0, 1):
        save_npy(tmp_path / "v.npy", draw_vectors(seed=seed))
        settings.append(Run(task=f"file:{tmp_path / 'd.csv'}", vectors=str(tmp_path / "v.npy")).contents())
    assert settings[0] == settings[1] != settings[2]
