"""However a `tap` is left, the model is unchanged afterwards, in every architecture.

1. `Watched` is an encoder with foreign hooks on every module, and its initial state: hooks and their order, modes,
   gradients, attributes, random numbers, and the output and hook calls of a plain pass.
2. `PATHS` are the ways to leave a tap. All are taken on the same encoder, one after the other, and each must restore
   the initial state, so nothing may accumulate.
3. `TWINS` are broken taps. The same comparison detects each on the paths where it does harm, and only there.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import models
import numpy as np
import pytest
import torch
from architectures import RUNNING, few_characters, fitting_texts, installed_hooks
from models import model_type
from transformers.utils import logging
from vectors import stack_cells

from clsprobe.probes.encoders.adapters import ADAPTERS, Adapter, Point
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.selfcheck import self_check
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.encoders.tokenizing import Batch
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.readouts import Readout

pytestmark = pytest.mark.usefixtures("one_thread")

HOOKS = [name for name, value in vars(torch.nn.Module()).items() if "hook" in name and isinstance(value, dict)]

Tap = Callable[..., AbstractContextManager[None]]
Act = Callable[[], Any]


class Planted(Exception):
    """Raised by these tests only."""


class Watched:
    """An encoder under watch.

    texts: suitable for it. runs: how often its blocks run in one pass. calls: the calls of the foreign hooks.
    initial: its initial state.
    """

    def __init__(self, encoder: Encoder) -> None:
        # All short: between short and long texts BigBird replaces modules, and with them their foreign hooks.
        self.encoder, self.texts = encoder, [text for text in fitting_texts(encoder) if len(text.split()) <= 5][:3]
        self.batch = encoder.batch(encoder.tokenize(self.texts[:2]))
        self.forward()
        self.calls: list[str] = []
        with act_in_block(encoder, lambda: self.calls.append("a block")):
            self.forward()
        self.runs = len(self.calls)
        for name, module in encoder.model.named_modules():
            module.register_forward_pre_hook(lambda *args, name=name: self.calls.append(f"into {name}"))
            module.register_forward_hook(lambda *args, name=name: self.calls.append(f"out of {name}"), always_call=True)
        encoder.model.register_forward_hook(lambda *args: self.calls.append("behind the others"))
        self.initial = self.state() | self.run_pass()

    def layers(self) -> list[int]:
        return list(range(len(self.encoder.points)))

    def forward(self) -> Any:
        return self.encoder.forward(self.batch)

    def state(self) -> dict[str, Any]:
        """Everything that a tap could leave behind and that is visible without a pass."""
        modules = dict(self.encoder.model.named_modules())
        return {
            "hooks": {  # as lists: dictionaries do not compare their order
                (name, kind): list(hooks.items())
                for name, module in modules.items()
                for kind in HOOKS
                if (hooks := vars(module)[kind])
            },
            "hooks of all modules": {
                name: list(hooks.items())
                for name, hooks in vars(torch.nn.modules.module).items()
                if name.startswith("_global") and isinstance(hooks, dict)
            },
            "modes": {name: module.training for name, module in modules.items()},
            "attributes": {name: set(vars(module)) for name, module in modules.items()},
            "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            "parameters": {
                (name, key): parameter.requires_grad
                for name, module in modules.items()
                for key, parameter in module._parameters.items()
                if parameter is not None
            },
            "randomness": (
                b"" if self.encoder.model.training else torch.get_rng_state().numpy().tobytes(),  # dropout draws
                np.random.get_state()[1].tobytes(),  # noqa: NPY002
                random.getstate(),
            ),
            "messages": (logging.get_verbosity(), logging.is_progress_bar_enabled()),
        }

    def run_pass(self) -> dict[str, Any]:
        """The output of a plain pass, and the foreign hooks that it calls, in order."""
        self.calls.clear()
        with torch.random.fork_rng(devices=[]):  # for dropout
            torch.default_generator.manual_seed(0)
            output = self.forward()[0].numpy().tobytes()
        return {"output": output, "calls": list(self.calls)}

    def assert_same_state(self, after: str = "") -> None:
        for name, value in self.state().items():  # one by one, for short messages
            assert value == self.initial[name], f"{name} {after}"

    def assert_unchanged(self, after: str = "") -> None:
        self.assert_same_state(after)  # first: a hook that was left behind may raise in a pass
        for name, value in self.run_pass().items():
            assert value == self.initial[name], f"{name} {after}"


def load_watched(shape: str, folder: Path) -> Watched:
    with few_characters():
        return Watched(load_encoder(str(models.save(shape, folder))))


@pytest.fixture(scope="module", params=RUNNING)
def watched(request, tmp_path_factory) -> Watched:
    """Every architecture; all its tests share one encoder."""
    return load_watched(request.param, tmp_path_factory.mktemp(request.param))


@contextmanager
def act_in_block(encoder: Encoder, act: Act, run_number: int | None = None) -> Iterator[None]:
    """Within the block, `act` is called before one run of the model's blocks.

    run_number: counted from 1; None: before every run. It uses no hook, since hooks are under test.
    """
    count = 0

    def acting_before(forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if run_number in (None, count):
                act()
            return forward(*args, **kwargs)

        return counted

    blocks = dict.fromkeys(encoder.model.get_submodule(point.module) for point in encoder.points if point.module)
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(patch.object(block, "forward", acting_before(block.forward)))
        yield


def raise_error(error: BaseException) -> Act:
    def act(*args: Any) -> None:
        raise error

    return act


def ignore(layer: int, hidden: torch.Tensor) -> None:
    """A reader that reads nothing."""


def act_in_reader(act: Act, chosen_layer: int) -> Callable[[int, torch.Tensor], None]:
    """A reader that acts at one layer."""
    return lambda layer, hidden: act() if layer == chosen_layer else None


# ------------------------------------------------------------------------------------------------------------ the paths


def leaves_normally(tap: Tap, watched: Watched) -> None:
    layers: list[int] = []
    with tap(watched.encoder, lambda layer, hidden: layers.append(layer)):
        watched.forward()
    assert layers == watched.layers()


def _fails_in_a_block(tap: Tap, watched: Watched, run_number: int, error: BaseException) -> None:
    layers: list[int] = []
    with (
        pytest.raises(type(error)) as caught,
        act_in_block(watched.encoder, raise_error(error), run_number),
        tap(watched.encoder, lambda layer, hidden: layers.append(layer)),
    ):
        watched.forward()
    assert caught.value is error
    assert len(layers) < len(watched.layers())


def fails_in_the_first_block(tap: Tap, watched: Watched) -> None:
    _fails_in_a_block(tap, watched, 1, Planted())


def fails_in_a_middle_block(tap: Tap, watched: Watched) -> None:
    _fails_in_a_block(tap, watched, 1 + watched.runs // 2, Planted())


def fails_in_the_last_block(tap: Tap, watched: Watched) -> None:
    _fails_in_a_block(tap, watched, watched.runs, Planted())


def interrupted_in_a_block(tap: Tap, watched: Watched) -> None:
    _fails_in_a_block(tap, watched, 1 + watched.runs // 2, KeyboardInterrupt())


def _fails_in_the_reader(tap: Tap, watched: Watched, error: BaseException) -> None:
    for layer in (0, watched.layers()[-1] // 2, watched.layers()[-1]):
        with pytest.raises(type(error)) as caught, tap(watched.encoder, act_in_reader(raise_error(error), layer)):
            watched.forward()
        assert caught.value is error
        watched.assert_same_state()


def fails_in_the_reader(tap: Tap, watched: Watched) -> None:
    _fails_in_the_reader(tap, watched, Planted())


def interrupted_in_the_reader(tap: Tap, watched: Watched) -> None:
    _fails_in_the_reader(tap, watched, KeyboardInterrupt())


def fails_before_any_pass(tap: Tap, watched: Watched) -> None:
    for error in (Planted(), StopIteration(), GeneratorExit(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, tap(watched.encoder, ignore):
            raise error
        assert caught.value is error
        watched.assert_same_state()


def fails_while_it_hooks(tap: Tap, watched: Watched) -> None:
    """The last module to hook does not exist."""

    def points(adapter: Adapter, layers: int, config: dict[str, Any]) -> list[Point]:
        return [*watched.encoder.adapter.points(layers, config), Point("not.there", "out")]

    broken = replace(watched.encoder, adapter=replace(watched.encoder.adapter, find_points=points))
    with pytest.raises(AttributeError, match="not"), tap(broken, ignore):
        raise AssertionError("never reached")


def fails_in_an_inner_tap(tap: Tap, watched: Watched) -> None:
    """The outer tap continues; where the error is not caught, both are left."""
    layers: list[int] = []
    last = watched.layers()[-1]
    with tap(watched.encoder, lambda layer, hidden: layers.append(layer)):
        outer = installed_hooks(watched.encoder.model)
        for layer in (0, last):
            with pytest.raises(Planted), tap(watched.encoder, act_in_reader(raise_error(Planted()), layer), [layer]):
                watched.forward()
        assert installed_hooks(watched.encoder.model) == outer
        layers.clear()
        watched.forward()
        assert layers == watched.layers()
    watched.assert_same_state()
    with (
        pytest.raises(Planted),
        tap(watched.encoder, ignore),
        tap(watched.encoder, act_in_reader(raise_error(Planted()), last)),
    ):
        watched.forward()


def left_by_return_and_break(tap: Tap, watched: Watched) -> None:
    def first() -> int:
        layers: list[int] = []
        with tap(watched.encoder, lambda layer, hidden: layers.append(layer)):
            watched.forward()
            return layers[0]

    assert first() == 0
    watched.assert_same_state()
    for _ in range(2):
        with tap(watched.encoder, ignore):
            watched.forward()
            break


def left_by_a_generator(tap: Tap, watched: Watched) -> None:
    """A generator that is closed, thrown into or dropped while suspended in the block; its caller keeps gradients."""

    def passes() -> Iterator[list[int]]:
        layers: list[int] = []
        with tap(watched.encoder, lambda layer, hidden: layers.append(layer)):
            for _ in range(3):
                watched.forward()
                yield layers

    for leave in ("close", "throw", "forget"):
        running = passes()
        assert next(running) == watched.layers()
        assert torch.is_grad_enabled() == watched.initial["gradients"][0]
        if leave == "close":
            running.close()
        elif leave == "throw":
            with pytest.raises(Planted):
                running.throw(Planted())
        del running
        watched.assert_same_state()


def out_of_memory(tap: Tap, watched: Watched) -> None:
    """All three kinds of error, the second a real one; a smaller batch can follow within the same block."""
    smaller = watched.encoder.batch(watched.encoder.tokenize(watched.texts[:1]))
    for act, kind in (
        (raise_error(torch.OutOfMemoryError("CUDA out of memory.")), torch.OutOfMemoryError),
        (lambda: torch.empty(1 << 58, dtype=torch.uint8), RuntimeError),
        (raise_error(MemoryError()), MemoryError),
    ):
        layers: list[int] = []
        with tap(watched.encoder, lambda layer, hidden, layers=layers: layers.append(layer)):
            with pytest.raises(kind, match=None if kind is MemoryError else "memory"):  # noqa: SIM117
                with act_in_block(watched.encoder, act, watched.runs):
                    watched.forward()
            layers.clear()
            watched.encoder.forward(smaller)
            assert layers == watched.layers()
        watched.assert_same_state()
        with pytest.raises(kind), act_in_block(watched.encoder, act, 1), tap(watched.encoder, ignore):
            watched.forward()
        watched.assert_same_state()


def a_warning_is_an_error(tap: Tap, watched: Watched) -> None:
    def warn() -> None:
        warnings.warn("planted", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            pytest.raises(UserWarning, match="planted"),
            act_in_block(watched.encoder, warn, 2),
            tap(watched.encoder, ignore),
        ):
            watched.forward()
        watched.assert_same_state()
        with (
            pytest.raises(UserWarning, match="planted"),
            tap(watched.encoder, act_in_reader(warn, watched.layers()[-1])),
        ):
            watched.forward()


@contextmanager
def in_training(watched: Watched) -> Iterator[None]:
    """Within the block, some modules are in training mode and some are not."""
    before, modes = watched.initial, [(module, module.training) for module in watched.encoder.model.modules()]
    for i, (module, _) in enumerate(modes):
        module.training = i % 3 < 2
    watched.initial = watched.state() | watched.run_pass()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        watched.initial = before
        for module, mode in modes:
            module.training = mode


def in_training_mode(tap: Tap, watched: Watched) -> None:
    with in_training(watched):
        for path in (leaves_normally, fails_in_a_middle_block, interrupted_in_the_reader):
            path(tap, watched)
            watched.assert_unchanged()


def without_gradients(tap: Tap, watched: Watched) -> None:
    with torch.no_grad():
        for path in (leaves_normally, fails_in_the_last_block):
            path(tap, watched)
            assert not torch.is_grad_enabled()
            with torch.enable_grad():
                watched.assert_same_state()


PATHS = (
    leaves_normally,
    fails_in_the_first_block,
    fails_in_a_middle_block,
    fails_in_the_last_block,
    fails_in_the_reader,
    interrupted_in_a_block,
    interrupted_in_the_reader,
    fails_before_any_pass,
    fails_while_it_hooks,
    fails_in_an_inner_tap,
    left_by_return_and_break,
    left_by_a_generator,
    out_of_memory,
    a_warning_is_an_error,
    in_training_mode,
    without_gradients,
)


def test_every_architecture_is_tested():
    assert {model_type(shape) for shape in RUNNING} == set(ADAPTERS)


def test_a_tap_leaves_nothing_behind(watched):
    for path in PATHS:
        path(tap, watched)
        watched.assert_unchanged(after=path.__name__)


# ----------------------------------------------------------------------------------------------------- users of the tap


class Failing(Readout):
    """A readout that raises."""

    name = "failing"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def read(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        raise self.error


def test_an_extractor_leaves_nothing_behind(watched):
    extract = Extractor(watched.encoder, ["mean"], max_tokens_per_batch=1)
    extract(watched.texts)
    watched.assert_unchanged()
    for error in (Planted(), KeyboardInterrupt()):
        for run_number in (1, watched.runs + 1):  # in the first batch, and in the second
            with pytest.raises(type(error)), act_in_block(watched.encoder, raise_error(error), run_number):
                extract(watched.texts)
            watched.assert_same_state()
        with pytest.raises(InputError):  # a readout of somebody else is at fault, whatever it raises
            Extractor(watched.encoder, ["mean", Failing(error)])(watched.texts)
        watched.assert_same_state()
    full = torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")
    # Out of memory once, and always: the extractor may try smaller batches.
    for error, run_number in zip(full, (watched.runs, None), strict=True):
        with suppress(type(error), InputError), act_in_block(watched.encoder, raise_error(error), run_number):
            extract(watched.texts)
        watched.assert_same_state()
    with pytest.raises(InputError, match="exceed"):
        extract(["cat " * 1000])
    watched.assert_unchanged()


def test_an_extractor_restores_training_modes(watched):
    extract = Extractor(watched.encoder, ["mean"])
    expected = stack_cells(extract(watched.texts))
    with in_training(watched):
        assert np.array_equal(stack_cells(extract(watched.texts)), expected, equal_nan=True)  # no dropout
        watched.assert_unchanged()
        with pytest.raises(Planted), act_in_block(watched.encoder, raise_error(Planted()), watched.runs):
            extract(watched.texts)
        watched.assert_unchanged()


def test_a_self_check_leaves_nothing_behind(watched):
    assert self_check(watched.encoder) == watched.encoder.checked
    watched.assert_unchanged()
    for error in (Planted(), KeyboardInterrupt()):
        for run_number in (1, 2 * watched.runs):
            with pytest.raises(type(error)), act_in_block(watched.encoder, raise_error(error), run_number):
                self_check(watched.encoder)
            watched.assert_same_state()
    watched.assert_unchanged()


def test_a_forward_pass_leaves_nothing_behind(watched):
    """Also one that fails: transformers' verbosity and gradient mode are restored."""
    for error in (Planted(), KeyboardInterrupt()):
        with pytest.raises(type(error)), act_in_block(watched.encoder, raise_error(error), 1):
            watched.forward()
        watched.assert_same_state()
    watched.assert_unchanged()


def test_modes_are_restored_where_a_pass_replaces_modules(tmp_path):
    """BigBird uses another attention module for short texts than for long ones."""
    encoder = load_encoder(str(models.save("big_bird", tmp_path)))
    long = max(fitting_texts(encoder), key=len)
    for texts in ([long], ["cat"], [long]):
        for i, module in enumerate(encoder.model.modules()):
            module.training = i % 3 < 2
        before = {name: module.training for name, module in encoder.model.named_modules()}
        Extractor(encoder, ["mean"])(texts)
        after = {name: module.training for name, module in encoder.model.named_modules()}
        for name, mode in after.items():  # a new module has the mode of its parent
            assert mode == before.get(name, after[name.rpartition(".")[0]]), name


def test_a_self_check_gives_the_same_result_in_training_mode(tmp_path):
    encoder = load_encoder(str(models.save("bert", tmp_path)))
    encoder.model.train()
    assert self_check(encoder) == encoder.checked
    assert all(module.training for module in encoder.model.modules())


@pytest.mark.parametrize("limit", [4, 5, 6, 7])
def test_a_self_check_pads_however_short_the_longest_text(limit, tmp_path):
    encoder = load_encoder(str(models.save("bert", tmp_path)))
    encoder = replace(encoder, description=replace(encoder.description, max_length=limit))
    padded: list[bool] = []
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: padded.append(not kwargs["attention_mask"].all()), with_kwargs=True
    )
    self_check(encoder)
    assert any(padded)


# ------------------------------------------------------------------------------------------------------------ the twins

_OPEN_TAPS: list[Any] = []  # a tap without references would close itself when collected


def _enter(*args: Any) -> AbstractContextManager[None]:
    opened = tap(*args)
    _OPEN_TAPS.append(opened)
    opened.__enter__()
    return opened


@contextmanager
def forgets_after_an_error(*args: Any) -> Iterator[None]:
    inner = _enter(*args)
    yield
    inner.__exit__(None, None, None)


@contextmanager
def forgets_after_an_interrupt(*args: Any) -> Iterator[None]:
    inner = _enter(*args)
    try:
        yield
    except Exception:
        inner.__exit__(None, None, None)
        raise
    inner.__exit__(None, None, None)


@contextmanager
def clears_every_hook(encoder: Encoder, *args: Any) -> Iterator[None]:
    try:
        with tap(encoder, *args):
            yield
    finally:
        for module in encoder.model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()


@contextmanager
def removes_one_hook_too_many(encoder: Encoder, *args: Any) -> Iterator[None]:
    try:
        with tap(encoder, *args):
            yield
    finally:
        if hooks := encoder.model._forward_pre_hooks:
            hooks.popitem()


@contextmanager
def puts_the_hooks_in_another_order(encoder: Encoder, *args: Any) -> Iterator[None]:
    with tap(encoder, *args):
        yield
    encoder.model._forward_hooks.move_to_end(next(iter(encoder.model._forward_hooks)))


@contextmanager
def stays_in_eval_mode(encoder: Encoder, *args: Any) -> Iterator[None]:
    encoder.model.eval()
    with tap(encoder, *args):
        yield


@contextmanager
def ends_in_training_mode(encoder: Encoder, *args: Any) -> Iterator[None]:
    with tap(encoder, *args):
        yield
    encoder.model.train()


@contextmanager
def turns_gradients_off(*args: Any) -> Iterator[None]:
    torch.set_grad_enabled(False)
    with tap(*args):
        yield
    torch.set_grad_enabled(True)


@contextmanager
def hooks_all_modules(*args: Any) -> Iterator[None]:
    torch.nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    with tap(*args):
        yield


@contextmanager
def replaces_forward(encoder: Encoder, *args: Any) -> Iterator[None]:
    with tap(encoder, *args):
        yield
    encoder.model.forward = encoder.model.forward


@contextmanager
def alters_a_weight(encoder: Encoder, *args: Any) -> Iterator[None]:
    with tap(encoder, *args):
        yield
    next(p for p in encoder.model.parameters() if p.ndim == 2).mul_(1.001)


@contextmanager
def draws_a_number(*args: Any) -> Iterator[None]:
    with tap(*args):
        yield
    torch.rand(1)


ALL = {path.__name__ for path in PATHS}
# The paths that only leave at the end of the block, and the one that never enters it.
ENDING = {"leaves_normally", "left_by_return_and_break"}
NEVER_IN = {"fails_while_it_hooks"}
ONLY_ERRORS = {
    "fails_in_the_first_block",
    "fails_in_a_middle_block",
    "fails_in_the_last_block",
    "fails_in_the_reader",
    "fails_before_any_pass",
    "a_warning_is_an_error",
    "interrupted_in_a_block",
    "interrupted_in_the_reader",
}
INTERRUPTED = {
    "interrupted_in_a_block",
    "interrupted_in_the_reader",
    "fails_before_any_pass",  # GeneratorExit, SystemExit
    "left_by_a_generator",
    "in_training_mode",  # an interrupt is one of its paths
}
TWINS: dict[Tap, set[str]] = {  # and the paths on which they are detected
    forgets_after_an_error: ALL - ENDING - NEVER_IN,
    forgets_after_an_interrupt: INTERRUPTED,
    clears_every_hook: ALL,
    removes_one_hook_too_many: ALL,
    puts_the_hooks_in_another_order: ALL - ONLY_ERRORS - NEVER_IN - {"left_by_a_generator"},
    stays_in_eval_mode: {"in_training_mode"},
    ends_in_training_mode: ALL - ONLY_ERRORS - NEVER_IN - {"left_by_a_generator"},
    turns_gradients_off: ALL - ENDING,
    hooks_all_modules: ALL,
    replaces_forward: ALL - ONLY_ERRORS - NEVER_IN - {"left_by_a_generator"},
    alters_a_weight: ALL - ONLY_ERRORS - NEVER_IN - {"left_by_a_generator"},
    draws_a_number: ALL - ONLY_ERRORS - NEVER_IN - {"left_by_a_generator", "in_training_mode"},
}


def detecting_paths(twin: Tap, watched: Watched) -> set[str]:
    """The paths on which a tap leaves something behind, each taken on an unchanged model."""
    paths: set[str] = set()
    copied, clean = copy.copy(watched), False
    for path in PATHS:
        if not clean:
            copied.encoder = replace(watched.encoder, model=copy.deepcopy(watched.encoder.model))  # and its hooks
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                path(twin, copied)
                copied.assert_unchanged()
            clean = True
        except AssertionError:
            paths.add(path.__name__)
            clean = False
        finally:
            torch.nn.modules.module._global_forward_hooks.clear()
            _OPEN_TAPS.clear()
    return paths


@pytest.mark.parametrize("twin", list(TWINS)[:3], ids=lambda twin: twin.__name__)
def test_a_broken_tap_is_detected(twin, tmp_path):
    """The three most likely ones; all of them in all architectures take minutes."""
    assert detecting_paths(twin, load_watched("bert", tmp_path)) == TWINS[twin]


@pytest.mark.long
@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_tap_is_detected_in_every_architecture(watched, twin):
    assert detecting_paths(twin, watched) == TWINS[twin]


def test_a_correct_tap_is_not_reported(tmp_path):
    assert detecting_paths(tap, load_watched("bert", tmp_path)) == set()
