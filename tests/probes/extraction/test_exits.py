"""Whichever way a `tap` is left, the model is as it was, in every architecture.

1. `Watched` is one encoder with hooks of somebody else's on every module, and its state before anything happens: hooks
   and their order, modes, gradients, attributes, random numbers, and what a plain pass gives and calls.
2. `PATHS` are the ways out of a tap. All of them are walked on the same encoder, one after the other, and each time its
   state must be the first one again: nothing may pile up either.
3. `TWINS` are broken taps. The same comparison finds each of them on the paths where it does harm, and only there.
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
    """Raised by these tests alone."""


class Watched:
    """An encoder under watch.

    texts: some that it can read. runs: how often its blocks run in one pass. fired: what the foreign hooks see.
    first: its state before anything happened.
    """

    def __init__(self, encoder: Encoder) -> None:
        # All short: between short and long ones BigBird puts other modules in the place of those with foreign hooks.
        self.encoder, self.texts = encoder, [text for text in fitting_texts(encoder) if len(text.split()) <= 5][:3]
        self.batch = encoder.batch(encoder.tokenize(self.texts[:2]))
        self.forward()
        self.fired: list[str] = []
        with acting(encoder, lambda: self.fired.append("a block")):
            self.forward()
        self.runs = len(self.fired)
        for name, module in encoder.model.named_modules():
            module.register_forward_pre_hook(lambda *args, name=name: self.fired.append(f"into {name}"))
            module.register_forward_hook(lambda *args, name=name: self.fired.append(f"out of {name}"), always_call=True)
        encoder.model.register_forward_hook(lambda *args: self.fired.append("behind the others"))
        self.first = self.standing() | self.shown()

    def layers(self) -> list[int]:
        return list(range(len(self.encoder.points)))

    def forward(self) -> Any:
        return self.encoder.forward(self.batch)

    def standing(self) -> dict[str, Any]:
        """Everything that a tap could leave behind, as far as it can be seen without a pass."""
        named = dict(self.encoder.model.named_modules())
        return {
            "hooks": {  # in their order, which dictionaries do not compare
                (name, kind): list(hooks.items())
                for name, module in named.items()
                for kind in HOOKS
                if (hooks := vars(module)[kind])
            },
            "hooks of all modules": {
                name: list(hooks.items())
                for name, hooks in vars(torch.nn.modules.module).items()
                if name.startswith("_global") and isinstance(hooks, dict)
            },
            "modes": {name: module.training for name, module in named.items()},
            "attributes": {name: set(vars(module)) for name, module in named.items()},
            "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            "parameters": {
                (name, key): parameter.requires_grad
                for name, module in named.items()
                for key, parameter in module._parameters.items()
                if parameter is not None
            },
            "randomness": (
                b"" if self.encoder.model.training else torch.get_rng_state().numpy().tobytes(),  # something drops out
                np.random.get_state()[1].tobytes(),  # noqa: NPY002
                random.getstate(),
            ),
            "messages": (logging.get_verbosity(), logging.is_progress_bar_enabled()),
        }

    def shown(self) -> dict[str, Any]:
        """What a plain pass gives, and which of the foreign hooks it calls, in their order."""
        self.fired.clear()
        with torch.random.fork_rng(devices=[]):  # what drops out, where something does
            torch.default_generator.manual_seed(0)
            output = self.forward()[0].numpy().tobytes()
        return {"output": output, "fired": list(self.fired)}

    def assert_standing(self, after: str = "") -> None:
        for what, now in self.standing().items():  # one after the other: all at once is a long message
            assert now == self.first[what], f"{what} {after}"

    def assert_unchanged(self, after: str = "") -> None:
        self.assert_standing(after)  # first: a hook that was left behind may raise in a pass
        for what, now in self.shown().items():
            assert now == self.first[what], f"{what} {after}"


def loaded(shape: str, folder: Path) -> Watched:
    with few_characters():
        return Watched(load_encoder(str(models.save(shape, folder))))


@pytest.fixture(scope="module", params=RUNNING)
def watched(request, tmp_path_factory) -> Watched:
    """Every architecture, each under watch until the last of its tests."""
    return loaded(request.param, tmp_path_factory.mktemp(request.param))


@contextmanager
def acting(encoder: Encoder, act: Act, at: int | None = None) -> Iterator[None]:
    """Within the block, `act` is called before the run number `at` of the model's blocks, counted from 1; None: always.

    No hook does this, since hooks are what is watched.
    """
    run = 0

    def acting_before(forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal run
            run += 1
            if at in (None, run):
                act()
            return forward(*args, **kwargs)

        return counted

    blocks = dict.fromkeys(encoder.model.get_submodule(point.module) for point in encoder.points if point.module)
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(patch.object(block, "forward", acting_before(block.forward)))
        yield


def raising(error: BaseException) -> Act:
    def act(*args: Any) -> None:
        raise error

    return act


def ignore(layer: int, hidden: torch.Tensor) -> None:
    """A reader that reads nothing."""


def reader(act: Act, at: int) -> Callable[[int, torch.Tensor], None]:
    """A reader that acts at one layer."""
    return lambda layer, hidden: act() if layer == at else None


# ------------------------------------------------------------------------------------------------------------ the paths


def normal(tap: Tap, on: Watched) -> None:
    seen: list[int] = []
    with tap(on.encoder, lambda layer, hidden: seen.append(layer)):
        on.forward()
    assert seen == on.layers()


def _fails_in_a_block(tap: Tap, on: Watched, at: int, error: BaseException) -> None:
    seen: list[int] = []
    with (
        pytest.raises(type(error)) as caught,
        acting(on.encoder, raising(error), at),
        tap(on.encoder, lambda layer, hidden: seen.append(layer)),
    ):
        on.forward()
    assert caught.value is error
    assert len(seen) < len(on.layers())


def fails_in_the_first_block(tap: Tap, on: Watched) -> None:
    _fails_in_a_block(tap, on, 1, Planted())


def fails_in_a_middle_block(tap: Tap, on: Watched) -> None:
    _fails_in_a_block(tap, on, 1 + on.runs // 2, Planted())


def fails_in_the_last_block(tap: Tap, on: Watched) -> None:
    _fails_in_a_block(tap, on, on.runs, Planted())


def interrupted_in_a_block(tap: Tap, on: Watched) -> None:
    _fails_in_a_block(tap, on, 1 + on.runs // 2, KeyboardInterrupt())


def _fails_in_the_reader(tap: Tap, on: Watched, error: BaseException) -> None:
    for layer in (0, on.layers()[-1] // 2, on.layers()[-1]):
        with pytest.raises(type(error)) as caught, tap(on.encoder, reader(raising(error), layer)):
            on.forward()
        assert caught.value is error
        on.assert_standing()


def fails_in_the_reader(tap: Tap, on: Watched) -> None:
    _fails_in_the_reader(tap, on, Planted())


def interrupted_in_the_reader(tap: Tap, on: Watched) -> None:
    _fails_in_the_reader(tap, on, KeyboardInterrupt())


def fails_before_any_pass(tap: Tap, on: Watched) -> None:
    for error in (Planted(), StopIteration(), GeneratorExit(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, tap(on.encoder, ignore):
            raise error
        assert caught.value is error
        on.assert_standing()


def fails_while_it_hooks(tap: Tap, on: Watched) -> None:
    """The last of the modules to be hooked is not there."""

    def points(adapter: Adapter, layers: int, config: dict[str, Any]) -> list[Point]:
        return [*on.encoder.adapter.points(layers, config), Point("not.there", "out")]

    broken = replace(on.encoder, adapter=replace(on.encoder.adapter, find_points=points))
    with pytest.raises(AttributeError, match="not"), tap(broken, ignore):
        raise AssertionError("never reached")


def fails_in_an_inner_tap(tap: Tap, on: Watched) -> None:
    """The outer one goes on; where nobody stops the error, both are left."""
    seen: list[int] = []
    last = on.layers()[-1]
    with tap(on.encoder, lambda layer, hidden: seen.append(layer)):
        outer = installed_hooks(on.encoder.model)
        for layer in (0, last):
            with pytest.raises(Planted), tap(on.encoder, reader(raising(Planted()), layer), [layer]):
                on.forward()
        assert installed_hooks(on.encoder.model) == outer
        seen.clear()
        on.forward()
        assert seen == on.layers()
    on.assert_standing()
    with pytest.raises(Planted), tap(on.encoder, ignore), tap(on.encoder, reader(raising(Planted()), last)):
        on.forward()


def left_by_return_and_break(tap: Tap, on: Watched) -> None:
    def first() -> int:
        seen: list[int] = []
        with tap(on.encoder, lambda layer, hidden: seen.append(layer)):
            on.forward()
            return seen[0]

    assert first() == 0
    on.assert_standing()
    for _ in range(2):
        with tap(on.encoder, ignore):
            on.forward()
            break


def left_by_a_generator(tap: Tap, on: Watched) -> None:
    """One that is closed, thrown into, or forgotten while it waits inside; its caller keeps gradients meanwhile."""

    def passes() -> Iterator[list[int]]:
        seen: list[int] = []
        with tap(on.encoder, lambda layer, hidden: seen.append(layer)):
            for _ in range(3):
                on.forward()
                yield seen

    for leave in ("close", "throw", "forget"):
        running = passes()
        assert next(running) == on.layers()
        assert torch.is_grad_enabled() == on.first["gradients"][0]
        if leave == "close":
            running.close()
        elif leave == "throw":
            with pytest.raises(Planted):
                running.throw(Planted())
        del running
        on.assert_standing()


def out_of_memory(tap: Tap, on: Watched) -> None:
    """All three errors there are, the second a real one; a smaller batch can follow within the same block."""
    smaller = on.encoder.batch(on.encoder.tokenize(on.texts[:1]))
    for act, kind in (
        (raising(torch.OutOfMemoryError("CUDA out of memory.")), torch.OutOfMemoryError),
        (lambda: torch.empty(1 << 58, dtype=torch.uint8), RuntimeError),
        (raising(MemoryError()), MemoryError),
    ):
        seen: list[int] = []
        with tap(on.encoder, lambda layer, hidden, seen=seen: seen.append(layer)):
            with pytest.raises(kind, match=None if kind is MemoryError else "memory"):  # noqa: SIM117
                with acting(on.encoder, act, on.runs):
                    on.forward()
            seen.clear()
            on.encoder.forward(smaller)
            assert seen == on.layers()
        on.assert_standing()
        with pytest.raises(kind), acting(on.encoder, act, 1), tap(on.encoder, ignore):
            on.forward()
        on.assert_standing()


def a_warning_is_an_error(tap: Tap, on: Watched) -> None:
    def warn() -> None:
        warnings.warn("planted", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="planted"), acting(on.encoder, warn, 2), tap(on.encoder, ignore):
            on.forward()
        on.assert_standing()
        with pytest.raises(UserWarning, match="planted"), tap(on.encoder, reader(warn, on.layers()[-1])):
            on.forward()


@contextmanager
def in_training(on: Watched) -> Iterator[None]:
    """Some modules in training and some not, which is a state of its own."""
    kept, modes = on.first, [(module, module.training) for module in on.encoder.model.modules()]
    for i, (module, _) in enumerate(modes):
        module.training = i % 3 < 2
    on.first = on.standing() | on.shown()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        on.first = kept
        for module, mode in modes:
            module.training = mode


def in_training_mode(tap: Tap, on: Watched) -> None:
    with in_training(on):
        for path in (normal, fails_in_a_middle_block, interrupted_in_the_reader):
            path(tap, on)
            on.assert_unchanged()


def without_gradients(tap: Tap, on: Watched) -> None:
    with torch.no_grad():
        for path in (normal, fails_in_the_last_block):
            path(tap, on)
            assert not torch.is_grad_enabled()
            with torch.enable_grad():
                on.assert_standing()


PATHS = (
    normal,
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


def test_every_architecture_is_walked():
    assert {model_type(shape) for shape in RUNNING} == set(ADAPTERS)


def test_a_tap_leaves_nothing_behind(watched):
    for path in PATHS:
        path(tap, watched)
        watched.assert_unchanged(after=path.__name__)


# ----------------------------------------------------------------------------------------------- those that use the tap


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
        for at in (1, watched.runs + 1):  # in the first batch, and in the second
            with pytest.raises(type(error)), acting(watched.encoder, raising(error), at):
                extract(watched.texts)
            watched.assert_standing()
        with pytest.raises(type(error)):
            Extractor(watched.encoder, ["mean", Failing(error)])(watched.texts)
        watched.assert_standing()
    full = torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")
    for error, at in zip(full, (watched.runs, None), strict=True):  # once, and for ever: it may try smaller batches
        with suppress(type(error), InputError), acting(watched.encoder, raising(error), at):
            extract(watched.texts)
        watched.assert_standing()
    with pytest.raises(InputError, match="exceed"):
        extract(["cat " * 1000])
    watched.assert_unchanged()


def test_an_extractor_restores_training_modes(watched):
    extract = Extractor(watched.encoder, ["mean"])
    wanted = stack_cells(extract(watched.texts))
    with in_training(watched):
        assert np.array_equal(stack_cells(extract(watched.texts)), wanted, equal_nan=True)  # nothing dropped out
        watched.assert_unchanged()
        with pytest.raises(Planted), acting(watched.encoder, raising(Planted()), watched.runs):
            extract(watched.texts)
        watched.assert_unchanged()


def test_a_self_check_leaves_nothing_behind(watched):
    assert self_check(watched.encoder) == watched.encoder.checked
    watched.assert_unchanged()
    for error in (Planted(), KeyboardInterrupt()):
        for at in (1, 2 * watched.runs):
            with pytest.raises(type(error)), acting(watched.encoder, raising(error), at):
                self_check(watched.encoder)
            watched.assert_standing()
    watched.assert_unchanged()


def test_a_forward_pass_leaves_nothing_behind(watched):
    """Also one that fails: transformers' messages and gradients are as they were."""
    for error in (Planted(), KeyboardInterrupt()):
        with pytest.raises(type(error)), acting(watched.encoder, raising(error), 1):
            watched.forward()
        watched.assert_standing()
    watched.assert_unchanged()


def test_modes_are_restored_where_a_pass_replaces_modules(tmp_path):
    """BigBird, which has another attention for short texts than for long ones."""
    encoder = load_encoder(str(models.save("big_bird", tmp_path)))
    long = max(fitting_texts(encoder), key=len)
    for texts in ([long], ["cat"], [long]):
        for i, module in enumerate(encoder.model.modules()):
            module.training = i % 3 < 2
        before = {name: module.training for name, module in encoder.model.named_modules()}
        Extractor(encoder, ["mean"])(texts)
        after = {name: module.training for name, module in encoder.model.named_modules()}
        for name, mode in after.items():  # a part that was not there before is as what it is part of
            assert mode == before.get(name, after[name.rpartition(".")[0]]), name


def test_a_self_check_finds_the_same_in_training_mode(tmp_path):
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

_KEPT: list[Any] = []  # a tap that nobody holds cleans up after itself when it is collected


def _entered(*args: Any) -> AbstractContextManager[None]:
    inner = tap(*args)
    _KEPT.append(inner)
    inner.__enter__()
    return inner


@contextmanager
def forgets_after_an_error(*args: Any) -> Iterator[None]:
    inner = _entered(*args)
    yield
    inner.__exit__(None, None, None)


@contextmanager
def forgets_after_an_interrupt(*args: Any) -> Iterator[None]:
    inner = _entered(*args)
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
    torch.nn.modules.module.register_module_forward_hook(lambda *seen: None)
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
# Paths that only go through the end of the block, and the one on which no block is entered.
ENDING = {"normal", "left_by_return_and_break"}
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
    "in_training_mode",  # an interrupt is one of its ways out
}
TWINS: dict[Tap, set[str]] = {  # and the paths on which they are found
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


def found_on(twin: Tap, watched: Watched) -> set[str]:
    """The paths on which a tap is found to leave something behind, each walked on a model that is as it should be."""
    found: set[str] = set()
    on, clean = copy.copy(watched), False
    for path in PATHS:
        if not clean:
            on.encoder = replace(watched.encoder, model=copy.deepcopy(watched.encoder.model))  # with the hooks on it
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                path(twin, on)
                on.assert_unchanged()
            clean = True
        except AssertionError:
            found.add(path.__name__)
            clean = False
        finally:
            torch.nn.modules.module._global_forward_hooks.clear()
            _KEPT.clear()
    return found


@pytest.mark.parametrize("twin", list(TWINS)[:3], ids=lambda twin: twin.__name__)
def test_a_broken_tap_is_found(twin, tmp_path):
    """The likeliest three; all of them in all architectures take minutes."""
    assert found_on(twin, loaded("bert", tmp_path)) == TWINS[twin]


@pytest.mark.long
@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_tap_is_found_in_every_architecture(watched, twin):
    assert found_on(twin, watched) == TWINS[twin]


def test_a_whole_tap_is_not_found(tmp_path):
    assert found_on(tap, loaded("bert", tmp_path)) == set()
