"""Methods that a configuration names: by a known name, or by the import path of a class or function of your own.

    surrogate = "clip"                        # a known name
    surrogate = "mypackage.losses:soft"       # the function `soft` in mypackage/losses.py
    surrogate = "mypackage.losses:Soft"       # the class `Soft`, called with the table `surrogate_options`

This is the one rule for every extension point (`CONTRIBUTING.md` lists them). A configuration only checks how the name
is written, with `Known`; `load` imports it, in the process that uses it. The module lies in the lowest folder because
all others use it."""

import difflib
import importlib
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ExtensionError(ValueError):
    """A name in a configuration does not lead to a usable method. The message is one line that names the key."""


class Known:
    """A validator for a key that takes a known name or an import path.

    Surrogate = Annotated[str, AfterValidator(Known("clip", "gspo"))]"""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, name: str) -> str:
        """Return `name`. Raises ValueError for one that is neither known nor an import path."""
        if name in self.names or is_path(name):
            return name
        if ":" in name:
            raise ValueError('an import path is written "package.module:name"')
        near = difflib.get_close_matches(name, self.names, n=1)
        suggestion = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f'{suggestion}Known: {", ".join(self.names)}; or an import path "package.module:name"')


def is_path(name: str) -> bool:
    """Return whether `name` is written as an import path."""
    return _PATH.fullmatch(name) is not None


def load(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    key: str,
    options_key: str = "",
    methods: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> Any:
    """Import what `path` names and return it, ready for use. A class is called with `options`; a function, or any other
    object, takes none. The result must have all `methods`, and where `arguments` are given it must be callable with
    that many. `key` is the configuration key, for messages, and `options_key` that of the options where it is not
    `KEY_options`. Raises ExtensionError."""
    options_key = options_key or f"{key}_options"
    found = _attribute(path, key)
    if inspect.isclass(found):
        found = _instance(found, dict(options or {}), f'{key} = "{path}"', options_key)
    elif options:
        raise ExtensionError(f"{options_key} are for a class, and {path} is a {type(found).__name__}: leave them out")
    kind = type(found).__name__
    for method in methods:
        if not hasattr(found, method):
            raise ExtensionError(f'{key} = "{path}": {kind} has no {method}; it needs {", ".join(methods)}')
    if arguments is not None:
        _require_callable(found, arguments, path, key)
    return found


def _attribute(path: str, key: str) -> Any:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = "in the current directory or among the installed packages"
            raise ExtensionError(f'{key} = "{path}": there is no module {error.name} {where}{_near_module(error.name)}') from None
        raise ExtensionError(f'{key} = "{path}": {module_name} needs the module {error.name}, which is missing') from error
    except Exception as error:  # a seam: the module is somebody else's code
        message = error.msg if isinstance(error, SyntaxError) else error
        reason = f"{type(error).__name__}: {message} ({place_of(error)})".replace("\n", " ")
        raise ExtensionError(f'{key} = "{path}": importing {module_name} failed with {reason}') from error
    if not hasattr(module, name):
        suggestion = did_you_mean(name, [each for each in vars(module) if not each.startswith("_")])
        raise ExtensionError(f'{key} = "{path}": module {module_name} has no {name}{suggestion}')
    return getattr(module, name)


def place_of(error: Exception) -> str:
    """Return the file and the line that raised `error`, or that Python could not read."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    line = traceback.extract_tb(error.__traceback__)[-1]
    return f"{line.filename}, line {line.lineno}"


def _near_module(name: str) -> str:
    package, _, last = name.rpartition(".")
    places = getattr(sys.modules.get(package), "__path__", []) if package else None
    return did_you_mean(last, [module.name for module in pkgutil.iter_modules(places)])


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, if one is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _instance(cls: type, options: dict[str, Any], named: str, options_key: str) -> Any:
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        raise ExtensionError(f"{named} with {options_key} = {options}: {error}") from None
    try:
        return cls(**options)
    except ExtensionError:  # says itself what is wrong
        raise
    except Exception as error:  # a seam: the class is somebody else's code
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise ExtensionError(f"{named} with {options_key} = {options}: {reason}") from error


def _require_callable(found: Any, arguments: Sequence[str], path: str, key: str) -> None:
    takes = f"it is called with ({', '.join(arguments)})"
    if not callable(found):
        raise ExtensionError(f'{key} = "{path}": {type(found).__name__} cannot be called; {takes}')
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise ExtensionError(f'{key} = "{path}": {takes}, but {error}') from None
    except ValueError:  # a built-in without a signature
        return
