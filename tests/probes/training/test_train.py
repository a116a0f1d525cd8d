"""The trainer: its inputs and their order, resuming from any step, and what it can and cannot learn."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from house import ROOT
from outside import within_deadline
from sentences import DEV, TRAIN, sentences
from torch import nn
from torch.nn import functional

from clsprobe import Extractor, InputError, LogisticProbe, load_encoder
from clsprobe.probes.tasks.texts import pair
from clsprobe.probes.training import checkpoint
from clsprobe.probes.training import fine_tune as training
from clsprobe.probes.training.arrangements import ArrangedEncoder, arrange_encoder, longest_text
from clsprobe.probes.training.fine_tune import Recipe, epoch_batches, fine_tune

pytestmark = pytest.mark.usefixtures("one_thread")

READOUTS = (
    "cls", "token[1]", "token[2]", "token[-1]", "sep", "random", "mean", "max", "attention", "new@first", "new@middle",
    "new@last", "token[1]@no_cls", "cls@last", "token[1]@first", "token[1]@last",
)  # fmt: skip
FAST = Recipe(rate=1e-3, epochs=2, batch=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("bert"), layers=2)


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(str(folder), device="cpu")


def copy_weights(tuned) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tuned.network.named_parameters()}


def equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------- arrangements


@pytest.mark.parametrize(
    ("name", "tokens", "positions"),
    [
        ("cls", "[CLS] red cat runs [SEP]", None),
        ("mean", "[CLS] red cat runs [SEP]", None),
        ("cls@last", "red cat runs [SEP] [CLS]", [1, 2, 3, 4, 5]),
        ("token[1]@no_cls", "red cat runs [SEP]", [1, 2, 3, 4]),
        ("new@first", "NEW red cat runs [SEP]", None),
        ("new@middle", "red cat NEW runs [SEP]", [1, 2, 3, 3, 4]),
        ("new@last", "red cat runs [SEP] NEW", [1, 2, 3, 4, 5]),
        ("token[1]@first", "RED red cat runs [SEP]", None),
        ("token[-1]@last", "red cat runs [SEP] RUNS", [1, 2, 3, 4, 5]),
    ],
)
def test_the_tokens_that_the_encoder_reads_and_their_positions(encoder, name, tokens, positions):
    """Whatever is put in (in capitals), the other tokens have the positions 1, 2, ... that they have behind [CLS]."""
    arranged, readout = arrange_encoder(encoder, name)
    (row,) = arranged.tokenize(["red cat runs"])
    table = arranged.model.get_input_embeddings().weight
    words = ["NEW" if i == len(encoder.tokenizer) else encoder.tokenizer.convert_ids_to_tokens(int(i)) for i in row.ids]
    assert [word.lower() for word in words] == tokens.lower().split()
    assert [word.isupper() or word == "[SEP]" for word in tokens.split()] == row.special.tolist()
    assert len(table) == len(encoder.tokenizer) + ("NEW" in tokens)
    batch = arranged.batch([row])
    assert (None if batch.positions is None else batch.positions[0].tolist()) == positions
    if name not in ("mean", "token[1]@no_cls"):
        slots = [i for i, word in enumerate(tokens.split()) if word.isupper() and word != "[SEP]"]
        assert readout.position(batch).tolist() == slots


def test_token_types_of_a_pair_and_a_new_token_in_an_empty_text(encoder):
    text = pair("red cat", "runs")  # [CLS] red cat [SEP] runs [SEP]
    (moved,) = arrange_encoder(encoder, "cls@last")[0].tokenize([text])
    assert moved.types.tolist() == [0, 0, 0, 1, 1, 0]
    (new,) = arrange_encoder(encoder, "new@middle")[0].tokenize([text])
    assert new.types.tolist() == [0, 0, 0, 0, 1, 1]
    (empty,) = arrange_encoder(encoder, "new@last")[0].tokenize([""])
    assert len(empty.ids) == 2


@pytest.mark.parametrize(("kind", "spare"), [("bert", 1), ("roberta", 1), ("gpt2", 2)])
def test_the_longest_text_has_positions_for_every_arrangement(tmp_path, kind, spare):
    """In GPT-2, which has no [CLS] to take out, the new token makes the text longer as well."""
    model = load_encoder(str(models.save(kind, tmp_path / kind)), device="cpu")
    longest = model.description.longest
    assert longest_text(model, "mean") == longest
    for name in ("new@first", "new@last"):
        assert longest_text(model, name) == longest - spare
        arranged, _ = arrange_encoder(model, name)
        rows = arranged.tokenize([" ".join(["cat"] * 100), "cat"], longest)
        assert rows.lengths.max() == longest - 1
        batch = arranged.batch(rows[:])
        with torch.no_grad():
            assert arranged.forward(batch)[0].isfinite().all()


# ---------------------------------------------------------------------------------------------------------- positions


def last_hidden(encoder, batch) -> torch.Tensor:
    """(token, dim) of the only text."""
    with torch.no_grad():
        return encoder.forward(batch)[0][0]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_the_slot_does_nothing_and_the_position_id_everything(tmp_path, kind):
    """Tokens permuted with their position ids give permuted outputs; without them every token changes."""
    encoder = load_encoder(str(models.save(kind, tmp_path / kind)), device="cpu")
    batch = encoder.batch(encoder.tokenize(["the red cat sees a very big dog"]))
    order = torch.randperm(batch.ids.shape[1], generator=torch.Generator().manual_seed(0))
    positions = encoder.description.first_position + torch.arange(batch.ids.shape[1])[None]
    permuted = replace(batch, ids=batch.ids[:, order], special=batch.special[:, order])
    expected = last_hidden(encoder, batch)
    assert torch.equal(last_hidden(encoder, replace(batch, positions=positions)), expected)
    with_ids = last_hidden(encoder, replace(permuted, positions=positions[:, order]))
    assert torch.allclose(with_ids, expected[order], atol=1e-5)
    without_ids = (last_hidden(encoder, permuted) - expected[order]).abs().amax(1)
    assert without_ids.min() > 0.01


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "mpnet", "deberta-v2", "longformer", "modernbert", "gpt2", "t5"]
)
def test_the_other_tokens_keep_their_positions(tmp_path, kind):
    """A new token that they cannot see may stand first or last: they do not notice.

    The twin moves it without giving position ids: where ids decide, all tokens notice.
    """
    encoder = load_encoder(str(models.save(kind, tmp_path / kind)), device="cpu")
    (first, _), (last, _) = (arrange_encoder(encoder, f"new@{place}") for place in ("first", "last"))
    text = "the red cat sees a very big dog in the house"
    batches = [arranged.batch(arranged.tokenize([text])) for arranged in (first, last)]
    for batch, slot in zip(batches, (0, -1), strict=True):
        batch.real[0, slot] = False
    expected = last_hidden(first, batches[0])[1:]
    moved = last_hidden(last, batches[1])[:-1]
    assert torch.allclose(moved, expected, atol=1e-5)
    twin = last_hidden(last, replace(batches[1], positions=None))[:-1]
    changed = (twin - expected).abs().amax(1)
    assert changed.max() < 1e-5 if kind in ("modernbert", "t5") else changed.min() > 0.01


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bart", ["cls@last", "new@last"]),  # its encoder takes no position ids
        ("mobilebert", ["mean@no_cls"]),  # it mixes neighbours
        ("deberta-v2", ["new@middle"]),  # distances between words would grow
        ("t5", ["new@middle"]),
        ("xlnet", ["cls@last", "new@first"]),  # its [CLS] is last anyway
    ],
)
def test_an_encoder_whose_tokens_cannot_keep_their_positions_is_an_error(tmp_path, kind, names):
    encoder = load_encoder(str(models.save(kind, tmp_path / kind)), device="cpu")
    for name in names:
        with pytest.raises(InputError, match=f"--readouts {name}: .*(keep their positions|not stand first)"):
            arrange_encoder(encoder, name)


def test_the_new_token_starts_as_the_mean_and_the_encoder_is_unchanged(encoder):
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    table = encoder.model.get_input_embeddings().weight
    tuned = fine_tune(encoder, "new@first", *TRAIN, FAST, dev=DEV)
    arranged, readout = arrange_encoder(encoder, "new@first")
    wider_table = arranged.model.get_input_embeddings().weight
    assert torch.equal(wider_table[:-1], table)
    assert torch.allclose(wider_table[-1], table.mean(0))
    assert readout.name == "new@first"
    assert (tuned.encoder.model.get_input_embeddings().weight[-1] - wider_table[-1]).abs().max() > 1e-4
    after = encoder.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in encoder.model.modules())


@pytest.mark.parametrize(
    "name", ["cls@first", "new", "new@end", "mean@last", "token[1]@middle", "clss", "cls@no_cls", "last4(cls)"]
)
def test_an_unknown_readout_is_an_error(encoder, name):
    with pytest.raises(InputError, match="--readouts"):
        arrange_encoder(encoder, name)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("name", ["cls", "cls@last", "mean@no_cls"])
def test_a_readout_that_the_model_lacks_is_an_error(tmp_path, kind, name):
    model = load_encoder(str(models.save(kind, tmp_path / kind)), device="cpu")
    with pytest.raises(InputError, match="adds no cls token"):
        fine_tune(model, name, *TRAIN, FAST, dev=DEV)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "gpt2", "modernbert", "t5", "albert", "deberta-v2", "xlnet"])
def test_other_architectures_learn_too(tmp_path, kind):
    """In a model with a final norm, the readout follows it, and the norm is trained."""
    untuned = load_encoder(str(models.save(kind, tmp_path / kind)), device="cpu")
    for name in ("token[-1]", "max" if kind == "xlnet" else "new@last"):
        tuned = fine_tune(untuned, name, *TRAIN, Recipe(rate=1e-3, epochs=1, batch=32), dev=DEV)
        assert np.isfinite([step.loss for step in tuned.log]).all()
    if untuned.norm is not None:
        after = tuned.encoder.norm
        assert any((a - b).abs().max() > 0 for a, b in zip(untuned.norm.parameters(), after.parameters(), strict=True))


# --------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("equal", [False, True])
def test_an_epoch_has_every_text_once_in_batches_of_similar_length(equal):
    lengths = np.random.default_rng(0).integers(3, 40, 1000)
    batches = epoch_batches(lengths, 32, 0, 0, equal=equal)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert max(map(len, batches)) == 32
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()
    if equal:
        assert padded == lengths.sum()
    order = np.random.default_rng(0).permutation(1000)
    unsorted = sum(len(part) * lengths[part].max() for part in np.array_split(order, 32))
    assert unsorted > 1.4 * padded


def test_the_order_is_random_and_depends_on_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(3, 40, 500)
    first, same_seed, other_seed, next_epoch = (
        np.concatenate(epoch_batches(lengths, 32, *seed_and_epoch)).tolist()
        for seed_and_epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first == same_seed
    assert first != other_seed
    assert first != next_epoch
    longest = [lengths[batch].max() for batch in epoch_batches(lengths, 32, 0, 0)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_all_readouts_see_the_same_texts_at_the_same_steps(encoder):
    tuned = [fine_tune(encoder, name, *TRAIN, Recipe(epochs=1), dev=DEV) for name in READOUTS]
    assert len({run.order for run in tuned}) == 1
    assert fine_tune(encoder, "cls", *TRAIN, Recipe(epochs=1, seed=1), dev=DEV).order != tuned[0].order


# -------------------------------------------------------------------------------------------------------- training


def test_training_equals_a_plain_loop(encoder):
    """AdamW, warm-up, decay and clipping of PyTorch in a plain loop."""
    recipe = Recipe(rate=1e-3, epochs=2, batch=16, seed=3)
    tuned = fine_tune(encoder, "cls", *TRAIN, recipe, dev=DEV)

    from copy import deepcopy

    model = deepcopy(encoder.model).requires_grad_(True)
    head = nn.Linear(models.DIM, 2)
    with torch.no_grad():
        head.weight.copy_(torch.randn(2, models.DIM, generator=torch.Generator().manual_seed(3)) * 0.02)
        head.bias.zero_()
    groups = [
        {"params": [p for p in part.parameters() if (p.ndim > 1) == matrix], "lr": rate, "weight_decay": decay}
        for part, rate in ((model, 1e-3), (head, recipe.head_rate))
        for matrix, decay in ((False, 0.0), (True, 0.01))
    ]
    optimiser = torch.optim.AdamW(groups)
    steps = [batch for epoch in training.schedule_batches(encoder, TRAIN[0], recipe) for batch in epoch]
    warm, total = round(0.1 * len(steps)), len(steps)

    def share(step):
        return (step + 1) / warm if step < warm else (total - step) / (total - warm + 1)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    y = torch.from_numpy(TRAIN[1])
    for chosen in steps:
        inputs = encoder.tokenizer([TRAIN[0][i] for i in chosen], padding=True, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state[:, 0]
        functional.cross_entropy(head(hidden), y[chosen]).backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()
    for name, tensor in tuned.network.model.named_parameters():
        if "key.bias" not in name:  # attention does not depend on it: its gradient is rounding, and Adam takes its sign
            assert torch.allclose(tensor, model.get_parameter(name), atol=2e-5), name
    assert torch.allclose(tuned.network.head.weight, head.weight, atol=2e-5)


def unscaled_weights(probe: LogisticProbe) -> tuple[np.ndarray, np.ndarray]:
    """Weights (class, dim) and intercepts (class,) of a probe of one cell, for features that are not standardised."""
    weights = probe.coef_[0, 0] / probe.scale_[0]
    return weights, probe.intercept_[0, 0] - weights @ probe.mean_[0]


@pytest.mark.parametrize("name", ["cls", "mean", "token[-1]", "cls@last", "max"])
def test_without_training_the_encoder_it_equals_the_probe(encoder, name):
    arranged, readout = arrange_encoder(encoder, name)
    states = Extractor(arranged, [readout], layers=[2])([*TRAIN[0], *DEV[0]])
    X, y = states.cell(2, readout.name)[None], np.concatenate([TRAIN[1], DEV[1]])
    n = len(TRAIN[0])
    probe = LogisticProbe(C=10.0).fit_cells(X[:, :n], y[:n, None])
    recipe = Recipe(rate=0, head_rate=0, epochs=1)
    tuned = fine_tune(encoder, name, *TRAIN, recipe, dev=DEV, head=unscaled_weights(probe))
    log_proba = tuned.log_proba(DEV[0])
    expected = probe.log_proba_cells(X[:, n:])[0, 0]
    assert np.abs(log_proba - expected).max() < 1e-3
    frozen = dict(encoder.model.named_parameters())
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in tuned.network.model.named_parameters())
    # the probe's own weights are for standardised features: with them it is another classifier
    unscaled = fine_tune(encoder, name, *TRAIN, recipe, dev=DEV, head=(probe.coef_[0, 0], probe.intercept_[0, 0]))
    assert np.abs(unscaled.log_proba(DEV[0]) - expected).max() > 0.01


def test_shuffled_labels_are_at_chance(encoder):
    texts, _ = sentences(400, seed=5)
    labels = np.random.default_rng(0).permutation(np.arange(400) % 2)
    tuned = fine_tune(encoder, "mean", texts[:200], labels[:200], FAST, dev=(texts[200:], labels[200:]))
    score = (tuned.log_proba(texts[200:]).argmax(1) == labels[200:]).mean()
    assert abs(score - 0.5) < 3.3 * 0.5 / 200**0.5


def test_without_attention_only_the_last_token_learns_its_label(encoder):
    """Attention with zero weights passes nothing between tokens, and gets no gradient."""
    from copy import deepcopy

    model = deepcopy(encoder.model)
    with torch.no_grad():
        for layer in model.encoder.layer:
            for part in (layer.attention.self.value, layer.attention.output.dense):
                part.weight.zero_()
                part.bias.zero_()
    without_attention = replace(encoder, model=model)
    (texts, y), (dev_texts, labels) = sentences(480, seed=7), sentences(200, seed=8)
    scores = {
        name: fine_tune(
            without_attention,
            name,
            texts,
            y,
            Recipe(rate=3e-3, head_rate=5e-2, epochs=2, batch=8),
            dev=(dev_texts, labels),
        )
        .log[-1]
        .dev
        for name in ("token[-1]", "cls", "token[1]", "sep", "new@last")
    }
    assert scores.pop("token[-1]") > 0.98
    assert max(scores.values()) < 0.62


def test_attention_starts_as_the_mean_and_can_change(encoder):
    still = Recipe(rate=0, head_rate=0, epochs=1)
    mean, learned = (fine_tune(encoder, name, *TRAIN, still, dev=DEV) for name in ("mean", "attention"))
    assert np.allclose(mean.log_proba(DEV[0]), learned.log_proba(DEV[0]), atol=1e-5)
    moved = fine_tune(encoder, "attention", *TRAIN, FAST, dev=DEV)
    assert moved.network.query.abs().max() > 1e-3


def test_a_batch_in_parts_gives_the_same_weights(encoder, monkeypatch):
    uninterrupted = copy_weights(fine_tune(encoder, "mean", *TRAIN, FAST, dev=DEV))
    monkeypatch.setitem(training.BUDGET, "cpu", 40)
    parts = copy_weights(fine_tune(encoder, "mean", *TRAIN, FAST, dev=DEV))
    assert not equal_weights(uninterrupted, parts)
    assert all(
        torch.allclose(uninterrupted[name], parts[name], atol=3e-5) for name in uninterrupted if "key.bias" not in name
    )


def test_bfloat16_keeps_weights_in_float32(encoder):
    exact = fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV)
    half = fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, dtype="bfloat16")
    assert {tensor.dtype for tensor in copy_weights(half).values()} == {torch.float32}
    assert abs(half.log[0].loss - exact.log[0].loss) < 0.02
    assert not equal_weights(copy_weights(half), copy_weights(exact))
    assert encoder.model.config._attn_implementation == "sdpa"


def test_the_callback_is_called_at_its_steps(encoder):
    calls = []
    tuned = fine_tune(
        encoder,
        "cls",
        *TRAIN,
        FAST,
        dev=DEV,
        callback_steps=(0, 1, 5, 12),
        callback=lambda step, current: calls.append((step, current)),
    )
    assert [step for step, _ in calls] == [0, 1, 5, 12]
    assert len(tuned.log) == 12
    assert [step.step for step in tuned.log if not np.isnan(step.dev)] == [6, 12]


def test_adapters_do_not_change_the_weights(encoder):
    pytest.importorskip("peft")
    tuned = fine_tune(encoder, "cls", *TRAIN, Recipe(rate=1e-2, epochs=1, batch=16, lora=2), dev=DEV)
    learned = {name for name, tensor in tuned.network.named_parameters() if tensor.requires_grad}
    assert all("lora_" in name or name.startswith("head.") for name in learned)
    before = dict(encoder.model.named_parameters())
    base_weights = {
        name.replace("model.", "", 1).replace(".base_layer", ""): tensor for name, tensor in copy_weights(tuned).items()
    }
    assert all(torch.equal(tensor, base_weights[name]) for name, tensor in before.items())
    assert any(tensor.abs().max() > 0 for name, tensor in copy_weights(tuned).items() if "lora_B" in name)


def test_with_adapters_only_the_row_of_a_new_token_is_learned(encoder, monkeypatch):
    """Without peft's adapters only the new token changes."""
    monkeypatch.setattr(training, "_add_adapters", lambda model, rank, name: model.requires_grad_(False))
    tuned = fine_tune(encoder, "new@first", *TRAIN, Recipe(rate=1e-2, epochs=1, batch=16, lora=2), dev=DEV)
    known = encoder.model.get_input_embeddings().weight
    table = tuned.network.model.get_input_embeddings().weight
    assert torch.equal(table[:-1], known)
    assert not torch.allclose(table[-1], known.mean(0))


# ----------------------------------------------------------------------------------------------------- checkpoints


class Killed(BaseException):
    """An exception that no code handles."""


def stop_and_resume(encoder, name, path, last_step):
    """Stop after a step, then resume from the last checkpoint."""

    def stop(step, _):
        raise Killed

    with pytest.raises(Killed):
        fine_tune(encoder, name, *TRAIN, FAST, dev=DEV, checkpoint=path, callback_steps=[last_step], callback=stop)
    return fine_tune(encoder, name, *TRAIN, FAST, dev=DEV, checkpoint=path)


@pytest.mark.parametrize(("name", "last_step", "every"), [("cls", 1, 1), ("attention", 7, 3), ("new@first", 11, 2)])
def test_stopped_and_resumed_ends_with_the_same_bits(encoder, tmp_path, monkeypatch, name, last_step, every):
    uninterrupted = fine_tune(encoder, name, *TRAIN, FAST, dev=DEV)
    write = checkpoint.Checkpoint.write
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(
        checkpoint.Checkpoint,
        "write",
        lambda self, step, *arguments: write(self, step, *arguments) if step % every == 0 else None,
    )
    resumed = stop_and_resume(encoder, name, tmp_path / "a.safetensors", last_step)
    assert equal_weights(copy_weights(uninterrupted), copy_weights(resumed))
    assert [step[:2] for step in uninterrupted.log] == [step[:2] for step in resumed.log]


def test_without_the_state_of_the_optimiser_the_bits_would_differ(encoder, tmp_path, monkeypatch):
    """The wrong version restores the weights only."""
    uninterrupted = fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    read = checkpoint.Checkpoint.read

    def read_without_state(self, parameters, optimiser):
        saved = read(self, parameters, optimiser)
        optimiser.state.clear()
        return saved

    monkeypatch.setattr(checkpoint.Checkpoint, "read", read_without_state)
    resumed = stop_and_resume(encoder, "cls", tmp_path / "a.safetensors", 7)
    assert not equal_weights(copy_weights(uninterrupted), copy_weights(resumed))


PROGRAM = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from clsprobe import load_encoder
from clsprobe.probes.training import fine_tune as training
from sentences import DEV, TRAIN
training.CHECKPOINT_SECONDS = -1.0
encoder = load_encoder({folder!r}, device="cpu")
def print_step(step, _):
    print(step, flush=True)
recipe = training.Recipe(rate=1e-3, epochs=12, batch=16)
tuned = training.fine_tune(
    encoder, "mean", *TRAIN, recipe, dev=DEV, checkpoint=Path({path!r}), callback_steps=range(1, 100),
    callback=print_step)
from safetensors.torch import save_file
save_file({{name: tensor.detach() for name, tensor in tuned.network.named_parameters()}}, {out!r})
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_steps_and_resumed_ends_with_the_same_bits(folder, tmp_path, kills):
    from safetensors.torch import load_file

    random = np.random.default_rng(kills)

    def child(path, out):
        code = PROGRAM.format(tests=str(ROOT / "tests" / "support"), folder=str(folder), path=str(path), out=str(out))
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    for kill, last_step in enumerate(np.sort(random.integers(1, 60, kills))):
        with child(tmp_path / "c.safetensors", tmp_path / "never") as process:
            for line in process.stdout:
                if int(line) >= last_step:
                    process.send_signal(signal.SIGKILL)
        assert process.returncode in (-signal.SIGKILL, 0), kill
    for path, out in ((tmp_path / "c.safetensors", tmp_path / "a"), (tmp_path / "d.safetensors", tmp_path / "b")):
        with child(path, out) as process:
            process.communicate()
        assert process.returncode == 0
    assert equal_weights(load_file(tmp_path / "a"), load_file(tmp_path / "b"))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_an_error(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "a.safetensors"
    fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path)
    for name, recipe, texts in (
        ("mean", FAST, TRAIN),
        ("cls", Recipe(rate=2e-3, epochs=2, batch=16), TRAIN),
        ("cls", FAST, sentences(96, seed=9)),
    ):
        with pytest.raises(InputError, match="checkpoint of another run"):
            fine_tune(encoder, name, *texts, recipe, dev=DEV, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is damaged"):
        fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path)
    assert path.read_bytes() == content[: len(content) // 2]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"is damaged \(.*not a regular file"):
        within_deadline(lambda: fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path), path)


def test_a_checkpoint_of_another_architecture_is_an_error(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "a.safetensors"
    fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path)
    roberta = load_encoder(str(models.save("roberta", tmp_path / "roberta")), device="cpu")
    with pytest.raises(InputError, match="checkpoint of another run"):
        fine_tune(roberta, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path)


def test_no_room_for_checkpoints_is_an_error_before_the_first_step(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1000})())
    calls = []
    with pytest.raises(InputError, match="no room for checkpoints"):
        fine_tune(
            encoder,
            "cls",
            *TRAIN,
            FAST,
            dev=DEV,
            checkpoint=tmp_path / "a",
            callback_steps=[0],
            callback=lambda *_: calls.append(1),
        )
    assert not calls
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_last_checkpoint(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "a.safetensors"
    uninterrupted = fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV)
    real, count = checkpoint.replacing, [0]

    def fail_when_full(target):
        count[0] += 1
        if count[0] == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(target)

    monkeypatch.setattr(checkpoint, "replacing", fail_when_full)
    with pytest.raises(InputError, match="no room for checkpoints"):
        fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    resumed = fine_tune(encoder, "cls", *TRAIN, FAST, dev=DEV, checkpoint=path)
    assert equal_weights(copy_weights(uninterrupted), copy_weights(resumed))


def test_a_copy_of_a_word_is_read_by_an_extractor_where_there_is_one(encoder):
    arranged, readout = arrange_encoder(encoder, "token[2]@last")
    vectors = Extractor(arranged, [readout], layers=[2])(["red cat", "cat", "red red cat"]).cell(2, "token[2]@last")
    assert np.isnan(vectors).all(1).tolist() == [False, True, False]
    with pytest.raises(InputError, match="shorter"):
        fine_tune(encoder, "token[2]@last", ["cat"] * 40, np.arange(40) % 2, Recipe(), dev=DEV)


def test_fewer_texts_than_a_batch_are_an_error(encoder):
    with pytest.raises(InputError, match="31 training texts are fewer than a batch of 32"):
        fine_tune(encoder, "cls", TRAIN[0][:31], TRAIN[1][:31], Recipe(), dev=DEV)


def test_texts_that_lack_the_readout_are_an_error(encoder):
    with pytest.raises(InputError, match="shorter"):
        fine_tune(encoder, "token[2]", ["cat"] * 40, np.arange(40) % 2, Recipe(), dev=DEV)


def test_a_rate_that_diverges_is_an_error(encoder):
    with pytest.raises(InputError, match="diverged"):
        fine_tune(encoder, "cls", *TRAIN, Recipe(rate=1e30, epochs=2, batch=16), dev=DEV)


def test_an_arranged_encoder_works_in_an_extractor(encoder):
    arranged, readout = arrange_encoder(encoder, "cls@last")
    assert isinstance(arranged, ArrangedEncoder)
    states = Extractor(arranged, ["token[1]", readout], layers=[0, 2])(TRAIN[0][:10])
    plain = Extractor(encoder, ["cls", "token[1]"], layers=[0, 2])(TRAIN[0][:10])
    assert np.allclose(states.cell(0, "token[1]"), plain.cell(0, "token[1]"), atol=1e-5)  # its position is the same
    assert np.abs(states.cell(2, "token[1]") - plain.cell(2, "token[1]")).max() > 1e-3
    assert np.abs(states.cell(0, "cls@last") - plain.cell(0, "cls")).max() > 1e-3
