"""The registers: names -> probes, readouts, sources, studies and plots, those of clsprobe and those of other packages.

1. A room declares its `Register`: clsprobe's own names are data there, other packages add theirs as entry points. What
   has no name is reached as ``package.module:Name``, also in a module of the current folder.
2. clsprobe's own names stay its own, and a name of two packages is nobody's: these are reached by their full names.
3. Nothing is imported before it is used, so that a package that cannot be imported costs nothing but its own use. Then
   every failure of it is an InputError.
4. `digest_source` is the digest of the code of a plug-in: a run or a vector is made anew where it changes.

Imports no scikit-learn, so that a mistyped name is reported at once.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import sys
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsprobe.probes.errors import InputError, did_you_mean, printable, unknown
from clsprobe.probes.files import digest_files, read_content
from clsprobe.probes.plugins import PluginError, contain, undo_changes

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

    from clsprobe.probes.tasks.task import Task

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
FULL_NAME = re.compile(rf"{_DOTTED}:{_DOTTED}")
_NAME = re.compile(r"\w[\w.-]*")  # what can be typed among others, separated by commas or colons


_IN_MEMORY: dict[tuple[str, str], Any] = {}  # (group, name) -> an object of this process (`Register.remember`)


@dataclass(frozen=True)
class Entry:
    """A name of a register.

    name: by which it is called, the full name where the one that its package chose is not its own; reason: why that is
    so. package: name and version of the package that registers it, "" for clsprobe.
    """

    name: str
    full_name: str
    package: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Register:
    """The objects of one kind by name.

    kind: what an error calls them. group: of the entry points of other packages. flag: where the user names them.
    built_in: name -> ``package.module:Name`` of clsprobe's own. reserved: further names that no package can have.
    hyphenated: whether names are those of commands, in which `_` is `-`.
    """

    kind: str
    group: str
    flag: str
    built_in: Mapping[str, str]
    reserved: Collection[str] = ()
    hyphenated: bool = False

    def entries(self) -> list[Entry]:
        """All that is registered: clsprobe's own, then those of other packages by name. Imports none of them."""
        registered = self._registered()
        owners = Counter(name for name, _ in registered)
        entries = [Entry(name, full_name) for name, full_name in self.built_in.items()]
        for (name, full_name), package in registered.items():
            reason = ""
            if name in self.built_in or name in self.reserved:
                reason = f"'{name}' is clsprobe's own"
            elif owners[name] > 1:
                reason = f"two packages call theirs '{name}'"
            elif not _NAME.fullmatch(name):
                reason = f"'{name}' cannot be typed"
            entries.append(Entry(full_name if reason else name, full_name, package, reason))
        return entries

    def names(self) -> list[str]:
        """The names that can be used alone."""
        return [entry.name for entry in self.entries() if not entry.reason]

    def is_plugin(self, name: str) -> bool:
        """Whether the name is of another package: a full name, or one that is registered and not clsprobe's own."""
        if name in self.built_in or name in self.reserved or name.startswith("clsprobe."):
            return False
        return ":" in name or (self.group, name) in _IN_MEMORY or bool(self.owners(name))

    def owners(self, name: str) -> dict[str, str]:
        """Full name -> package of all that other packages register under a name."""
        return {full_name: package for (other, full_name), package in self._registered().items() if other == name}

    def remember(self, thing: Any) -> str:
        """A name for a class or an object of this process, under which `load` finds it: its full name if that leads to
        it, otherwise ``Name#DIGEST``, of its attributes."""
        kind = thing if isinstance(thing, type) else type(thing)
        if thing is kind and self._leads_to(full_name := self.name_of(kind), kind):
            return full_name
        name = f"{kind.__name__}#{digest_attributes(thing)[:8]}"
        _IN_MEMORY[self.group, name] = thing
        return name

    def _leads_to(self, name: str, thing: Any) -> bool:
        try:
            return self.load(name) is thing
        except InputError:  # a class within a function
            return False

    def full_name(self, name: str) -> str:
        """The ``package.module:Name`` of a name. Imports nothing.

        Raises InputError where there is none, or where two packages have registered one.
        """
        if name in self.built_in:
            return self.built_in[name]
        if (thing := _IN_MEMORY.get((self.group, name))) is not None:
            kind = thing if isinstance(thing, type) else type(thing)
            return f"{kind.__module__}:{kind.__qualname__}"
        if ":" in name:
            if not FULL_NAME.fullmatch(name):
                mend = "Write it as in mypackage.module:Name"
                raise InputError(f"{self.flag} {name}", "is no package.module:Name", mend)
            return name
        owners = {} if name in self.reserved else self.owners(name)
        if not owners:
            raise self.unknown(name)
        if len(owners) > 1:
            packages = " and ".join(f"{package} ({full_name})" for full_name, package in owners.items())
            what = f"two packages have a {self.kind} of this name: {packages}"
            raise InputError(f"{self.flag} {name}", what, f"Name one in full, as in {next(iter(owners))}")
        return next(iter(owners))

    def unknown(self, name: str, forms: Iterable[str] = ()) -> InputError:
        """The error for a name that is not registered. forms: what can be named beside the registered names."""
        return unknown(self.flag, self.kind, name, [*self.names(), *forms])

    def load(self, name: str) -> Any:
        """The object of a name, imported now. Raises InputError for whatever goes wrong in a plug-in."""
        if (thing := _IN_MEMORY.get((self.group, name))) is not None:
            return thing
        full_name = self.full_name(name)
        module_name, _, attribute = full_name.partition(":")
        if full_name in self.built_in.values():
            return attrgetter(attribute)(importlib.import_module(module_name))
        where = f"{self.flag} {name}"
        if not FULL_NAME.fullmatch(full_name):
            what = f"is registered as '{full_name}', which is no package.module:Name"
            raise InputError(where, what, "Mend the entry point of its package")
        if name == full_name:
            search_current_folder()
        with _guard(where, f"{module_name} cannot be imported"):
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                if f"{module_name}.".startswith(f"{error.name}."):
                    what = f"no module named '{error.name}'"
                    raise InputError(where, what, "Install the package, or run where the module is") from error
                raise
        with _guard(where, f"{attribute} of {module_name} cannot be read"):
            try:
                return attrgetter(attribute)(module)
            except AttributeError as error:
                guess = did_you_mean(attribute, [other for other in dir(module) if not other.startswith("_")])
                mend = f"Did you mean '{module_name}:{guess}'?" if guess else "Name what that module defines"
                raise InputError(where, f"{module_name} has no {attribute}", mend) from error

    def make(self, name: str, kind: type, noun: str, mend: str) -> Any:
        """An instance of `kind`: the object of a name, or what its class returns without arguments.

        noun, mend: what the error for anything else calls an instance, and says about how to make one.
        """
        result, where = self.load(name), f"{self.flag} {name}"
        with _guard(where, f"does not say whether it is a {noun}"):
            fits = isinstance(result, kind) or (isinstance(result, type) and issubclass(result, kind))
        if not fits:
            raise InputError(where, f"is {describe_kind(result)}, not a {noun}", mend)
        if isinstance(result, type):
            with _guard(where, "cannot be made without arguments", "Give them defaults, or name an instance"):
                result = result()
        return result

    def describe(self, name: str) -> str:
        """The first sentence of the docstring of one of clsprobe's own, read from its file: nothing is imported."""
        return _first_sentence(read_definition(self.built_in[name]))

    def describe_module(self, name: str) -> str:
        """The same of the module that defines it."""
        return _first_sentence(_read_module(self.built_in[name].partition(":")[0]))

    def name_of(self, definition: Any) -> str:
        """The name by which a class or function is called: its short one if it has one, otherwise its full name."""
        full_name = f"{definition.__module__}:{definition.__qualname__}"
        return next((entry.name for entry in self.entries() if entry.full_name == full_name), full_name)

    def _registered(self) -> dict[tuple[str, str], str]:
        """(name, full name) -> the package that registers it, for all packages but clsprobe."""
        points = _read_entry_points(tuple((folder, _read_time(folder)) for folder in sys.path)).select(group=self.group)
        registered = {}
        for point in points:
            name, package = point.name.replace("_", "-") if self.hyphenated else point.name, _describe_package(point)
            if package.partition(" ")[0] != "clsprobe" and self.built_in.get(name) != point.value:
                registered[printable(name), printable(point.value.partition("[")[0].strip())] = package
        return dict(sorted(registered.items()))


@lru_cache(maxsize=4)
def _read_entry_points(folders: tuple[tuple[str, int], ...]) -> Any:
    """Those of all installed packages, of which a command needs several groups.

    folders: where packages are looked for, and when a package was last added there or removed.
    """
    try:
        return importlib.metadata.entry_points()
    except Exception:  # the metadata of some package cannot be read: those of the others can
        points: list[importlib.metadata.EntryPoint] = []
        for distribution in importlib.metadata.distributions():
            with suppress(Exception):
                points += distribution.entry_points
        return importlib.metadata.EntryPoints(points)


def _read_time(folder: str) -> int:
    with suppress(OSError, ValueError):
        return os.stat(folder or ".").st_mtime_ns
    return 0


def _describe_package(point: importlib.metadata.EntryPoint) -> str:
    with suppress(Exception):  # incomplete metadata
        assert point.dist is not None
        return printable(f"{point.dist.name} {point.dist.version}")
    return "a package without a name"


@contextmanager
def _guard(where: str, what: str, mend: str = "Mend the plug-in") -> Iterator[None]:
    """Whatever a plug-in raises within the block as an InputError that says `what`; its own InputErrors stay."""
    try:
        with contain(), undo_changes():
            yield
    except PluginError as error:
        raise InputError(where, f"{what} ({error})", mend) from error.__cause__


def describe_kind(thing: object) -> str:
    """ "the class Weighted", "a function", "a module", "an int": what a plug-in's name stands for."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    noun = type(thing).__name__
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def search_current_folder() -> None:
    """Let modules in the current folder be imported, after all others, as ``python -m`` lets them before all others."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def read_definition(full_name: str) -> ast.ClassDef | ast.FunctionDef:
    """The syntax tree of a class or function at the top of a module of clsprobe, which is not imported."""
    module, _, name = full_name.partition(":")
    nodes = (node for node in _read_module(module).body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return next(node for node in nodes if node.name == name)


def _read_module(name: str) -> ast.Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(read_content(spec.origin).decode())


def _first_sentence(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return re.split(r"\.(?= [A-Z]|$)", paragraph)[0].replace("`", "")


def digest_attributes(thing: Any) -> str:
    """A digest of what an object was made with; random where an attribute cannot be hashed."""
    import joblib

    try:
        return str(joblib.hash([type(thing).__qualname__, getattr(thing, "__dict__", {})]))
    except Exception:  # pickling may raise anything
        return secrets.token_hex()


def digest_source(module: str) -> str:
    """SHA-256 of the source of an imported module, and of the modules of its own that it imports.

    Its own: of the same package if that is installed, otherwise all modules outside the installed packages, which are
    those that a user may edit. Raises InputError for a module without a file, such as one typed at a prompt.
    """
    from modulefinder import ModuleFinder

    name = getattr(sys.modules.get(module), "__file__", None)
    if not name or not (file := Path(name).resolve()).exists():  # "<stdin>" of a script that is piped
        raise InputError(module, "has no file", "Save it in one")
    root = file.parents[min(module.count(".") + (file.stem == "__init__"), len(file.parents) - 1)]
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if root in installed:
        package = root / module.partition(".")[0]
        files = package.rglob("*.py") if package.is_dir() else [file]
        return digest_files({path.relative_to(root).as_posix(): path for path in files})
    folders = dict.fromkeys([root, *(Path(entry or ".").resolve() for entry in sys.path)])
    search_path = [str(folder) for folder in folders if not any(folder.is_relative_to(place) for place in installed)]
    finder = ModuleFinder(search_path, excludes=["clsprobe"])
    with suppress(Exception):  # a module that cannot be read is none that was imported
        finder.import_hook(module)
    parts: dict[str, Any] = finder.modules
    return digest_files({module: file} | {name: Path(part.__file__) for name, part in parts.items() if part.__file__})


# ------------------------------------------------------------------------------------------------------------ probes

PROBES = Register(
    "probe",
    "clsprobe.probes",
    "--probes",
    {
        "logistic": "clsprobe.probes.linear:LogisticProbe",
        "ridge": "clsprobe.probes.linear:RidgeProbe",
        "mlp": "clsprobe.probes.mlp:MLPProbe",
    },
)


def find_probe(name: str) -> BaseEstimator:
    """The probe of a name of `PROBES`, with its default arguments. Raises InputError."""
    from sklearn.base import BaseEstimator

    return PROBES.make(name, BaseEstimator, "scikit-learn estimator", "Derive it from CellProbe or BaseEstimator")


def choose_probes(probes: Mapping[str, BaseEstimator], task: Task) -> dict[str, BaseEstimator]:
    """The probes that can read the labels of a task: regressors for numbers, the others for classes.

    Raises InputError if there is none.
    """
    from sklearn.base import is_regressor

    numbers, chosen = task.kind == "number", {}
    for name, probe in probes.items():
        with _guard(f"{PROBES.flag} {name}", "does not say whether it reads numbers or classes"):
            if is_regressor(probe) == numbers:
                chosen[name] = probe
    if chosen:
        return chosen
    labels, mend = ("numbers", "ridge") if numbers else ("classes", "logistic")
    what = f"{task.name} has {labels}, which {' and '.join(probes)} cannot read"
    raise InputError("--probes", what, f"Add a probe that does, such as {mend}")
